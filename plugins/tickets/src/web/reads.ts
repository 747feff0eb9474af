// What routes read from the database beyond lines and places: receipts, and requests that got a 202 at any worker.
import type { Reads } from '../absent.ts'
import { runOf, type Run } from '../lines.ts'
import { isReceiptFor, receiptKey, receiptOf } from '../receipt.ts'
import { hasTables } from '../tables.ts'
import { isGenuine, type RequestId } from './request-id.ts'

/** A worker whose last batch is older than this is not known to live. */
const livingMs = 60_000

/** Numbers that a request got. */
export interface Found {
  readonly first: number
  readonly count: number
  readonly receipt: string
}

/** Whether a receipt is for a number. */
export function isReceipt (db: Reads, name: string, number: number, receipt: string): boolean {
  const run = runOf(db, name, number)
  const secret = secretOf(db, '')
  return run !== undefined && secret !== undefined && isReceiptFor(receipt, receiptKey(secret, run), number)
}

/**
 * Looks a request up that got a 202.
 * @returns its numbers; 'pending' if its worker may still have it; undefined if nothing is known of it
 */
export function findRequest (db: Reads, name: string, id: RequestId, now: number): Found | 'pending' | undefined {
  if (hasTables(db)) {
    const secret = id.kind === 'shared' ? secretOf(db, id.producer) : undefined
    if (id.kind === 'shared' && secret !== undefined && !isGenuine(id, secret)) return undefined
    const row = id.kind === 'keyed' ? findKeyed(db, id.request) : findShared(db, id)
    if (row !== undefined) return row.name === name ? foundIn(db, row, id) : undefined
  }
  const producer = db.get<{ seenAt: number }>('SELECT seen_at AS seenAt FROM producers WHERE producer = ?', id.producer)
  return producer !== undefined && producer.seenAt > now - livingMs ? 'pending' : undefined
}

type LogRow = Run & { readonly name: string, readonly request: number }

const columns = 'name, first, count, at, producer, seq, entry, request'

function findKeyed (db: Reads, request: number): LogRow | undefined {
  return db.get<LogRow>(`SELECT ${columns} FROM tickets_runs WHERE request = ? AND request < 0`, request)
}

/** The run that has the request's tickets; undefined if they are in none, as it was refused or is not stored. */
function findShared (db: Reads, { producer, place, count }: RequestId & { kind: 'shared' }): LogRow | undefined {
  const row = db.get<LogRow>(`
    SELECT ${columns} FROM tickets_runs WHERE producer = ? AND request > 0 AND request <= ?
    ORDER BY request DESC LIMIT 1`, producer, place)
  return row !== undefined && place + count <= row.request + row.count ? row : undefined
}

function foundIn (db: Reads, run: LogRow, id: RequestId): Found | undefined {
  const secret = secretOf(db, '')
  if (secret === undefined) return undefined
  const [first, count] = id.kind === 'keyed' ? [run.first, run.count] : [run.first + id.place - run.request, id.count]
  return { first, count, receipt: receiptOf(receiptKey(secret, run), first, count) }
}

function secretOf (db: Reads, owner: string): string | undefined {
  return db.get<{ secret: string }>('SELECT secret FROM tickets_secrets WHERE owner = ?', owner)?.secret
}
