// Standard output for the log: a line is written at once or kept for a moment, and where that does not help it is
// dropped and counted. Nothing ever waits for it: a full disk, a pipe that nobody reads, a stopped terminal or a reader
// that left cost lines and nothing else.
import { closeSync, constants, fstatSync, openSync, write, writeSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'

/** Bytes of lines that wait for a reader who is slow: as many as a pipe holds, some hundred lines. */
const waitingBytesMax = 64 * 1024

/** An output that takes nothing is tried again after this long. */
const retryMs = 50

/** A process that ends gives its last lines this long. */
const flushTimeoutMs = 500

const newline = Buffer.from('\n')

/** What a write can do to its thread: nothing; take as long as the disk does; or stop it for ever. */
export type Blocking = 'never' | 'file' | 'for ever'

/**
 * Lines on their way to a file descriptor.
 *
 * Idle: nothing waits. Writing: one of libuv's threads writes a line, as it could block. Waiting: the descriptor took
 * nothing (EAGAIN); the timer or the next line tries again. From any of them, an error other than EAGAIN drops all
 * lines that wait, counts them, and leads back to idle: the next line finds out how things are.
 */
export class LogOutput {
  readonly #fd: number
  readonly #blocking: Blocking
  readonly #lines: Buffer[] = []
  #bytes = 0
  /** Bytes of the first line that are written. */
  #written = 0
  /** A line was dropped in its middle: what comes next begins on a line of its own. */
  #torn = false
  #writing = false
  #timer: NodeJS.Timeout | undefined
  #lost = 0
  #lostReported = 0
  #onEnd: (() => void) | undefined
  #onRecovered: ((lost: number) => void) | undefined

  constructor (fd: number, blocking: Blocking) {
    this.#fd = fd
    this.#blocking = blocking
  }

  /** Whether one of libuv's threads is at work: a process that exits would wait for it. */
  get writing (): boolean {
    return this.#writing
  }

  /** Lines that were dropped. */
  get lost (): number {
    return this.#lost
  }

  /** Sets what to do when lines are taken again after some were lost, and what to do before the last flush. */
  on (recovered: (lost: number) => void, end: () => void): void {
    this.#onRecovered = recovered
    this.#onEnd = end
  }

  /** Writes a line, its line end included, now or soon; or drops it. Never blocks and never throws. */
  write (line: string): void {
    const bytes = Buffer.from(line)
    if (this.#lines.length > 0 && this.#bytes + bytes.length > waitingBytesMax) {
      this.#lost++
      return
    }
    this.#lines.push(bytes)
    this.#bytes += bytes.length
    this.#pump()
  }

  /** Gives what waits a moment to be written. */
  async flush (): Promise<void> {
    this.#onEnd?.()
    const deadline = performance.now() + flushTimeoutMs
    while (this.#lines.length > 0 && performance.now() < deadline) {
      this.#pump()
      await delay(1)
    }
  }

  /** Writes what can be written now; for a process that ends in this moment. */
  flushNow (): void {
    if (this.#writing) {
      if (this.#blocking === 'for ever') return
      // It is as good as written: libuv's threads end before the process does.
      this.#writing = false
      this.#shift()
    }
    while (this.#lines.length > 0 && this.#writeNow());
  }

  #pump (): void {
    if (this.#writing) return
    if (this.#blocking !== 'never') this.#writeSoon()
    else while (this.#lines.length > 0 && this.#writeNow());
  }

  /** @returns whether to go on with the next */
  #writeNow (): boolean {
    const bytes = this.#next()
    try {
      this.#wrote(writeSync(this.#fd, bytes))
      return true
    } catch (error) {
      this.#failed(error)
      return false
    }
  }

  #writeSoon (): void {
    if (this.#lines.length === 0) return
    const bytes = this.#next()
    this.#writing = true
    write(this.#fd, bytes, (error, written) => {
      if (!this.#writing) return
      this.#writing = false
      if (error === null) this.#wrote(written)
      else this.#failed(error)
      this.#pump()
    })
  }

  #next (): Buffer {
    const rest = this.#lines[0]!.subarray(this.#written)
    return this.#torn ? Buffer.concat([newline, rest]) : rest
  }

  #wrote (written: number): void {
    if (written === 0) return
    if (this.#torn) written--
    this.#torn = false
    this.#written += written
    if (this.#written < this.#lines[0]!.length) return
    this.#shift()
    if (this.#lost === this.#lostReported) return
    const lost = this.#lost - this.#lostReported
    this.#lostReported = this.#lost
    this.#onRecovered?.(lost)
  }

  #failed (error: unknown): void {
    const code = error instanceof Error && 'code' in error ? error.code : undefined
    if (code === 'EAGAIN') {
      this.#timer ??= setTimeout(() => {
        this.#timer = undefined
        this.#pump()
      }, retryMs).unref()
      return
    }
    this.#torn ||= this.#written > 0
    this.#lost += this.#lines.length
    while (this.#lines.length > 0) this.#shift()
  }

  #shift (): void {
    this.#bytes -= this.#lines.shift()?.length ?? 0
    this.#written = 0
  }
}

let standard: LogOutput | undefined

/** Standard output for the log of this process; made at the first call. */
export function standardOutput (): LogOutput {
  if (standard !== undefined) return standard
  standard = open()
  const output = standard
  process.on('exit', () => output.flushNow())
  return standard
}

/** Another output of the log, besides standard output. */
export interface OtherOutput {
  /** Lines that it did not take. */
  readonly lost: number
  /** Gives what waits a moment to be written. */
  end (): Promise<void>
}

const others: OtherOutput[] = []

/** Counts another output's lost lines, and ends it before the process ends. */
export function addOutput (output: OtherOutput): void {
  others.push(output)
}

/** Lines of this process's log that its output did not take. */
export function logLinesLost (): number {
  return others.reduce((lost, output) => lost + output.lost, standard?.lost ?? 0)
}

/** Gives this process's last log lines a moment to be written. */
export async function flushLog (): Promise<void> {
  await standard?.flush()
  if (others.length === 0) return
  for (const output of others) await output.end()
  // What came to standard output because one of them had failed.
  await standard?.flush()
}

/** Ends the process at once, also where a write to standard output is stuck. */
export function leave (code: number): never {
  // process.exit waits for libuv's threads. Another program in this process's place ends them.
  if (standard?.writing === true) process.execve?.('/bin/sh', ['sh', '-c', `exit ${code}`], {})
  process.exit(code)
}

/**
 * A write to a pipe or a terminal can block for ever. O_NONBLOCK on what is shared with other processes would be set
 * for all of them, and each of them can unset it (libuv does so with every child). So they are opened once more, for
 * this process alone. A socket can't be, nor can what belongs to another user.
 */
function open (): LogOutput {
  const fd = 1
  const stat = fstatSync(fd)
  if (stat.isFile()) return new LogOutput(fd, 'file')
  try {
    const own = openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
    const same = fstatSync(own)
    if (same.ino === stat.ino && same.dev === stat.dev) return new LogOutput(own, 'never')
    closeSync(own)
  } catch {}
  return new LogOutput(fd, 'for ever')
}
