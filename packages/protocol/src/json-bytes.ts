// JSON as bytes, written without a string per key: of a million keys the strings would cost more than all the rest.
import type { Sum } from './int64.ts'

const [quote, backslash, colon, comma, minus, zero] = [0x22, 0x5c, 0x3a, 0x2c, 0x2d, 0x30]

/** Past what it has room for at first, this much more: the last entry before the end may be a long one. */
const spareBytes = 64 * 1024

/** No sum within 64 bits has more characters, sign included. */
const digitsMax = 20

/** A key, which is the bytes [start, end) in UTF-8, and its sum. */
export interface SumEntry {
  bytes: Buffer
  start: number
  end: number
  sum: Sum
}

/** A growing piece of JSON in memory that is used again for the next one. */
export class JsonBytes {
  readonly #firstBytes: number
  #bytes: Buffer
  #length = 0

  /** @param expectedBytes what is usually written; more takes new memory, which is not kept */
  constructor (expectedBytes: number) {
    this.#firstBytes = expectedBytes + spareBytes
    this.#bytes = Buffer.allocUnsafeSlow(this.#firstBytes)
  }

  /** Bytes written since the last clear. */
  get length (): number {
    return this.#length
  }

  /** Begins the next piece. */
  clear (): void {
    this.#length = 0
    if (this.#bytes.length > this.#firstBytes) this.#bytes = Buffer.allocUnsafeSlow(this.#firstBytes)
  }

  /** A copy of what was written, which later pieces do not change. */
  copy (): Buffer {
    const copy = Buffer.allocUnsafe(this.#length)
    this.#bytes.copy(copy, 0, 0, this.#length)
    return copy
  }

  /** Appends text that is JSON already. */
  text (text: string): void {
    this.#reserve(text.length * 3)
    this.#length += this.#bytes.write(text, this.#length)
  }

  /** Appends `"key":sum`, with a comma before it unless it is the first. */
  pair ({ bytes, start, end, sum }: Readonly<SumEntry>, first: boolean): void {
    this.#reserve(2 * (end - start) + digitsMax + 4)
    const json = this.#bytes
    let at = this.#length
    if (!first) json[at++] = comma
    json[at++] = quote
    for (let i = start; i < end; i++) {
      const byte = bytes[i]!
      if (byte === quote || byte === backslash) json[at++] = backslash
      json[at++] = byte
    }
    json[at++] = quote
    json[at++] = colon
    this.#length = at
    this.#integer(sum)
  }

  #integer (value: number | bigint): void {
    if (typeof value !== 'number' || value !== (value | 0)) {
      this.#length += this.#bytes.write(String(value), this.#length, 'latin1')
      return
    }
    const json = this.#bytes
    let left = value
    if (left < 0) {
      json[this.#length++] = minus
      left = -left
    }
    let digits = 1
    for (let power = 10; power <= left; power *= 10) digits++
    for (let at = this.#length + digits - 1; at >= this.#length; at--) {
      json[at] = zero + left % 10
      left = Math.trunc(left / 10)
    }
    this.#length += digits
  }

  #reserve (bytes: number): void {
    if (this.#length + bytes <= this.#bytes.length) return
    const larger = Buffer.allocUnsafeSlow(2 * (this.#length + bytes))
    this.#bytes.copy(larger, 0, 0, this.#length)
    this.#bytes = larger
  }
}
