// What was measured of tickets, as Markdown.
import { cpuShown, number, reach, scaled, shown, table, type Reach } from '../format.ts'
import type { Figures, RowResult } from '../rounds.ts'
import { interval, ratios, type Spread } from '../statistics.ts'
import { isOwn, steadyRate, type CrowdResult, type LateCrowd, type SteadyResult, type Tickets } from './measure.ts'

/** The default of COMMIT_INTERVAL_MS: an answer may wait for one commit. */
const commitIntervalMs = 20

const rate = (figures: Figures): number => figures.requestsPerSecond

/** Of all parts of a server. */
const cpuPerMillion = (figures: Figures): number => figures.cpuPerMillion + figures.besidePerMillion

/** One row's figure ÷ another's, round by round; undefined unless both were measured. */
function ratioOf ({ rows }: Tickets, above: string, below: string, figure: (figures: Figures) => number): Spread |
  undefined {
  const [a, b] = [above, below].map((name) => rows.find(({ row }) => row.name === name)?.rounds.map(figure) ?? [])
  return a!.length === 0 || b!.length === 0 ? undefined : interval(ratios(a!, b!))
}

function p99Of ({ steady }: Tickets, name: string): Spread | undefined {
  const found = steady.find(({ row }) => row.name === name)
  return found === undefined || found.rounds.length === 0 ? undefined : interval(found.rounds.map(({ p99 }) => p99))
}

/** What tickets are to reach, compared with what was measured. */
export function ticketReaches (tickets: Tickets): Reach[] {
  const { crowd } = tickets
  const { gearbox, nginx } = crowd
  const crowdLabel = `${number(crowd.size.requests)} tickets over as many connections`
  const isComplete = (crowd.notMeasured ?? crowd.failed) === undefined && gearbox.length > 0 && nginx.length > 0
  const limitMs = Math.max(15, commitIntervalMs)
  return [
    reach('tickets/s, Redis ÷ nginx + FastCGI + memcached', '≥', 2, '',
      ratioOf(tickets, 'tickets', 'tickets-fastcgi', rate)),
    reach("tickets/s, Redis ÷ PostgreSQL's locked row", '≥', 10, '',
      ratioOf(tickets, 'tickets', 'tickets-postgres', rate)),
    reach('CPU of all parts per ticket ÷ per `stored` increment, Redis', '≤', 1.5, '',
      ratioOf(tickets, 'tickets', 'stored', cpuPerMillion)),
    reach('CPU of all parts per ticket ÷ per `stored` increment, embedded', '≤', 1.5, '',
      ratioOf(tickets, 'tickets-embedded', 'stored-embedded', cpuPerMillion)),
    reach(`${crowdLabel}: failed`, '≤', 0, '',
      isComplete ? failedOf(gearbox) : undefined),
    reach(`${crowdLabel}: wall time ÷ nginx \`return 204\``, '≤', 1.5, '',
      isComplete ? interval(ratios(gearbox.map(secondsOf), nginx.map(secondsOf))) : undefined),
    reach(`p99 at ${number(steadyRate)} tickets/s, Redis (15 ms, or the commit interval)`, '≤', limitMs, ' ms',
      p99Of(tickets, 'tickets')),
    reach(`p99 at ${number(steadyRate)} tickets/s, embedded (15 ms, or the commit interval)`, '≤', limitMs, ' ms',
      p99Of(tickets, 'tickets-embedded')),
  ]
}

/** Requests that did not get what they asked for. */
function failedOf (crowds: readonly LateCrowd[]): number {
  return crowds.reduce((sum, { refused, broken, late }) => sum + refused + broken + late, 0)
}

function secondsOf ({ seconds }: LateCrowd): number {
  return seconds
}

