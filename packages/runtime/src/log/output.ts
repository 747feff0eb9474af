// What a command prints on standard output, which may be a pipe that somebody reads slowly, or no longer.
import { once } from 'node:events'

/** Characters that are written at once. */
const chunkCharacters = 64 * 1024

/**
 * Prints lines, no faster than they are read. Ends early, without an error, when nobody reads them any more (`| head`).
 * @param lines made one by one as they are printed, so that there may be any number of them
 */
export async function printLines (lines: Iterable<string>): Promise<void> {
  let chunk = ''
  for (const line of lines) {
    chunk += `${line}\n`
    if (chunk.length < chunkCharacters) continue
    if (!await print(chunk)) return
    chunk = ''
  }
  if (chunk !== '') await print(chunk)
}

/** @returns false when nobody reads it any more */
async function print (text: string): Promise<boolean> {
  const { stdout } = process
  if (stdout.destroyed || stdout.errored !== null) return false
  if (stdout.write(text)) return true
  const gone = new AbortController()
  try {
    const { signal } = gone
    await Promise.race(['drain', 'error', 'close'].map(async (event) => await once(stdout, event, { signal })))
  } catch {
    return false
  } finally {
    gone.abort()
  }
  return !stdout.destroyed
}

/** Resolves when everything that was printed has gone out, or nobody reads it any more, or after `ms`. */
export async function flushOutput (ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  await Promise.race([
    Promise.all([process.stdout, process.stderr].map(async (stream) => {
      if (stream.writableLength === 0 || stream.destroyed) return
      await new Promise<void>((resolve) => { stream.write('', () => resolve()) })
    })),
    ...(ms === Number.POSITIVE_INFINITY ? [] : [new Promise((resolve) => { timer = setTimeout(resolve, ms) })]),
  ])
  clearTimeout(timer)
}

/** A reader that has gone ends the printing, not the program. */
export function ignoreClosedOutput (): void {
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => {})
}
