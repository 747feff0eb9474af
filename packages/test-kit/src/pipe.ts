// A client's connection without a socket: what the server side reads is put in piece by piece, what it writes is kept.
import { Duplex } from 'node:stream'

/** The server's side of it, with what an HTTP server calls on a socket. */
export class Pipe extends Duplex {
  readonly #written: Buffer[] = []
  bytesWritten = 0
  onWrite = (): void => {}

  /** All that the server has written. */
  get received (): string {
    return Buffer.concat(this.#written).toString('latin1')
  }

  override _read (): void {}

  override _write (chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.#written.push(chunk)
    this.bytesWritten += chunk.length
    this.onWrite()
    done()
  }

  destroySoon (): void {
    if (this.writable) this.end()
    if (this.writableFinished) this.destroy()
    else this.once('finish', () => this.destroy())
  }
}
