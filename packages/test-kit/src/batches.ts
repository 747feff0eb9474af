// Batches for tests, encoded as a worker encodes them.
import { encodeBatch, encodeEntry } from '@gearbox/protocol/batch.ts'
import type { Sum } from '@gearbox/protocol/int64.ts'
import type { SumEntry } from '@gearbox/protocol/json-bytes.ts'
import type { PluginEntry } from '@gearbox/protocol/plugin-entry.ts'

/** What a test says of a batch. */
export interface Content {
  readonly producer?: string
  readonly seq?: number
  readonly at?: number
  readonly requests?: number
  readonly increments?: number
  readonly sums?: { readonly [key: string]: Sum }
  /** Everything in the sums was asked for at level `stored`, by replies that wait this long. */
  readonly storedWithinMs?: number | undefined
  readonly once?: ReadonlyArray<{
    readonly id: string,
    readonly at?: number,
    readonly storedWithinMs?: number |
    undefined,
    readonly sums: { readonly [key: string]: Sum }
  }>
  readonly entries?: readonly PluginEntry[]
}

/** A producer's UUID. */
export const producerA = 'aaaaaaaa-aaaa-4aaa-8aaa-aaaaaaaaaaaa'
/** Another producer's UUID. */
export const producerB = 'bbbbbbbb-bbbb-4bbb-8bbb-bbbbbbbbbbbb'

/** The bytes of a batch. What is not given is something ordinary. */
export function element ({
  producer = producerA,
  seq = 1,
  at = 1_700_000_000_000,
  requests,
  increments,
  storedWithinMs,
  sums = {},
  once = [],
  entries = [],
}: Content): Buffer {
  const pairs = Object.entries(sums)
  const requested = once.map(({ id, at: onceAt = at, storedWithinMs, sums }) =>
    ({ id, at: onceAt, storedWithinMs, sums: new Map(Object.entries(sums)) }))
  const counts = {
    requests: requests ?? 1,
    increments: increments ?? pairs.length,
    ...(storedWithinMs === undefined ? {} : { storedWithinMs }),
  }
  return encodeBatch({ producer, seq, at, ...counts },
    {
      nextSum: () => asEntry(pairs.shift()),
      nextIdempotent: () => requested.shift(),
      nextEntry: (_seq, i) => entries[i] === undefined ? undefined : encodeEntry(entries[i]),
    }).element
}

/** A pair as a source returns it. */
export function asEntry (pair: readonly [key: string, sum: Sum] | undefined): SumEntry | undefined {
  if (pair === undefined) return undefined
  const bytes = Buffer.from(pair[0])
  return { bytes, start: 0, end: bytes.length, sum: pair[1] }
}