/** Everything that failed, with the reason. */
export function ticketFailures ({ rows, steady, crowd }: Tickets): Array<readonly [string, string]> {
  return [
    ...rows.map(({ row, failed }) => [row.name, failed] as const),
    ...steady.map(({ row, failed }) => [`${row.name} at ${number(steadyRate)}/s`, failed] as const),
    ['crowd', crowd.failed] as const,
  ].flatMap(([name, failed]) => failed === undefined ? [] : [[name, failed] as const])
}

/** A section of the results. */
export function describeTickets (tickets: Tickets): string {
  const heads = ['', 'tickets/s', 'p50 ms', 'p99 ms', 'server CPU', 'CPU s per million, all parts',
    'tickets/s, Redis ÷ it', `p99 ms at ${number(steadyRate)}/s`, 'set up as']
  return `## Tickets

\`POST /tickets/bench\`: everybody who asks gets the next number. Load: wrk, closed-loop, 1,024 connections with
keep-alive. Gearbox runs with one worker, over a Redis that syncs its file at every write, or embedded. It answers once
a number is stored, with JSON and a receipt; the others send a line of text. Redis, PostgreSQL and SQLite sync every
number to the disk, too; memcached and Tornado lose all when they end. Servers with several processes were tried with
different numbers of them, on one core and on both, for a second each, and run as the quickest. The client of
PostgreSQL is the bench's own; it prepares its statements and uses the Unix socket. CPU is that of all processes of a
server. In brackets: the 95 % interval of the median; of fewer than six rounds, least and most. After each load the
numbers were counted; Gearbox's log has each from 1 on once.

${table(heads, tickets.rows.map((result) => line(tickets, result)))}

At ${number(steadyRate)}/s the load does not wait for answers: a latency counts from when its request was due, and no
number came twice.

${describeCrowd(tickets.crowd)}`
}

function line (tickets: Tickets, { row, rounds, notMeasured, failed, note }: RowResult): string[] {
  if (rounds.length === 0) return [row.label, whyNot({ notMeasured, failed }), '', '', '', '', '', '', '']
  const than = isOwn(row) ? undefined : ratioOf(tickets, 'tickets', row.name, rate)
  return [row.label, shown(interval(rounds.map(rate))), shown(interval(rounds.map(({ p50 }) => p50))),
    shown(interval(rounds.map(({ p99 }) => p99))), cpuShown(rounds), shown(interval(rounds.map(cpuPerMillion))),
    than === undefined ? '–' : than.median < 1 ? `**${shown(than)}**` : shown(than),
    steadyShown(tickets.steady.find((steady) => steady.row === row)), note ?? '']
}

function whyNot ({ notMeasured, failed }: Pick<SteadyResult, 'notMeasured' | 'failed'>): string {
  return failed === undefined ? `not measured: ${notMeasured ?? 'nobody asked'}` : `**failed**: ${failed}`
}

function steadyShown (steady: SteadyResult | undefined): string {
  if (steady === undefined) return '–'
  if (steady.rounds.length === 0) return whyNot(steady)
  return shown(interval(steady.rounds.map(({ p99 }) => p99)))
}

function describeCrowd ({ size, gearbox, nginx, notMeasured, failed }: CrowdResult): string {
  const title = `### A crowd of ${number(size.requests)} connections\n\n`
  if (notMeasured !== undefined || failed !== undefined) return title + whyNot({ notMeasured, failed })
  const heads = ['', 'seconds', 'requests/s', 'failed']
  const rows = ([['tickets', gearbox], ['nginx `return 204`', nginx]] as const).map(([label, crowds]) => {
    const seconds = interval(crowds.map(secondsOf))
    return [label, shown(seconds), shown(scaled(interval(crowds.map(({ seconds }) => 1 / seconds)), size.requests)),
      number(failedOf(crowds))]
  })
  const command = `ab -n ${size.requests} -c ${size.atOnce}`
  return `${title}\`${command}\`, a connection per request; a 202 counts as failed. Where nothing failed, the log ` +
    `has exactly the numbers 1 to ${number(size.requests)}, each once.\n\n${table(heads, rows)}`
}
