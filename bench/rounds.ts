// The rounds: every row gets the load once per round, one after the other, and is checked afterwards: whoever answered
// anything but 2xx, or whose total is not what was answered, has no figures.
import { setTimeout as delay } from 'node:timers/promises'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { NotMeasuredError, type Asks, type Host, type Server } from './host.ts'
import { keyAfter, runLoad, type Load, type Loaded } from './load.ts'
import { coreTicks, cpuSeconds, openFilesMax } from './machine.ts'
import { orderOf } from './statistics.ts'

export interface Row {
  readonly name: string
  readonly label: string
  /** One of the host's catalog. */
  readonly server: string
  readonly connections: number
  readonly body: string | { readonly keys: number }
  /** In one request. */
  readonly increments: number
  /** What it asks, where that is not what its server is asked. */
  readonly asks?: Asks
}

/** What one row did in one round. */
export interface Figures {
  readonly requestsPerSecond: number
  readonly incrementsPerSecond: number
  /** Milliseconds. */
  readonly p50: number
  readonly p99: number
  /** Of one core, 0 to 1: what the server used while it was loaded. */
  readonly cpuShare: number
  /** The same of the load's core: everything that ran on it. */
  readonly loadShare: number
  /** Seconds of CPU for a million requests, and for a million increments: the server's own. */
  readonly cpuPerMillionRequests: number
  readonly cpuPerMillion: number
  /** The same of what worked next to it, until all was stored. */
  readonly besidePerMillion: number
}

export interface RowResult {
  readonly row: Row
  /** One of each round; empty if there is a reason why not. */
  readonly rounds: readonly Figures[]
  readonly notMeasured: string | undefined
  readonly failed: string | undefined
  /** How its server was set up, where that was searched for. */
  readonly note?: string | undefined
}

export interface RoundOptions {
  readonly rounds: number
  readonly seconds: number
  readonly say: (line: string) => void
}

const warmUp = { seconds: 2, connectionsMost: 256 }

/**
 * More connections than the kernel queues (somaxconn, 4,096) take seconds to be made: such a row gets twice the time.
 */
const queuedConnectionsMax = 4096

/** Whatever is on its way is stored within this long after the load. */
const settleMs = 30_000

/** Two looks this far apart at unchanged sums: nothing is on its way. */
const stillMs = 100

/** Files that a process has open besides its connections. */
const otherFiles = 100

export async function runRounds (host: Host, rows: readonly Row[], {
  rounds,
  seconds,
  say,
}: RoundOptions): Promise<RowResult[]> {
  const figures = new Map<Row, Figures[]>()
  const notMeasured = new Map<Row, string>()
  const failed = new Map<Row, string>()
  const notes = new Map<Row, string>()
  const keyAt = new Map<Row, number>()
  const warm = new Set<string>()

  const load = async (row: Row, seconds: number): Promise<Figures> => {
    const from = keyAt.get(row) ?? 0
    const { figures, answered } = await measure(host, row, seconds, from)
    if (typeof row.body !== 'string') keyAt.set(row, keyAfter(from, answered, row.body.keys))
    return figures
  }
  /** Makes sure that a row that fails once is left alone from then on. */
  const attempt = async (row: Row, action: () => Promise<void>): Promise<void> => {
    if (notMeasured.has(row) || failed.has(row)) return
    try {
      await action()
    } catch (error) {
      if (error instanceof NotMeasuredError) {
        notMeasured.set(row, error.message)
        say(`${row.name}: not measured: ${error.message}`)
        return
      }
      failed.set(row, reasonOf(error))
      say(`FAILED ${row.name}: ${reasonOf(error)}`)
    }
  }

  for (const row of rows) {
    await attempt(row, async () => {
      if (openFilesMax() < row.connections + otherFiles) {
        throw new NotMeasuredError(`a process may open only ${openFilesMax()} files here (ulimit -n)`)
      }
      const { note } = await host.get(row.server)
      if (note !== undefined) notes.set(row, note)
      if (!warm.has(row.server)) {
        await load({ ...row, connections: Math.min(row.connections, warmUp.connectionsMost) }, warmUp.seconds)
      }
      warm.add(row.server)
    })
  }
  for (let round = 0; round < rounds; round++) {
    for (const row of orderOf(rows, round, rounds)) {
      await attempt(row, async () => {
        const found = await load(row, row.connections > queuedConnectionsMax ? 2 * seconds : seconds)
        figures.set(row, [...figures.get(row) ?? [], found])
        say(`round ${round + 1}/${rounds}  ${row.name.padEnd(22)} ` +
          `${found.requestsPerSecond.toFixed(0).padStart(8)}/s  p99 ${found.p99.toFixed(2)} ms  CPU ` +
          `${(found.cpuShare * 100).toFixed(0)} %`)
      })
    }
  }
  return rows.map((row) => ({
    row,
    rounds: failed.has(row) ? [] : figures.get(row) ?? [],
    notMeasured: notMeasured.get(row),
    failed: failed.get(row),
    note: notes.get(row),
  }))
}

