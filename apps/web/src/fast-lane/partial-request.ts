// The beginning of a request on one connection, kept until the rest of it arrives.

/** *empty* (`bytes` is 0) until `begin`; then it holds a request until `release` empties it. */
export class PartialRequest {
  #pieces: Buffer[] = []
  #wholeBytes = 0
  /** Bytes that are held. */
  bytes = 0

  /** Whether all of the head is held; then only the body is incomplete. */
  get hasHead (): boolean {
    return this.#wholeBytes > 0
  }

  /**
   * Holds a beginning.
   * @param bytes at least one; they are not copied
   * @param wholeBytes how many the request will have; 0 while its head is not whole
   */
  begin (bytes: Buffer, wholeBytes: number): void {
    this.#pieces = [bytes]
    this.bytes = bytes.length
    this.#wholeBytes = wholeBytes
  }

  /** Holds more of it. @returns whether it may be whole: if it is, or if its head was not */
  add (bytes: Buffer): boolean {
    this.#pieces.push(bytes)
    this.bytes += bytes.length
    return this.bytes >= this.#wholeBytes
  }

  /** Returns all that is held, and holds nothing from then on. */
  release (): Buffer {
    const [first, ...others] = this.#pieces
    const bytes = first === undefined || others.length > 0 ? Buffer.concat(this.#pieces) : first
    this.#pieces = []
    this.bytes = this.#wholeBytes = 0
    return bytes
  }
}
