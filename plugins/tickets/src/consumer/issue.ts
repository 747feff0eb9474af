// Issues numbers: the requests of an entry get the next ones of their name, in their order, as far as the limit allows.
import { refuse, type AppliedEntry, type PluginDatabase } from '@gearbox/runtime/plugin.ts'
import { Allotment } from '../allotment.ts'
import { entryTicketsMax, numberMax, type Issued, type IssueEntry } from '../entry.ts'
import type { Line } from '../lines.ts'
import { newSecret, receiptKey } from '../receipt.ts'
import type { Context } from '../settings.ts'
import { soldOut } from '../sold-out.ts'
import { openLine, saveLine } from './line-rows.ts'
import { overtakenMs } from './overtaken.ts'

/** The owner of the secret that receipts are made from. */
const receipts = ''

/** Numbers in a row, and how many tickets of the entry come before them. */
interface Stretch {
  readonly first: number
  readonly offset: number
  count: number
}

/** Applies an entry. @throws EntryRefusedError if the one request of an entry with an Idempotency-Key gets none */
export function issue (entry: IssueEntry, applied: AppliedEntry, { database, now }: Context): Issued {
  const { issue: name, requests, counts, request, secret } = entry
  const wanted = counts.reduce((sum, [, count]) => sum + count - 1, requests)
  if (wanted > entryTicketsMax) throw refuse(400, 'GBX_BAD_ENTRY', 'this entry asks for more tickets than one may')
  const line = openLine(database, name)
  const left = leftOf(line)
  if (secret === undefined && wanted > left) throw refuse(...soldOut(left))
  const allotment = new Allotment(line.issued + 1, left)
  const stretches = wanted <= left && entry.holders.length === 0
    ? [{ first: line.issued + 1, offset: 0, count: wanted }]
    : allot(database, entry, allotment)
  for (const { first, offset, count } of stretches) {
    database.run(`
      INSERT INTO tickets_runs(name, first, count, at, producer, seq, entry, request) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
    name, first, count, now, applied.producer, applied.seq, applied.entry, request < 0 ? request : request + offset)
  }
  const issued = stretches.reduce((sum, { count }) => sum + count, line.issued)
  saveLine(database, name, { ...line, issued })
  if (secret !== undefined) rememberSecret(database, applied.producer, secret)
  return {
    first: line.issued + 1,
    left,
    key: receiptKey(receiptSecret(database), applied),
    overtakenMs: issued === line.issued ? 0 : overtakenMs(name, entry.came),
  }
}

/** How many numbers of a line may still be issued. */
function leftOf ({ issued, limit }: Line): number {
  return Math.max(0, Math.min(limit ?? numberMax, numberMax) - issued)
}

/** The secret that receipts are made from; the first time it is made. */
export function receiptSecret (database: PluginDatabase): string {
  const row = database.get<{ secret: string }>('SELECT secret FROM tickets_secrets WHERE owner = ?', receipts)
  if (row !== undefined) return row.secret
  const secret = newSecret()
  rememberSecret(database, receipts, secret)
  return secret
}

function rememberSecret (database: PluginDatabase, owner: string, secret: string): void {
  database.run('INSERT INTO tickets_secrets(owner, secret) VALUES (?, ?) ON CONFLICT DO NOTHING', owner, secret)
}

/** Goes through the requests of an entry one by one. Keeps the holders of those that get numbers. */
function allot (
  database: PluginDatabase, { issue: name, requests, counts, holders }: IssueEntry, allotment: Allotment
): Stretch[] {
  const [countOf, holderOf] = [new Map(counts), new Map(holders)]
  const stretches: Stretch[] = []
  let offset = 0
  for (let i = 0; i < requests && allotment.left > 0; i++) {
    const count = countOf.get(i) ?? 1
    const first = allotment.take(count)
    if (first !== undefined) {
      const last = stretches.at(-1)
      if (last !== undefined && last.offset + last.count === offset) last.count += count
      else stretches.push({ first, offset, count })
      const holder = holderOf.get(i)
      if (holder !== undefined) keepHolder(database, name, first, count, holder)
    }
    offset += count
  }
  return stretches
}

function keepHolder (database: PluginDatabase, name: string, first: number, count: number, holder: string): void {
  database.run('INSERT INTO tickets_places(name, number, count, holder) VALUES (?, ?, ?, ?)',
    name, first, count, holder)
}