/** Loads a server once and checks what became of it. @throws Error if an answer or a total is not as it must be */
async function measure (host: Host, row: Row, seconds: number, keyFrom: number): Promise<{
  figures: Figures
  answered: number
}> {
  const server = await host.get(row.server)
  const { path, headers, body } = row.asks ?? server.asks ??
    { path: '/increment', headers: { 'Content-Type': 'application/x-www-form-urlencoded' }, body: row.body }
  const load: Load = {
    port: server.port,
    path,
    headers,
    body: typeof body === 'string' ? body : { ...body, from: keyFrom },
    connections: row.connections,
    seconds,
    core: host.cores.load,
    dir: host.dir,
  }
  const [before, countedBefore] = [await server.total?.(), await server.counted?.()]
  const [cpuBefore, besideBefore] = [cpuSeconds(server.pids), cpuSeconds(server.beside)]
  const loadBefore = coreTicks(host.cores.load)
  const loaded = await runLoad(load)
  const loadAfter = coreTicks(host.cores.load)
  const cpu = cpuSeconds(server.pids) - cpuBefore
  if (loaded.problem !== undefined) throw new Error(loaded.problem)
  if (before !== undefined) await checkTotal(server, before, loaded, row)
  const beside = cpuSeconds(server.beside) - besideBefore
  const late = ((await server.counted?.())?.in202 ?? 0) - (countedBefore?.in202 ?? 0)
  if (late > 0 && !row.server.startsWith('memory')) throw new Error(`${late} answers were 202: in memory only`)
  const { answered } = loaded
  return {
    answered,
    figures: {
      requestsPerSecond: answered / loaded.seconds,
      incrementsPerSecond: answered * row.increments / loaded.seconds,
      p50: loaded.p50,
      p99: loaded.p99,
      cpuShare: cpu / loaded.seconds,
      loadShare: (loadAfter.busy - loadBefore.busy) / (loadAfter.all - loadBefore.all),
      cpuPerMillionRequests: cpu / answered * 1e6,
      cpuPerMillion: cpu / answered / row.increments * 1e6,
      besidePerMillion: beside / answered / row.increments * 1e6,
    },
  }
}

/**
 * Waits until nothing is on its way, then holds the total against what was answered. What wrk had asked when it ended
 * may count without an answer: at most one request a connection. Gearbox itself must have stored exactly what it says
 * it accepted.
 * @throws Error
 */
async function checkTotal (server: Server, before: number, { answered }: Loaded, {
  increments,
  connections,
}: Row): Promise<void> {
  const deadline = performance.now() + settleMs
  let seen = ''
  for (;;) {
    const accepted = (await server.counted?.())?.increments
    const total = await server.total!()
    const stored = total - before
    const problem = stored < answered * increments
      ? `${stored} were counted, ${answered * increments} were answered`
      : stored > (answered + connections) * increments
        ? `${stored} were counted, but only ${answered * increments} answered and ${connections * increments} ` +
          'more asked'
        : accepted !== undefined && accepted !== total ? `${total} are stored, ${accepted} were accepted` : undefined
    const now = `${accepted} ${total}`
    if (problem === undefined && now === seen) return
    if (performance.now() > deadline) throw new Error(problem ?? 'it does not come to rest')
    seen = now
    await delay(stillMs)
  }
}
