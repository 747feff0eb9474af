// The first and the last of a program: runs its main function, prints why it failed, and ends the process.
import { FatalError, reasonOf } from '../errors.ts'
import { flushLog, leave } from '../log/log-output.ts'
import { flushOutput, ignoreClosedOutput } from '../log/output.ts'
import { exitCode } from './exit-codes.ts'

/**
 * Runs a program's main function and ends the process with the code that it returns. A FatalError becomes one line on
 * stderr and its exit code; anything else keeps its stack. What was printed goes out first, however slowly it is read.
 * @param outputMs how long to wait for whoever should read what was printed
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
