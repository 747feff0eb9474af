// What tickets send to the consumer, and what comes back, both as JSON. Web workers write entries and read results; the
// consumer does the opposite.
import { refuse, type Json } from '@gearbox/runtime/plugin.ts'

/** Tickets that one request may ask for. */
export const countMax = 1000

/** Tickets of one entry, at most: their places in it are numbers below this. */
export const entryTicketsMax = 2 ** 20

/** Numbers are JSON integers that every client reads exactly. */
export const numberMax = Number.MAX_SAFE_INTEGER

/** Asks for numbers: for all requests of one name that waited in a worker, in their order. */
export type IssueEntry = {
  readonly issue: string
  readonly requests: number
  /** Those that want more than one ticket: [index of the request, how many]. */
  readonly counts: ReadonlyArray<readonly [number, number]>
  /** [index of the request, its holder] */
  readonly holders: ReadonlyArray<readonly [number, string]>
  /** Of the run in the log. */
  readonly request: number
  /** The worker's secret, for addresses at which requests are asked for. Not with an Idempotency-Key. */
  readonly secret?: string
  /** When the first and the last of the requests came, Unix ms. Not with an Idempotency-Key. */
  readonly came?: readonly [number, number]
}

/** Calls the next `by` numbers that wait, or all up to `to`. */
export type ServeEntry = { readonly serve: string } & ({ readonly by: number } | { readonly to: number })

/** Gives a number up. Without a receipt the worker has checked that the caller may. */
export type GiveUpEntry = { readonly giveUp: string, readonly number: number, readonly receipt?: string }

/** Sets or lifts the last number that may be issued. */
export type LimitEntry = { readonly limit: string, readonly to: number | null }

/** Says that whoever has a number's receipt asked for it. */
export type AskedEntry = { readonly asked: string, readonly number: number }

/** All that `apply` gets. */
export type TicketEntry = IssueEntry | ServeEntry | GiveUpEntry | LimitEntry | AskedEntry

/** What an IssueEntry came to. Which request got which number follows from the first number and what was left. */
export type Issued = {
  readonly first: number
  /** How many could be issued before: less than were asked for if some were refused. */
  readonly left: number
  /** What receipts of this entry are made from. */
  readonly key: string
  /** How long a request of this entry was there when one came to another worker that got a smaller number, in ms. */
  readonly overtakenMs: number
}

/** What a ServeEntry came to. */
export type Served = {
  /** The number that was called last before. */
  readonly from: number
  readonly serving: number
  /** How many were called. */
  readonly called: number
  /** Which: from `from` on, how many are skipped, called, skipped, called … As many as a result has room for. */
  readonly steps: readonly number[]
}

/** A line, as `GET /tickets/NAME` shows it. */
export type LineState = {
  readonly name: string
  readonly issued: number
  readonly serving: number
  readonly waiting: number
  readonly limit: number | null
}

/** Reads an entry. @throws EntryRefusedError (400) for one that no worker of this version sends */
export function parseEntry (data: Json): TicketEntry {
  if (isObject(data)) {
    if ('issue' in data && isIssue(data)) return data
    if ('serve' in data && isServe(data)) return data
    if ('giveUp' in data && isGiveUp(data)) return data
    if ('limit' in data && isLimit(data)) return data
    if ('asked' in data && isAsked(data)) return data
  }
  throw refuse(400, 'GBX_BAD_ENTRY', 'this consumer does not know what to do with that; is it older than its workers?')
}

/** Reads the result of an IssueEntry. @throws Error for another */
export function parseIssued (result: Json): Issued {
  if (!isObject(result) || !isCount(result.first) || !isCount(result.left) || typeof result.key !== 'string' ||
    !isCount(result.overtakenMs)) throw new Error('the result of an entry for tickets can not be read')
  const { first, left, key, overtakenMs } = result
  return { first, left, key, overtakenMs }
}

/** Reads the result of a ServeEntry. @throws Error for another */
export function parseServed (result: Json): Served {
  if (!isObject(result) || !isCount(result.from) || !isCount(result.serving) || !isCount(result.called) ||
    !isCounts(result.steps)) throw new Error('the result of an entry that calls numbers can not be read')
  const { from, serving, called, steps } = result
  return { from, serving, called, steps }
}

type JsonObject = { readonly [name: string]: Json }

function isObject (value: Json | undefined): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Not an empty one: that is no line's, see tables.ts. */
function isName (value: Json | undefined): value is string {
  return typeof value === 'string' && value !== ''
}

function isCount (value: Json | undefined): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0
}

function isCounts (value: Json | undefined): value is readonly number[] {
  return Array.isArray(value) && value.every(isCount)
}

function isIssue (data: JsonObject): data is IssueEntry {
  const { issue, requests, counts, holders, request, secret, came } = data
  if (!isName(issue) || !isCount(requests) || requests === 0 || requests > entryTicketsMax) return false
  const isPair = (value: Json): value is readonly [number, Json] =>
    Array.isArray(value) && value.length === 2 && isCount(value[0]) && value[0] < requests
  return Array.isArray(counts) && counts.every((pair) => isPair(pair) && isCount(pair[1]) && pair[1] <= countMax) &&
    Array.isArray(holders) && holders.every((pair) => isPair(pair) && typeof pair[1] === 'string') &&
    Number.isSafeInteger(request) && (secret === undefined || typeof secret === 'string') &&
    (came === undefined || (isCounts(came) && came.length === 2))
}

function isServe (data: JsonObject): data is ServeEntry {
  return isName(data.serve) && (isCount(data.by) || isCount(data.to))
}

function isGiveUp (data: JsonObject): data is GiveUpEntry {
  const { giveUp, number, receipt } = data
  return isName(giveUp) && isCount(number) && (receipt === undefined || typeof receipt === 'string')
}

function isLimit (data: JsonObject): data is LimitEntry {
  const { limit, to } = data
  return isName(limit) && (to === null || isCount(to))
}

function isAsked (data: JsonObject): data is AskedEntry {
  const { asked, number } = data
  return isName(asked) && isCount(number)
}
