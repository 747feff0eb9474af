// Gearbox without plugins and with all of them, loaded and unused: both stay up, and the load alternates between them
// in slices of a second, so that what slows the machine down slows both.
import { number, shown, table, type Reach } from './format.ts'
import { startGearbox, type Host, type Server } from './host.ts'
import { runLoad } from './load.ts'
import { cpuSeconds } from './machine.ts'
import { interval, ratios } from './statistics.ts'

/** One row of the spine, in pairs of slices. */
export interface Pairs {
  readonly name: string
  readonly label: string
  /** Requests per second and seconds of the worker's CPU per million requests; one of each pair. */
  readonly without: Slices
  readonly loaded: Slices
}

/** What one of the two did, slice by slice. */
export interface Slices {
  readonly requestsPerSecond: readonly number[]
  readonly cpuPerMillion: readonly number[]
}

/** A row that is measured in pairs. */
export interface PairRow {
  readonly name: string
  readonly label: string
  readonly ack: 'memory' | 'queued'
  readonly withRedis: boolean
  readonly body: string
}

const connections = 256
const sliceSeconds = 1

/** How many. */
export interface PairOptions {
  readonly pairs: number
  /** Pairs before the first that counts. */
  readonly warmUps: number
  readonly say: (line: string) => void
}

/** Measures rows in pairs. @throws Error if a request is not answered with a 2xx */
export async function measurePairs (host: Host, rows: readonly PairRow[], {
  pairs,
  warmUps,
  say,
}: PairOptions): Promise<Pairs[]> {
  const results: Pairs[] = []
  for (const row of rows) {
    const { name, label, ack, withRedis } = row
    const servers: Server[] = []
    try {
      // Unset: all that come with Gearbox, whatever this process was started with.
      for (const env of [{ PLUGINS: 'none' }, { PLUGINS: undefined }]) {
        servers.push(await startGearbox(host, { ACK: ack, ...env }, withRedis))
      }
      const slices = servers.map(() => ({ requestsPerSecond: [] as number[], cpuPerMillion: [] as number[] }))
      for (let pair = -warmUps; pair < pairs; pair++) {
        for (const which of pair % 2 === 0 ? [0, 1] : [1, 0]) {
          const { rate, cpu } = await loadOnce(host, servers[which]!, row)
          if (pair < 0) continue
          slices[which]!.requestsPerSecond.push(rate)
          slices[which]!.cpuPerMillion.push(cpu)
        }
      }
      const [without, loaded] = slices
      results.push({ name, label, without: without!, loaded: loaded! })
      say(`${name}: ${pairs} pairs`)
    } finally {
      for (const server of servers) await server.stop()
    }
  }
  return results
}

async function loadOnce ({ cores, dir }: Host, { port, pids }: Server,
  { body }: PairRow): Promise<{ rate: number, cpu: number }> {
  const before = cpuSeconds(pids)
  const { answered, seconds, problem } = await runLoad({
    port,
    path: '/increment',
    headers: { 'Content-Type': 'application/x-www-form-urlencoded' },
    body,
    connections,
    seconds: sliceSeconds,
    core: cores.load,
    dir,
  })
  if (problem !== undefined) throw new Error(problem)
  return { rate: answered / seconds, cpu: (cpuSeconds(pids) - before) / answered * 1e6 }
}

/** The lowest that the interval may reach. */
const ratioMin = 0.98

/** Whether plugins that nobody uses cost nothing. */
export function pairReaches (all: readonly Pairs[]): Reach[] {
  return all.map(({ label, without, loaded }) => {
    const measured = interval(ratios(loaded.requestsPerSecond, without.requestsPerSecond))
    return {
      figure: `${label}: requests/s with all plugins loaded and unused ÷ \`PLUGINS=none\``,
      reach: `interval above ${ratioMin}`,
      measured: shown(measured),
      reached: measured.min > ratioMin,
    }
  })
}

/** A section of the results. */
export function describePairs (all: readonly Pairs[]): string {
  const heads = ['', 'pairs', 'requests/s, `PLUGINS=none`', 'all loaded', 'loaded ÷ none', 'worker CPU per request ÷']
  const rows = all.map(({ label, without, loaded }) => [label, number(without.requestsPerSecond.length),
    shown(interval(without.requestsPerSecond)), shown(interval(loaded.requestsPerSecond)),
    shown(interval(ratios(loaded.requestsPerSecond, without.requestsPerSecond))),
    shown(interval(ratios(loaded.cpuPerMillion, without.cpuPerMillion)))])
  return `## Plugins that nobody uses

Two servers, one with \`PLUGINS=none\` and one with all plugins loaded, both up; wrk alternates between them in slices
of ${sliceSeconds} s, with ${connections} connections. A ratio is taken within each pair of slices first. In brackets:
the 95 % interval of the median; of fewer than six pairs, least and most.

${table(heads, rows)}`
}
