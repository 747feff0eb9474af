// Random numbers for test data: any seed gives the same ones again, on every machine.
import { createCipheriv, createHash, type Cipheriv } from 'node:crypto'

const blockBytes = 64 * 1024

/** A stream of random bytes: AES-256 in counter mode, its key the SHA-256 of the seed. */
export class Random {
  readonly #cipher: Cipheriv
  #block = Buffer.alloc(0)
  #at = 0

  constructor (seed: string) {
    this.#cipher = createCipheriv('aes-256-ctr', createHash('sha256').update(seed).digest(), Buffer.alloc(16))
  }

  bytes (count: number): Buffer {
    if (this.#at + count > this.#block.length) {
      this.#block = this.#cipher.update(Buffer.alloc(blockBytes))
      this.#at = 0
    }
    this.#at += count
    return this.#block.subarray(this.#at - count, this.#at)
  }

  /** From 0 up to, not including, 1: one of 2^32 numbers. */
  unit (): number {
    return this.bytes(4).readUInt32LE() / 2 ** 32
  }

  /** A whole number from min to max, each as likely: what would favour the low ones is drawn again. */
  integer (min: number, max: number): number {
    const span = max - min + 1
    const fair = 2 ** 32 - 2 ** 32 % span
    let drawn = this.bytes(4).readUInt32LE()
    while (drawn >= fair) drawn = this.bytes(4).readUInt32LE()
    return min + drawn % span
  }

  /** A version 4 UUID (RFC 9562). */
  uuid (): string {
    const bytes = Buffer.from(this.bytes(16))
    bytes[6] = bytes[6]! & 0x0f | 0x40
    bytes[8] = bytes[8]! & 0x3f | 0x80
    const hex = bytes.toString('hex')
    return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`
  }
}

/**
 * Ranks 0 to count − 1 after Zipf's law: rank k comes with a probability proportional to 1 / (k + 1)^exponent; an
 * exponent of 0 makes all ranks as likely. Sampled by inversion: a binary search of the cumulative distribution's table
 * (L. Devroye, Non-Uniform Random Variate Generation, Springer 1986, chapter III.2).
 */
export class Zipf {
  readonly #cumulative: Float64Array

  constructor (count: number, exponent: number) {
    this.#cumulative = new Float64Array(count)
    let sum = 0
    for (let k = 0; k < count; k++) {
      sum += (k + 1) ** -exponent
      this.#cumulative[k] = sum
    }
  }

  draw (random: Random): number {
    const sought = random.unit() * this.#cumulative.at(-1)!
    let [low, high] = [0, this.#cumulative.length - 1]
    while (low < high) {
      const middle = low + high >>> 1
      if (this.#cumulative[middle]! > sought) high = middle
      else low = middle + 1
    }
    return low
  }
}
