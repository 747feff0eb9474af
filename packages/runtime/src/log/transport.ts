// LOG_TRANSPORT: a pino transport, which receives the log of this process in a thread of its own. It can be slow, hang
// or fail: like standard output it never holds up a process. If it fails the log goes on to standard output.
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { pino } from 'pino'
import { quote } from '../settings/setting.ts'

/** A process that ends gives its last lines this long. */
const flushTimeoutMs = 500

/** Where a thread has ended, for the reason. */
const reasonMs = 100

/** A file or package as the path of its module. @throws Error whose message completes "LOG_TRANSPORT …" */
export function parseTransport (text: string): string {
  if (/^\.{0,2}\//.test(text)) {
    if (existsSync(resolve(text))) return resolve(text)
    throw new Error(`must be a pino transport, and there is no file ${quote(text)}`)
  }
  for (const dir of [process.cwd(), import.meta.dirname]) {
    try {
      return createRequire(join(dir, 'transport.js')).resolve(text)
    } catch {
      // It may be in the next one.
    }
  }
  throw new Error(`must be a pino transport, and there is no package ${quote(text)} here; write a file as ./NAME.ts`)
}

/**
 * Lines on their way to a transport.
 *
 * Working, from the start. Failed: after an error of the transport, or when its thread has ended; for good. Ended:
 * after `end`. In the last two every line is the fallback's.
 */
export class LogTransport {
  readonly #stream: ReturnType<typeof pino.transport>
  readonly #closed: Promise<void>
  readonly #fallback: (line: string) => void
  #working = true
  /** A failure was reported, or none is expected to be any more. */
  #silent = false
  /** Too many lines wait. */
  #full = false
  #lost = 0

  /**
   * @param path of its module
   * @param fallback takes lines that it no longer does
   * @param onFailure called once if it fails, with the reason
   */
  constructor (path: string, fallback: (line: string) => void, onFailure: (reason: string) => void) {
    this.#stream = pino.transport({ target: path })
    this.#fallback = fallback
    const report = (reason: string): void => {
      if (!this.#silent) onFailure(reason)
      this.#silent = true
    }
    this.#stream.on('error', ({ message }: Error) => {
      this.#working = false
      report(message)
    })
    this.#stream.on('drain', () => { this.#full = false })
    this.#closed = new Promise((resolve) => {
      this.#stream.on('close', () => {
        this.#working = false
        // The reason comes behind it, if there is one.
        setTimeout(() => report('its thread has ended'), reasonMs).unref()
        resolve()
      })
    })
  }

  /** Lines that it did not take. */
  get lost (): number {
    return this.#lost
  }

  /** Passes a line on; drops it if the thread has not taken 4 MiB of others yet. */
  write (line: string): void {
    if (!this.#working) this.#fallback(line)
    else if (this.#full) this.#lost++
    else this.#full = !this.#stream.write(line)
  }

  /** Gives what waits a moment to be written, and ends the thread, by force if it hangs. */
  async end (): Promise<void> {
    if (!this.#working) return
    this.#working = false
    this.#silent = true
    const flushed = new Promise<boolean>((resolve) => this.#stream.flush(() => resolve(true)))
    // Its own end would wait for a thread that hangs, and block this one meanwhile.
    if (await Promise.race([flushed, delay(flushTimeoutMs)]) === true) this.#stream.end()
    else await terminate(this.#stream)
    await Promise.race([this.#closed, delay(flushTimeoutMs)])
  }
}

/** thread-stream's types do not name its thread. */
async function terminate (stream: object): Promise<void> {
  if ('worker' in stream && stream.worker instanceof Worker) await stream.worker.terminate()
}
