// The beginning of a request on one connection, kept until the rest of it arrives.

/** Either *empty* (`bytes` is 0), or *begun*: from `begin`, which needs it to be empty, until `release`. */
export class PartialRequest {
  #pieces: Buffer[] = []
  #wholeBytes = 0
  /** Bytes that have arrived; 0 if it is empty. */
  bytes = 0

  /** Whether the head is complete; then only the body is not. */
  get hasHead (): boolean {
    return this.#wholeBytes > 0
  }

  /**
   * Keeps a beginning.
   * @param bytes at least one; they are not copied
   * @param wholeBytes how many the request will have; 0 while its head is incomplete
   */
  begin (bytes: Buffer, wholeBytes: number): void {
    this.#pieces = [bytes]
    this.bytes = bytes.length
    this.#wholeBytes = wholeBytes
  }

  /** Keeps more of it. @returns whether it should be matched again: it is complete, or its head was not */
  add (bytes: Buffer): boolean {
    this.#pieces.push(bytes)
    this.bytes += bytes.length
    return this.bytes >= this.#wholeBytes
  }

  /** Empties it. @returns all that it had */
  release (): Buffer {
    const [first, ...others] = this.#pieces
    const bytes = first === undefined || others.length > 0 ? Buffer.concat(this.#pieces) : first
    this.#pieces = []
    this.bytes = this.#wholeBytes = 0
    return bytes
  }
}
