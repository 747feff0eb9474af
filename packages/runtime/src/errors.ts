// Why a Gearbox process can't do its work: one line for the reader, one code for the supervisor.
import { exitCode } from './process/exit-codes.ts'

/**
 * A reason to end the process that a person can act on. The message is the whole story: it is printed without a stack.
 */
export class FatalError extends Error {
  readonly exitCode: number

  constructor (message: string, code: number = exitCode.failed, options?: ErrorOptions) {
    super(message, options)
    this.name = 'FatalError'
    this.exitCode = code
  }
}

/** The text of anything that was thrown. */
export function reasonOf (error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
