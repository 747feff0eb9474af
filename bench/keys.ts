// Many distinct keys of 16 bytes, in an order that jumps about, as they come from clients.
import { encodeBatch, type Batch } from '@gearbox/protocol/batch.ts'

/** Prime to every power of ten: over so many keys, its steps come by each of them once before they repeat. */
export const stride = 611_953

export function keyOf (i: number, count: number): string {
  return `key-${String(i * stride % count).padStart(12, '0')}`
}

/** Encodes `count` keys, each with 1, into batches as a worker's flusher does. `seq` counts from `firstSeq`. */
export function encodeKeys (count: number, producer: string, firstSeq: number): Batch[] {
  const batches: Batch[] = []
  const drawn = { keys: 0 }
  const source = {
    nextSum: () => {
      if (drawn.keys === count) return undefined
      const bytes = Buffer.from(keyOf(drawn.keys++, count))
      return { bytes, start: 0, end: bytes.length, sum: 1 }
    },
    nextIdempotent: () => undefined,
  }
  while (drawn.keys < count) {
    batches.push(encodeBatch({
      producer,
      seq: firstSeq + batches.length,
      at: Date.now(),
      requests: 1,
      increments: count,
    }, source))
  }
  return batches
}
