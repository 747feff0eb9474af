// pino, pretty where a person looks on and JSON lines elsewhere. What repeats is summed up, and no line is ever waited for.
import { isatty } from 'node:tty'
import { pino, type Logger, type LoggerOptions } from 'pino'
import { prettyFactory } from 'pino-pretty'
import { leave, standardOutput } from './log-output.ts'
import { Repeats, repeatsIntervalMs } from './repeats.ts'

export type { Logger } from 'pino'

/** Beside a line's figures it says that the line comes at a pace of our own, and is never left out. */
export const everyLine = Symbol('every line')

/** Details that somebody asked for are all shown. */
const infoLevel = 30

/**
 * A logger that writes to stdout. Lines of one kind beyond a few in ten seconds are counted and summed up in one.
 * @param part the process it speaks for: gearbox, web 1, consumer
 */
export function createLogger (part: string, level: string): Logger {
  const output = standardOutput()
  const repeats = new Repeats()
  const options: LoggerOptions = {
    level,
    base: { part },
    hooks: {
      logMethod (args, method, level) {
        const [first, second] = args as readonly unknown[]
        const message = typeof first === 'string' ? first : typeof second === 'string' ? second : first instanceof Error ? first.message : ''
        const sumUp = (leftOut: number): void => {
          method.call(this, { leftOut }, `${leftOut} more lines like this in ${repeatsIntervalMs / 1000} s, the last: ${message}`)
        }
        const every = level < infoLevel || (typeof first === 'object' && first !== null && everyLine in first)
        if (every || repeats.accept(level, message, sumUp)) method.apply(this, args)
      },
    },
  }
  // The messages say it all; the objects beside them are for programs.
  const prettify = isatty(1)
    ? prettyFactory({ colorize: true, translateTime: 'SYS:HH:MM:ss.l', ignore: 'part', hideObject: level !== 'debug' && level !== 'trace', messageFormat: `[${part}] {msg}` })
    : (line: string) => line
  const logger = pino(options, { write: (line: string) => output.write(prettify(line)) })
  output.on(
    (lost) => logger.warn({ lost }, `${lost} log lines were lost: standard output did not take them`),
    () => repeats.sumUp()
  )
  return logger
}

/** An error that nobody caught ends the process, and its last line goes the way of all others: one to a blocked stderr would keep it from ending. */
export function logCrash (logger: Logger): void {
  process.on('uncaughtException', (error) => {
    logger.fatal({ err: error }, `unexpected: ${error.stack ?? String(error)}`)
    leave(1)
  })
}
