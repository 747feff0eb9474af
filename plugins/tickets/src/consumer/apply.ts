// What the consumer does with an entry of this plugin: all of it in the transaction that records the entry, so that a
// number exists if and only if that commits.
import { refuse, type AppliedEntry, type Json } from '@gearbox/runtime/plugin.ts'
import { parseEntry, type AskedEntry, type GiveUpEntry, type LimitEntry, type LineState } from '../entry.ts'
import { isGivenUp, lineState, runOf, type Run } from '../lines.ts'
import { isReceiptFor, receiptKey } from '../receipt.ts'
import type { Context } from '../settings.ts'
import { issue, receiptSecret } from './issue.ts'
import { openLine, saveLine } from './line-rows.ts'
import { serve } from './serve.ts'

/** Applies one entry. @throws EntryRefusedError, which undoes all of it */
export function apply (entry: AppliedEntry, context: Context): Json {
  const data = parseEntry(entry.data)
  if ('issue' in data) return issue(data, entry, context)
  if ('serve' in data) return serve(data, context)
  if ('giveUp' in data) return giveUp(data, context)
  if ('limit' in data) return setLimit(data, context)
  return asked(data, context)
}

function giveUp ({ giveUp: name, number, receipt }: GiveUpEntry, { database, now }: Context): Json {
  const run = issuedBy(database, name, number)
  if (receipt !== undefined && !isReceiptFor(receipt, receiptKey(receiptSecret(database), run), number)) {
    throw refuse(403, 'GBX_WRONG_RECEIPT', `that is not the receipt of number ${number}`)
  }
  database.run(`
    INSERT INTO tickets_places(name, number, count, given_up_at) VALUES (?, ?, 1, ?)
    ON CONFLICT DO UPDATE SET given_up_at = coalesce(given_up_at, excluded.given_up_at)`, name, number, now)
  return null
}

function setLimit ({ limit: name, to }: LimitEntry, { database }: Context): LineState {
  const line = { ...openLine(database, name), limit: to }
  saveLine(database, name, line)
  return lineState(database, name, line)
}

/** Keeps a place that was called for another TICKETS_HOLD_S; not one that counts as given up by then. */
function asked ({ asked: name, number }: AskedEntry, { database, now, settings }: Context): Json {
  issuedBy(database, name, number)
  if (isGivenUp(database, name, number, now, settings.ticketsHoldS * 1000)) return null
  database.run(`
    INSERT INTO tickets_places(name, number, count, asked_at) VALUES (?, ?, 1, ?)
    ON CONFLICT DO UPDATE SET asked_at = excluded.asked_at`, name, number, now)
  return null
}

function issuedBy (database: Context['database'], name: string, number: number): Run {
  const run = runOf(database, name, number)
  if (run !== undefined) return run
  throw refuse(404, 'GBX_NO_TICKET', `number ${number} of this name was never issued`)
}
