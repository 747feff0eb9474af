// What was measured, as Markdown: the table of what to reach, the ratios, and every figure behind them.
import { describePairs, pairReaches, type Pairs } from './alternating.ts'
import type { ConsumerRate } from './consumer-rate.ts'
import { cpuShown, fullShare, number, reach, scaled, shown, table, type Reach } from './format.ts'
import type { Lag } from './lag.ts'
import { idleMs, type Pending } from './pending.ts'
import type { Figures, RowResult } from './rounds.ts'
import { ratio, spread, type Spread } from './statistics.ts'
import type { Steps } from './steps.ts'
import type { Tickets } from './tickets/measure.ts'
import { describeTickets, ticketFailures, ticketReaches } from './tickets/report.ts'

export interface Results {
  readonly rows: readonly RowResult[]
  readonly consumer: readonly ConsumerRate[] | undefined
  readonly lags: readonly Lag[] | undefined
  readonly pending: readonly Pending[] | undefined
  readonly steps: Steps | undefined
  readonly tickets: Tickets | undefined
  readonly plugins: readonly Pairs[] | undefined
  /** Measurements other than rows that failed, by name. */
  readonly failures: ReadonlyMap<string, string>
}

export interface Circumstances {
  readonly machine: string
  readonly loadAverage: number
  readonly versions: string
  readonly date: string
  readonly command: string
  readonly pinning: string
  readonly rounds: number
  readonly seconds: number
}

/** Rows of Gearbox itself; all others are what it is compared with. */
const own = /^(memory|queued|stored)/

const mebi = 2 ** 20

function figuresOf ({ rows }: Results, name: string): readonly Figures[] {
  return rows.find(({ row }) => row.name === name)?.rounds ?? []
}

function column (results: Results, name: string, figure: keyof Figures): number[] {
  return figuresOf(results, name).map((figures) => figures[figure])
}

/** One row's figure ÷ another's, round by round; undefined unless both were measured. */
function ratioOf (results: Results, above: string, below: string, figure: keyof Figures, belowFigure = figure): Spread |
  undefined {
  const [a, b] = [column(results, above, figure), column(results, below, belowFigure)]
  return a.length === 0 || b.length === 0 ? undefined : ratio(a, b)
}

/** What Gearbox is to reach, compared with what was measured. */
export function whatToReach (results: Results): Reach[] {
  const rate = results.consumer?.[0]
  const lag = results.lags?.find(({ rate }) => rate === 9000)
  const full = memoryOf(results.pending ?? []).at(-1)
  const pauses = results.pending?.map(({ filling, flushing }) => Math.max(filling.wallMs, flushing.wallMs))
  const than = (name: string): Spread | undefined => ratioOf(results, 'queued', name, 'requestsPerSecond')
  return [
    reach('`queued` ÷ bare Fastify, 256 connections', '≥', 1.4, '', than('fastify')),
    reach('`queued` ÷ nginx `return 204`', '≥', 0.8, '', than('nginx')),
    reach('`queued` ÷ webdis `INCRBY`', '≥', 2, '', than('webdis')),
    reach('`queued` ÷ Fastify + SQLite upsert a request', '≥', 10, '', than('fastify-sqlite')),
    reach('increments/s with 100 pairs a body ÷ requests/s with one pair', '≥', 30, '',
      ratioOf(results, 'queued-100-pairs', 'queued', 'incrementsPerSecond', 'requestsPerSecond')),
    reach('consumer, 1,000 keys a transaction', '≥', 1.2, ' M rows/s',
      rate === undefined ? undefined : scaled(spread(rate.updated), 1e-6)),
    reach('lag p99 at 9,000 requests/s, Redis mode', '≤', 60, ' ms', lag?.p99),
    reach('`queued` latency p99 ÷ `memory` latency p99, 64 connections', '≤', 1.5, '',
      ratioOf(results, 'queued-64', 'memory-64', 'p99')),
    reach('a worker with 1,000,000 pending keys of 16 bytes', '≤', 250, ' MB',
      full === undefined ? undefined : scaled(full.bytes, 1e-6)),
    reach('longest event-loop stall while filling and flushing those', '≤', 20, ' ms',
      pauses === undefined ? undefined : spread(pauses)),
    ...results.tickets === undefined ? [] : ticketReaches(results.tickets),
    ...results.plugins === undefined ? [] : pairReaches(results.plugins),
  ]
}

