// Tries once more to apply an entry of `rejected`. Called by the store within its transaction, for `npm run rejected`.
import { readHeader } from '@gearbox/protocol/batch.ts'
import type { BatchReader } from './batch-reader.ts'
import type { Connection } from './connection.ts'
import { sumsOf } from './plugins/applied-sums.ts'
import type { RejectedContent } from './rejections.ts'
import type { Entry } from './statements.ts'

/** A batch with entries of plugins that a program of the version before could not read, and filed. */
export function batchOfEntries ({ rejected }: Connection, id: bigint): Buffer | undefined {
  const { batch = null, producer = null } = rejected.read(id) ?? {}
  if (batch === null || producer !== null) return undefined
  const header = readHeader(batch)
  return typeof header !== 'string' && header.entries ? batch : undefined
}

/**
 * Applies an entry of `rejected` whole and removes it. To be called in a transaction. An idempotent request is counted
 * whatever its key says: whoever asks for this has read it.
 * @returns why it can't be applied now either; undefined: it is counted
 */
export function retryRejected (
  { rejected, idempotency, reader, totals, plugins }: Connection, id: bigint
): string | undefined {
  const row = rejected.read(id)
  if (row === undefined) return 'there is no such entry'
  const once = row.reason === 'other body' ? null : row.once
  if (once !== null && idempotency.has(once)) {
    rejected.delete(id)
    return 'its request came again and was counted then'
  }
  const entries = entriesOf(row, reader)
  if (entries === undefined) return 'the batch still can not be read'
  const newTotals = totals.plus(entries)
  if (typeof newTotals === 'string') return `the total of ${JSON.stringify(newTotals)} would leave 64 bits`
  totals.write(newTotals)
  if (plugins.followSums) {
    const now = Date.now()
    plugins.afterSums(sumsOf(entries, Math.min(Number(row.at), now)), now)
  }
  if (once !== null) idempotency.record(once, entries, Number(row.at))
  rejected.delete(id)
  return undefined
}

/** What an entry of `rejected` would add; undefined of a batch that can't be read. */
function entriesOf ({ key, value, exact, sums, batch }: RejectedContent, reader: BatchReader): Entry[] | undefined {
  if (sums !== null) return reader.entries(sums)
  if (exact !== null && key !== null) return [{ key, value: BigInt(exact) }]
  if (batch === null) return key === null || value === null ? undefined : [{ key, value }]
  const json = batch.toString()
  if (typeof readHeader(batch) === 'string' || !reader.isReadable(json)) return undefined
  return [...reader.sums(json), ...reader.idempotent(json).flatMap((request) => reader.entries(request.sums))]
}
