// The pipe that the product's log goes into, as `npm start | something` has one: read to the end, or not for a while.
import { spawnSync } from 'node:child_process'
import { closeSync, constants, openSync, writeSync } from 'node:fs'
import { Socket } from 'node:net'

export class LogPipe {
  /** The end that the product writes to. */
  readonly fd: number
  readonly #path: string
  readonly #read: (text: string) => void
  #reader: Socket

  /** @param read called with what arrives */
  constructor (path: string, read: (text: string) => void) {
    if (spawnSync('mkfifo', [path]).status !== 0) throw new Error(`no pipe ${path}`)
    this.#path = path
    this.#read = read
    this.#reader = this.#open()
    this.fd = openSync(path, constants.O_WRONLY)
  }

  /** Reads no more, and leaves no room: from here on every line finds the pipe full. */
  stopReading (): void {
    this.#reader.pause()
    const filler = openSync(this.#path, constants.O_WRONLY | constants.O_NONBLOCK)
    try {
      for (const bytes of [4096, 1]) {
        try {
          for (;;) writeSync(filler, Buffer.alloc(bytes, '\n'))
        } catch (error) {
          if (!(error instanceof Error && 'code' in error && error.code === 'EAGAIN')) throw error
        }
      }
    } finally {
      closeSync(filler)
    }
  }

  /** The reader leaves: from here on every line finds the pipe broken. */
  leave (): void {
    this.#reader.destroy()
  }

  /** Reads on, whatever was before. */
  readOn (): void {
    if (this.#reader.destroyed) this.#reader = this.#open()
    this.#reader.resume()
  }

  close (): void {
    this.#reader.destroy()
    closeSync(this.fd)
  }

  #open (): Socket {
    const reader = new Socket({
      fd: openSync(this.#path, constants.O_RDONLY | constants.O_NONBLOCK),
      readable: true,
      writable: false,
    })
    reader.setEncoding('utf8').on('data', (text) => this.#read(String(text))).on('error', () => {})
    return reader
  }
}