/** The whole of RESULTS.md. */
export function describe (results: Results, circumstances: Circumstances, plotName: string): string {
  const { machine, loadAverage, versions, date, command, pinning, rounds, seconds } = circumstances
  return `# Results of the bench

${date}, \`${command}\`: ${rounds} ${rounds === 1 ? 'round' : 'rounds'} of ${seconds} s a row.

- Machine: ${machine}; load average before the start: ${loadAverage.toFixed(2)}
- Versions: ${versions}
- ${pinning}
- Load: wrk, one thread, closed-loop, POST of \`foo=1\`, 256 connections where nothing else is said. wrk itself can be
  the limit: where the server used less than ${fullShare * 100} % of its core while the load's core was full, the row
  is marked *load-bound*, and the CPU time of a request says more than the rate. Where neither core was full, it
  *waits*: for its disk or a timer.
- Every server stays up for all rounds. In each round each gets the load once, in an order that turns. A figure is the
  median of the rounds, with (least–most) in brackets. A ratio is taken within each round first.
- After every run the total was compared with what was answered; Gearbox's own is exactly what it accepted. Express and
  nginx sum nothing.
- \`queued\` and \`stored\` go through a Redis with \`appendfsync always\`, except where it says *embedded*.

${[...sectionsOf(results, plotName)].join('\n\n')}
`
}

/** A section per kind of measurement, where there is any. */
function * sectionsOf (results: Results, plotName: string): Generator<string> {
  const { rows, tickets, plugins } = results
  const reaches = whatToReach(results).map(({ figure, reach, measured, reached }) =>
    [figure, reach, measured, reached === undefined ? '–' : reached ? 'reached' : '**not reached**'])
  yield `${failuresOf(results)}## What to reach\n\n${table(['figure', 'reach', 'measured', ''], reaches)}`
  if (rows.length > 0) {
    yield '## Against others\n\nAbove 1, Gearbox answers more requests per second, or uses less CPU for one; below ' +
      `1 (bold), the other one does.\n\n${againstOthers(results)}`
    const heads = ['', 'requests/s', 'increments/s', 'p50 ms', 'p99 ms', 'server CPU', 'CPU s per million increments',
      'others']
    yield `## Gearbox\n\n${table(heads, rows.filter(isOwn).map(ownLine))}\n\n` +
      '*Others* is the CPU of consumer, parent and Redis for a million increments, until all was stored.'
  }
  const tables = [consumerTable(results), lagTable(results), pendingTables(results)].filter((text) => text !== '')
  if (rows.length > 0 || tables.length > 0) {
    const shows = "throughput and latency by connections, the consumer's rows per second, and memory by distinct keys"
    const plot = `![${shows}](${plotName})`
    yield ['## As work grows', plot, ...tables].join('\n\n')
  }
  if (tickets !== undefined) yield describeTickets(tickets)
  if (plugins !== undefined) yield describePairs(plugins)
}

function isOwn ({ row }: RowResult): boolean {
  return own.test(row.name)
}

/** Everything that failed, with the reason. What this machine lacks did not fail. */
export function failuresIn ({ rows, tickets, failures }: Results): Array<readonly [string, string]> {
  return [
    ...rows.flatMap(({ row, failed }) => failed === undefined ? [] : [[row.name, failed] as const]),
    ...tickets === undefined ? [] : ticketFailures(tickets),
    ...failures,
  ]
}

function failuresOf (results: Results): string {
  const all = failuresIn(results)
  return all.length === 0
    ? ''
    : `**Failed, and so without figures:**\n\n${all.map(([name, why]) => `- ${name}: ${why}`).join('\n')}\n\n`
}

function againstOthers (results: Results): string {
  return table(['against', 'requests/s', 'p99 ms', 'server CPU', 'CPU s a million', '`queued` ÷ it', '`memory` ÷ it',
    '`stored` ÷ it', "its CPU a request ÷ `queued`'s"],
  results.rows.filter((result) => !isOwn(result)).map((result) => {
    const { row, rounds } = result
    if (rounds.length === 0) return [row.label, whyNot(result), '', '', '', '', '', '', '']
    const than = (name: string): string => {
      const measured = ratioOf(results, name, row.name, 'requestsPerSecond')
      return measured === undefined ? '–' : measured.median < 1 ? `**${shown(measured)}**` : shown(measured)
    }
    const cpu = ratioOf(results, row.name, 'queued', 'cpuPerMillionRequests')
    return [row.label, of(rounds, 'requestsPerSecond'), of(rounds, 'p99'), cpuShown(rounds),
      of(rounds, 'cpuPerMillionRequests'), than('queued'), than('memory'), than('stored'),
      cpu === undefined ? '–' : cpu.median < 1 ? `**${shown(cpu)}**` : shown(cpu)]
  }))
}

