// pino, pretty where a person looks on and JSON lines elsewhere.
import { pino, type Logger } from 'pino'
import pretty from 'pino-pretty'

export type { Logger } from 'pino'

/**
 * A logger that writes to stdout.
 * @param part the process it speaks for: gearbox, web 1, consumer
 */
export function createLogger (part: string, level: string): Logger {
  const options = { level, base: { part } }
  if (!process.stdout.isTTY) return pino(options)
  // The messages say it all; the objects beside them are for programs.
  // Synchronous and in this process: a transport's thread would lose the last lines of a process that ends.
  return pino(options, pretty({ sync: true, colorize: true, translateTime: 'SYS:HH:MM:ss.l', ignore: 'part', hideObject: level !== 'debug' && level !== 'trace', messageFormat: `[${part}] {msg}` }))
}
