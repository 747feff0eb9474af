// pino: pretty on a terminal, JSON lines elsewhere. What repeats is summed up, and nothing ever waits for a line.
import { isatty } from 'node:tty'
import { pino, type Logger, type LoggerOptions } from 'pino'
import { prettyFactory } from 'pino-pretty'
import { addOutput, leave, standardOutput } from './log-output.ts'
import { Repeats, repeatsIntervalMs } from './repeats.ts'
import { LogTransport } from './transport.ts'

export type { Logger } from 'pino'

/** Among a line's fields it says that the line comes at a fixed pace, and is never left out. */
export const everyLine = Symbol('every line')

/** Lines below this level are never left out: somebody asked for details. */
const infoLevel = 30

/**
 * A logger that writes to stdout. Lines of one kind beyond a few in ten seconds are counted and summed up in one.
 * @param part the process whose log it is: gearbox, web 1, consumer
 * @param transport the module of a pino transport that receives the log instead
 */
export function createLogger (part: string, level: string, transport?: string): Logger {
  const output = standardOutput()
  const repeats = new Repeats()
  const options: LoggerOptions = {
    level,
    base: { part },
    hooks: {
      logMethod (args, method, level) {
        const [first, second] = args as readonly unknown[]
        const message = messageOf(first, second)
        const sumUp = (leftOut: number): void => {
          const summary = `${leftOut} more lines like this in ${repeatsIntervalMs / 1000} s, the last: ${message}`
          method.call(this, { leftOut }, summary)
        }
        const every = level < infoLevel || (typeof first === 'object' && first !== null && everyLine in first)
        if (every || repeats.accept(level, message, sumUp)) method.apply(this, args)
      },
    },
  }
  const prettify = isatty(1) ? makePretty(part, level) : (line: string) => line
  const toStandard = (line: string): void => output.write(prettify(line))
  const other = transport === undefined
    ? undefined
    : new LogTransport(transport, toStandard, (reason) => {
      logger.error(`the log transport ${transport} failed (${reason}): logging to standard output`)
    })
  if (other !== undefined) addOutput(other)
  const logger = pino(options, { write: (line: string) => other === undefined ? toStandard(line) : other.write(line) })
  output.on(
    (lost) => logger.warn({ lost }, `${lost} log lines were lost: standard output did not take them`),
    () => repeats.sumUp()
  )
  return logger
}

/** The message of a call of a log method, whose first argument may be an object or an error. */
function messageOf (first: unknown, second: unknown): string {
  if (typeof first === 'string') return first
  if (typeof second === 'string') return second
  return first instanceof Error ? first.message : ''
}

/** Makes a JSON line one for a person. The message says it all; the fields are for programs. */
function makePretty (part: string, level: string): (line: string) => string {
  return prettyFactory({
    colorize: true,
    translateTime: 'SYS:HH:MM:ss.l',
    ignore: 'part',
    hideObject: level !== 'debug' && level !== 'trace',
    messageFormat: `[${part}] {msg}`,
  })
}

/**
 * Logs an error that nobody caught, and ends the process. The line goes to the log like all others: one to a stderr
 * that is blocked would keep the process from ending.
 */
export function logCrash (logger: Logger): void {
  process.on('uncaughtException', (error) => {
    logger.fatal({ err: error }, `unexpected: ${error.stack ?? String(error)}`)
    leave(1)
  })
}
