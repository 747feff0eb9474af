// How a Gearbox process ends when it can't do its work: one line for the reader, one code for the supervisor.
import { flushLog, leave } from './log/log-output.ts'
import { flushOutput, ignoreClosedOutput } from './log/output.ts'

/** Exit codes, from sysexits.h where it has a fitting one. */
export const exitCode = {
  /** Anything that a person has to look at: a port in use, a database that can't be written. */
  failed: 1,
  /** EX_USAGE: an option that there is not. */
  usage: 64,
  /** EX_UNAVAILABLE: this database and this queue don't belong together, or another consumer has taken over. Starting again would not help. */
  refused: 69,
  /** EX_TEMPFAIL: sums were left that could be neither queued nor written to a file. */
  unsent: 75,
  /** EX_CONFIG: the environment has problems, all of them named. */
  config: 78,
} as const

/** A reason to end the process that a person can act on. The message is the whole story: it is printed without a stack. */
export class FatalError extends Error {
  readonly exitCode: number

  constructor (message: string, code: number = exitCode.failed, options?: ErrorOptions) {
    super(message, options)
    this.name = 'FatalError'
    this.exitCode = code
  }
}

/** For `runMain` of a program that runs until it is told to stop. */
export const serviceOutputMs = 1000

/**
 * Runs a program's main function. A FatalError becomes one line on stderr and its exit code; anything else keeps its stack.
 * What it printed goes out first, however slowly it is read.
 * @param outputMs a program that was told to stop waits no longer than this for whoever should read what it printed
 */
export async function runMain (main: () => Promise<number>, outputMs = Number.POSITIVE_INFINITY): Promise<void> {
  ignoreClosedOutput()
  try {
    process.exitCode = await main()
  } catch (error) {
    const usage = error instanceof TypeError && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS_')
    process.stderr.write(error instanceof FatalError || usage
      ? `gearbox: ${reasonOf(error)}\n`
      : `gearbox: unexpected: ${error instanceof Error ? error.stack : String(error)}\n`)
    process.exitCode = error instanceof FatalError ? error.exitCode : usage ? exitCode.usage : exitCode.failed
  }
  await flushLog()
  // A main that has returned has closed what it owns; a handle that a library forgot must not hold up a supervisor.
  if (process.connected) process.disconnect?.()
  // Into a pipe that is full, Node writes later; to exit would cut that off.
  await flushOutput(outputMs)
  leave(process.exitCode)
}

/** The text of anything that was thrown. */
export function reasonOf (error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
