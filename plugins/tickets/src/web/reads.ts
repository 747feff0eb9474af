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
    const found = id.kind === 'keyed' ? findKeyed(db, name, id.request) : secret && findShared(db, name, id)
    if (found) return found
  }
  const producer = db.get<{ seenAt: number }>('SELECT seen_at AS seenAt FROM producers WHERE producer = ?', id.producer)
  return producer !== undefined && producer.seenAt > now - livingMs ? 'pending' : undefined
}

type LogRow = Run & { readonly request: number }

const columns = 'first, count, at, producer, seq, entry, request'

function findKeyed (db: Reads, name: string, request: number): Found | undefined {
  const row = db.get<LogRow>(
    `SELECT ${columns} FROM tickets_runs WHERE request = ? AND request < 0 AND name = ?`, request, name)
  return row === undefined ? undefined : foundIn(db, row, row.first, row.count)
}

function findShared (db: Reads, name: string, id: RequestId & { kind: 'shared' }): Found | undefined {
  const row = db.get<LogRow & { readonly name: string }>(`
    SELECT name, ${columns} FROM tickets_runs WHERE producer = ? AND request > 0 AND request <= ?
    ORDER BY request DESC LIMIT 1`, id.producer, id.place)
  if (row === undefined || row.name !== name || id.place + id.count > row.request + row.count) return undefined
  return foundIn(db, row, row.first + id.place - row.request, id.count)
}

function foundIn (db: Reads, run: Run, first: number, count: number): Found | undefined {
  const secret = secretOf(db, '')
  return secret === undefined ? undefined : { first, count, receipt: receiptOf(receiptKey(secret, run), first, count) }
}

function secretOf (db: Reads, owner: string): string | undefined {
  return db.get<{ secret: string }>('SELECT secret FROM tickets_secrets WHERE owner = ?', owner)?.secret
}
