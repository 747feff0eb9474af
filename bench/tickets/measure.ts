// What is measured of tickets: the rows in rounds at 1,024 connections, latency at a steady rate, and a crowd of
// 100,000 connections. Everything takes its turn in every round.
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { runChild } from '../child.ts'
import { NotMeasuredError, type Host } from '../host.ts'
import { runRounds, type RoundOptions, type Row, type RowResult } from '../rounds.ts'
import { orderOf } from '../statistics.ts'
import { gather, type Crowd, type CrowdSize } from './crowd.ts'
import { checkedLog } from './log.ts'
import { asksText } from './servers.ts'
import type { Steady } from './steady.ts'

/** All that was measured. */
export interface Tickets {
  readonly rows: readonly RowResult[]
  readonly steady: readonly SteadyResult[]
  readonly crowd: CrowdResult
}

/** One server at the steady rate. */
export interface SteadyResult {
  readonly row: Row
  /** One per round; empty if there is a reason why not. */
  readonly rounds: readonly Steady[]
  readonly notMeasured: string | undefined
  readonly failed: string | undefined
}

/** A crowd, and how many of it were answered 202: without a number, but with where to ask for it. */
export interface LateCrowd extends Crowd {
  readonly late: number
}

/** The crowds, one per round each. */
export interface CrowdResult {
  readonly size: CrowdSize
  readonly gearbox: readonly LateCrowd[]
  readonly nginx: readonly LateCrowd[]
  readonly notMeasured: string | undefined
  /** Why none of them counts. */
  readonly failed: string | undefined
}

function row (server: string, label: string, more: Partial<Row> = {}): Row {
  return { name: server, label, server, connections: 1024, body: '', increments: 1, ...more }
}

/** What the other rows' tickets are compared with: one increment per request, stored. */
const stored = { body: 'foo=1' }

/** Gearbox's own rows come first. */
export const ticketRows: readonly Row[] = [
  row('tickets', 'tickets'),
  row('tickets', 'tickets, `Accept: text/plain`', { name: 'tickets-text', asks: asksText }),
  row('tickets-embedded', 'tickets, embedded'),
  row('stored', '`stored`, one increment per request', stored),
  row('stored-embedded', '`stored`, embedded', stored),
  row('tickets-fastcgi', 'nginx + FastCGI + memcached (logs nothing)'),
  row('tickets-tornado', 'Tornado, a counter in its memory (logs nothing)'),
  row('tickets-redis', 'Fastify + Redis `INCR` per request'),
  row('tickets-postgres', 'Fastify + PostgreSQL, a locked row per request'),
  row('tickets-sqlite', 'Fastify + SQLite, a transaction per request'),
]

/** Tickets per second. */
export const steadyRate = 1100

const crowdSize: CrowdSize = { requests: 100_000, atOnce: 10_000 }

/** Measures everything. What fails has its reason in the result, and the rest is measured all the same. */
export async function measureTickets (host: Host, options: RoundOptions): Promise<Tickets> {
  const rows = await runRounds(host, ticketRows, options)
  return { rows, steady: await measureSteady(host, options), crowd: await measureCrowd(host, options, crowdSize) }
}

async function measureSteady (host: Host, { rounds, seconds, say }: RoundOptions): Promise<SteadyResult[]> {
  const asked = ticketRows.filter(({ name }) => name.startsWith('tickets'))
  const found = new Map<Row, Steady[]>()
  const notMeasured = new Map<Row, string>()
  const failed = new Map<Row, string>()
  for (let round = 0; round < rounds; round++) {
    for (const row of orderOf(asked, round, rounds)) {
      if (notMeasured.has(row) || failed.has(row)) continue
      try {
        const steady = await askSteadily(host, row, steadyRate, seconds)
        found.set(row, [...found.get(row) ?? [], steady])
        say(`round ${round + 1}/${rounds}  ${row.name} at ${steadyRate}/s: p99 ${steady.p99.toFixed(1)} ms`)
      } catch (error) {
        const reasons = error instanceof NotMeasuredError ? notMeasured : failed
        reasons.set(row, reasonOf(error))
        say(`${reasons === failed ? 'FAILED ' : ''}${row.name} at ${steadyRate}/s: ${reasonOf(error)}`)
      }
    }
  }
  return asked.map((row) => ({
    row,
    rounds: failed.has(row) ? [] : found.get(row) ?? [],
    notMeasured: notMeasured.get(row),
    failed: failed.get(row),
  }))
}

/** Whether a row is Gearbox's own. */
export function isOwn ({ server }: Row): boolean {
  return server.startsWith('stored') || server === 'tickets' || server === 'tickets-embedded'
}

/** Takes tickets of a row's server at a rate. @throws Error if one is not answered, or a number comes twice */
export async function askSteadily (host: Host, row: Row, rate: number, seconds: number): Promise<Steady> {
  const server = await host.get(row.server)
  const { path, headers } = row.asks ?? server.asks!
  return await runChild(host.cores.load, 'tickets/steady.ts',
    [String(server.port), JSON.stringify(headers), path, String(rate), String(seconds)]) as Steady
}

/** Lets crowds come to Gearbox and to nginx in turn. It fails if the log does not have each number once. */
export async function measureCrowd (host: Host, { rounds, say }: Omit<RoundOptions, 'seconds'>,
  size: CrowdSize): Promise<CrowdResult> {
  const crowds = { gearbox: [] as LateCrowd[], nginx: [] as LateCrowd[] }
  const result = { size, ...crowds, notMeasured: undefined, failed: undefined }
  try {
    for (let round = 0; round < rounds; round++) {
      for (const name of orderOf(['gearbox', 'nginx'] as const, round, rounds)) {
        const server = await host.get(name === 'gearbox' ? 'tickets' : 'nginx')
        // A new line each time: its numbers are those of this crowd.
        const line = `crowd-${round}`
        const before = await server.counted?.()
        const gathered = await gather(host, server, `/tickets/${line}`, size)
        const late = ((await server.counted?.())?.in202 ?? 0) - (before?.in202 ?? 0)
        const crowd = { ...gathered, late }
        const { seconds, refused, broken } = crowd
        say(`round ${round + 1}/${rounds}  ${size.requests} connections, ${name}: ${seconds.toFixed(1)} s, ` +
          `${refused} refused, ${broken} broken, ${late} late`)
        if (name === 'gearbox') checkGiven(checkedLog(server.databasePath!, line), size, crowd)
        crowds[name].push(crowd)
      }
    }
  } catch (error) {
    if (error instanceof NotMeasuredError) return { ...result, notMeasured: error.message }
    say(`FAILED crowd: ${reasonOf(error)}`)
    return { ...result, failed: reasonOf(error) }
  }
  return result
}

/**
 * What was answered must have got a number; what broke, or is late, may have. So may requests that ab leaves unanswered
 * when it ends: it doesn't count a connection as started that is refused before it has written to it, starts another,
 * and ends with as many in flight as that makes too many, at most all that it has at once.
 * @throws Error
 */
function checkGiven (given: number, { requests, atOnce }: CrowdSize, { refused, broken, late }: LateCrowd): void {
  const unanswered = Math.min(refused, atOnce)
  if (given <= requests - refused + unanswered && given >= requests - refused - broken - late) return
  throw new Error(`of ${requests} requests ${refused} were refused and ${broken} broke, but ${given} got a number`)
}