function ownLine (result: RowResult): string[] {
  const { row, rounds } = result
  if (rounds.length === 0) return [row.label, whyNot(result), '', '', '', '', '', '']
  return [row.label, of(rounds, 'requestsPerSecond'), of(rounds, 'incrementsPerSecond'), of(rounds, 'p50'),
    of(rounds, 'p99'), cpuShown(rounds), of(rounds, 'cpuPerMillion'), of(rounds, 'besidePerMillion')]
}

function whyNot ({ notMeasured, failed }: RowResult): string {
  return failed === undefined ? `not measured: ${notMeasured ?? 'nobody asked'}` : `**failed**: ${failed}`
}

function consumerTable ({ consumer }: Results): string {
  if (consumer === undefined) return ''
  const heads = ['distinct keys', 'rows per transaction', 'existing keys', 'new keys']
  const rows = consumer.map(({ keys, rowsPerTransaction, updated, inserted }) =>
    [number(keys), number(rowsPerTransaction), shown(spread(updated)), number(inserted)])
  return '### Consumer\n\nRows per second that its `Store` commits to a real file, keys of 16 bytes.\n\n' +
    table(heads, rows)
}

function lagTable ({ lags }: Results): string {
  if (lags === undefined) return ''
  const heads = ['requests/s', 'answered/s', 'probes', 'p50 ms', 'p99 ms', 'most ms', 'resolution ms']
  const rows = lags.map((lag) =>
    [lag.rate, lag.answeredPerSecond, lag.probes, lag.p50, lag.p99, lag.most, lag.resolution].map(number))
  return '### Lag\n\nFrom POST to visible in SQLite, Redis mode, a steady load from 64 connections; another ' +
    `connection looks for it about every millisecond.\n\n${table(heads, rows)}`
}

/** A worker's memory by pending keys, over all runs. */
export function memoryOf (runs: readonly Pending[]): Array<{ readonly keys: number, readonly bytes: Spread }> {
  return runs[0]?.memory.map(({ keys }, i) => ({ keys, bytes: spread(runs.map(({ memory }) => memory[i]!.bytes)) })) ??
    []
}

function pendingTables ({ pending, steps }: Results): string {
  const parts: string[] = []
  if (pending !== undefined) {
    const most = scaled(spread(pending.map(({ mostBytes }) => mostBytes)), 1 / mebi)
    const pauses = (['filling', 'flushing', 'idle'] as const).map((phase) =>
      (['wallMs', 'cpuMs'] as const).map((time) => shown(spread(pending.map((run) => run[phase][time])))))
    const memory = memoryOf(pending).map(({ keys, bytes }) => [number(keys), shown(scaled(bytes, 1 / mebi))])
    const pauseRows = [
      ['coming in', ...pauses[0]!], ['leaving', ...pauses[1]!], [`idle for ${idleMs / 1000} s`, ...pauses[2]!],
    ]
    parts.push('### Memory of a worker\n\nResident, by distinct keys of 16 bytes that wait for a flush. The most ' +
      `there ever was, the flush included: ${shown(most)} ` +
      `MiB.\n\n${table(['pending keys', 'MiB'], memory)}`,
    '### Event loop\n\nLongest pause of a real worker\'s event loop while a million keys come in (one client, a ' +
        `thousand pairs a request) and while they leave, ${pending.length} runs on a new worker each. What is not ` +
        'its own CPU time (which the kernel counts in ticks of some ms), the machine gave to others: the same ' +
        'worker pauses with nothing to do, ' +
        `too.\n\n${table(['', 'pause ms', 'CPU ms'], pauseRows)}`)
  }
  if (steps !== undefined) {
    parts.push('Longest single step of the code alone, by round: parse and add a thousand pairs ' +
      `${shown(spread(steps.add))} ms, encode a batch ${shown(spread(steps.encode))} ms.`)
  }
  return parts.join('\n\n')
}

function of (rounds: readonly Figures[], figure: keyof Figures): string {
  return shown(spread(rounds.map((figures) => figures[figure])))
}
