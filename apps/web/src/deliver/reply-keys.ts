// The keys of a request whose reply waits until it is stored, packed into one piece of memory: thousands of such
// replies with a thousand keys each cost V8's collector nothing, and their size is known. `admit` packs them; a verdict
// finds rejected keys among them, by their hashes first.
import type { Rejection } from '@gearbox/protocol/progress.ts'
import type { IncrementColumns } from '../accumulate/columns.ts'
import { hashOf } from '../accumulate/key-table.ts'

/** Before the keys' bytes: how many there are, and of each its hash and where it ends. */
const countBytes = 4
const entryBytes = 8

/** How many bytes `packKeys` needs for a request. */
export function packedBytes ({ length, starts, ends }: IncrementColumns): number {
  let bytes = countBytes + length * entryBytes
  for (let i = 0; i < length; i++) bytes += ends[i]! - starts[i]!
  return bytes
}

/** Copies a request's keys, in their order. The increments may change afterwards. */
export function packKeys (increments: IncrementColumns): Buffer {
  const { bytes, length, starts, ends, hashes } = increments
  const packed = Buffer.allocUnsafe(packedBytes(increments))
  packed.writeInt32LE(length)
  let end = countBytes + length * entryBytes
  for (let i = 0; i < length; i++) {
    bytes.copy(packed, end, starts[i], ends[i])
    end += ends[i]! - starts[i]!
    packed.writeInt32LE(hashes[i]!, countBytes + i * entryBytes)
    packed.writeInt32LE(end, countBytes + i * entryBytes + 4)
  }
  return packed
}

/** How many keys were packed. */
export function keyCount (packed: Buffer): number {
  return packed.readInt32LE()
}

interface RejectedKey {
  readonly bytes: Buffer
  readonly rejection: Rejection
}

/** Rejected keys, to be found among packed ones: each lookup takes the same time, however many were rejected. */
export class RejectedKeys {
  readonly #byHash = new Map<number, RejectedKey[]>()

  /** @param rejections those without a `key` are ignored */
  constructor (rejections: readonly Rejection[]) {
    for (const rejection of rejections) {
      if (rejection.key === undefined) continue
      const bytes = Buffer.from(rejection.key)
      const hash = hashOf(bytes, 0, bytes.length)
      const others = this.#byHash.get(hash)
      if (others === undefined) this.#byHash.set(hash, [{ bytes, rejection }])
      else others.push({ bytes, rejection })
    }
  }

  /** The rejections of any of these keys, each once. */
  among (packed: Buffer): Rejection[] {
    const found = new Set<Rejection>()
    const count = keyCount(packed)
    for (let i = 0, start = countBytes + count * entryBytes; i < count; i++) {
      const entry = countBytes + i * entryBytes
      const end = packed.readInt32LE(entry + 4)
      for (const { bytes, rejection } of this.#byHash.get(packed.readInt32LE(entry)) ?? none) {
        if (packed.compare(bytes, 0, bytes.length, start, end) === 0) found.add(rejection)
      }
      start = end
    }
    return [...found]
  }
}

const none: readonly RejectedKey[] = []
