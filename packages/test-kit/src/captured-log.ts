// A logger whose lines a test can look at. It prints nothing.
import { pino, type Logger } from 'pino'

/** A logger and its lines. */
export interface CapturedLog {
  readonly logger: Logger
  /** Messages of a level and above: 30 info, 40 warn, 50 error. */
  messages: (level: number) => string[]
}

/** Makes one, at level info. */
export function captureLog (): CapturedLog {
  const lines: Array<{ level: number, msg: string }> = []
  const logger = pino({ level: 'info' }, { write: (text: string) => { lines.push(JSON.parse(text)) } })
  return { logger, messages: (level) => lines.filter((line) => line.level >= level).map(({ msg }) => msg) }
}
