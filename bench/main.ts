// `npm run bench`: Gearbox and what it is compared with on one machine, in one run, in rounds. Prints ratios and writes
// them down.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { loadavg, tmpdir } from 'node:os'
import { basename, join, relative } from 'node:path'
import { parseArgs } from 'node:util'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { runMain } from '@gearbox/runtime/process/run-main.ts'
import { root } from '@gearbox/test-kit/gearbox.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { measurePairs, type PairRow } from './alternating.ts'
import { runChild } from './child.ts'
import type { ConsumerRate } from './consumer-rate.ts'
import { Host } from './host.ts'
import type { Lag } from './lag.ts'
import { describeMachine, describeVersions, findCores, pin } from './machine.ts'
import { measurePending, type Pending } from './pending.ts'
import { draw, type Chart } from './plot.ts'
import { describe, failuresIn, memoryOf, type Results } from './report.ts'
import { runRounds, type Row } from './rounds.ts'
import { servers } from './servers.ts'
import { spread } from './statistics.ts'
import type { Steps } from './steps.ts'
import { measureTickets } from './tickets/measure.ts'

const connections = 256

function row (name: string, label: string, more: Partial<Row> = {}): Row {
  return { name, label, server: name, connections, body: 'foo=1', increments: 1, ...more }
}

const hundredPairs = Array.from({ length: 100 }, (_, i) => `key${String(i).padStart(3, '0')}=1`).join('&')

const rows: readonly Row[] = [
  row('memory', '`memory`'),
  row('queued', '`queued`'),
  row('queued-standard-path', '`queued`, `FAST_LANE=off`'),
  row('stored', '`stored`'),
  row('memory-embedded', '`memory`, embedded'),
  row('stored-embedded', '`stored`, embedded'),
  row('queued-100-pairs', '`queued`, 100 pairs a body', { server: 'queued', body: hundredPairs, increments: 100 }),
  row('queued-1m-keys', '`queued`, 1,000,000 keys', { server: 'queued-keys', body: { keys: 1_000_000 } }),
  ...[64, 1024, 10_000].flatMap((connections) => (['memory', 'queued'] as const).map((server) =>
    row(`${server}-${connections}`, `\`${server}\`, ${connections.toLocaleString('en')} connections`,
      { server, connections }))),
  row('nginx', 'nginx `return 204` (sums nothing)'),
  row('node-net', 'bare `node:net`, no real HTTP'),
  row('node-http', 'bare `node:http`'),
  row('fastify', 'bare Fastify, sums in memory'),
  row('express', 'Express hello world (sums nothing)'),
  row('go', 'Go `net/http`, map and mutex'),
  row('webdis', 'webdis `INCRBY`'),
  row('fastify-incrby', 'Fastify + `INCRBY` a request'),
  row('fastify-sqlite', 'Fastify + SQLite upsert a request'),
  row('rqlite', 'rqlite, queued writes'),
]

/** With plugins and without. */
const pairRows: readonly PairRow[] = [
  { name: 'memory', label: '`memory`', ack: 'memory', withRedis: true, body: 'foo=1' },
  { name: 'queued', label: '`queued`', ack: 'queued', withRedis: true, body: 'foo=1' },
  { name: 'queued-100-pairs', label: '`queued`, 100 pairs', ack: 'queued', withRedis: true, body: hundredPairs },
  { name: 'memory-embedded', label: '`memory`, embedded', ack: 'memory', withRedis: false, body: 'foo=1' },
]

/** Their slices are short, so there are more of them than rounds. */
const pairsPerRound = 8

/** Each fills a new worker with a million keys, which takes half a minute. */
const pendingRuns = 3

/** What is measured in addition to the rows. */
const others = ['consumer', 'lag', 'pending', 'steps', 'tickets', 'plugins'] as const

const lagRates = [1100, 9000]

const usage = `Measures Gearbox and what it is compared with, side by side, prints ratios and writes them to a file.

usage: npm run bench -- [--rounds N] [--seconds N] [--only NAME,NAME] [--output FILE]

  --rounds   how often every row gets the load (default: 5)
  --seconds  how long each time (default: 3)
  --only     some of: ${[...rows.map(({ name }) => name), ...others].join(' ')}
  --output   default: bench/RESULTS.md; the plot is written next to it

It needs Linux, wrk, redis-server and nginx; webdis, go and rqlited (or go to build it) for their rows; for those of
tickets also memcached, spawn-fcgi, gcc with libfcgi-dev and libmemcached-dev, python3-venv, postgresql and
apache2-utils. Leave the machine alone meanwhile.
`

async function main (): Promise<number> {
  const { values } = parseArgs({
    options: {
      help: { type: 'boolean', short: 'h' },
      rounds: { type: 'string', default: '5' },
      seconds: { type: 'string', default: '3' },
      only: { type: 'string' },
      output: { type: 'string', default: join(import.meta.dirname, 'RESULTS.md') },
    },
  })
  if (values.help === true) {
    process.stdout.write(usage)
    return 0
  }
  const [rounds, seconds] = [Number(values.rounds), Number(values.seconds)]
  const only = values.only?.split(',')
  const unknown =
    only?.filter((name) => !rows.some((row) => row.name === name) && !others.some((other) => other === name)) ?? []
  if (!(Number.isSafeInteger(rounds) && rounds > 0 && Number.isSafeInteger(seconds) && seconds > 0)) {
    throw new FatalError('--rounds and --seconds are whole numbers above 0', exitCode.usage)
  }
  if (unknown.length > 0) {
    throw new FatalError(`--only: there is no ${unknown.join(', ')}; npm run bench -- --help lists what there is`,
      exitCode.usage)
  }
  const missing = ['wrk', 'redis-server'].filter((name) => findProgram(name) === undefined)
  if (missing.length > 0) {
    throw new FatalError(`the bench needs ${missing.join(' and ')}: sudo apt-get install ${missing.join(' ')}`)
  }

  const loadAverage = loadavg()[0] ?? 0
  const cores = findCores()
  pin(process.pid, cores.load)
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-bench-'))
  const host = new Host({ cores, dir, catalog: servers, searchSeconds: 1 })
  const failures = new Map<string, string>()
  const wanted = (name: string): boolean => only === undefined || only.includes(name)
  const measure = async <T>(name: typeof others[number], action: () => Promise<T>): Promise<T | undefined> => {
    if (!wanted(name)) return undefined
    say(name)
    try {
      return await action()
    } catch (error) {
      failures.set(name, reasonOf(error))
      say(`FAILED ${name}: ${reasonOf(error)}`)
      return undefined
    }
  }
  const end = async (): Promise<void> => {
    await host.stop()
    rmSync(dir, { recursive: true, force: true })
  }
  const interrupted = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM'] as const) {
    process.once(signal, () => {
      interrupted.abort()
      end().finally(() => process.exit(exitCode.failed))
    })
  }
  try {
    const results: Results = {
      failures,
      rows: await runRounds(host, rows.filter(({ name }) => wanted(name)), { rounds, seconds, say }),
      lags: await measure('lag', async () => await measureLags(host, seconds)),
      pending: await measure('pending', async () => {
        const runs: Pending[] = []
        while (runs.length < pendingRuns) runs.push(await measurePending(host))
        return runs
      }),
      consumer: await measure('consumer',
        async () => await runChild(cores.server, 'consumer-rate.ts', [dir, String(rounds)]) as ConsumerRate[]),
      steps: await measure('steps', async () => await runChild(cores.server, 'steps.ts', [String(rounds)]) as Steps),
      tickets: await measure('tickets', async () => await measureTickets(host, { rounds, seconds, say })),
      plugins: await measure('plugins',
        async () => await measurePairs(host, pairRows, { pairs: rounds * pairsPerRound, warmUps: 2, say })),
    }
    // Half a run is no result.
    if (interrupted.signal.aborted) return exitCode.failed
    const { output } = values
    const plot = output.replace(/(?:\.md)?$/, '.svg').replace('RESULTS', 'results')
    const text = describe(results, {
      machine: describeMachine(),
      loadAverage,
      versions: describeVersions(),
      date: new Date().toISOString().slice(0, 16).replace('T', ' ') + ' UTC',
      command: ['npm run bench', ...process.argv.length > 2 ? ['--', ...process.argv.slice(2)] : []].join(' '),
      pinning: cores.note,
      rounds,
      seconds,
    }, basename(plot))
    writeFileSync(plot, draw(charts(results)))
    writeFileSync(output, text)
    process.stdout.write(`${text}\nwritten to ${relative(root, output)}\n`)
    return failuresIn(results).length > 0 ? exitCode.failed : 0
  } finally {
    await end()
  }
}

function say (line: string): void {
  process.stderr.write(`${line}\n`)
}

async function measureLags (host: Host, seconds: number): Promise<Lag[]> {
  const { port, databasePath } = await host.get('queued')
  const lags: Lag[] = []
  // The percentiles need some thousand probes.
  for (const rate of lagRates) {
    lags.push(await runChild(host.cores.load, 'lag.ts', [port, databasePath, rate, seconds * 4].map(String)) as Lag)
  }
  return lags
}

function charts ({ rows, consumer, pending }: Results): Chart[] {
  const byConnections = (figure: 'requestsPerSecond' | 'p99'): Chart['lines'] =>
    (['memory', 'queued'] as const).map((server) => ({
      name: server,
      points: rows.filter(({ row, rounds }) => row.server === server && row.body === 'foo=1' && rounds.length > 0)
        .map(({ row, rounds }) => [row.connections, spread(rounds.map((figures) => figures[figure])).median] as const)
        .sort(([a], [b]) => a - b),
    }))
  return [
    { title: 'requests per second', x: 'connections', lines: byConnections('requestsPerSecond') },
    { title: 'latency p99, ms', x: 'connections', lines: byConnections('p99') },
    // The first one has transactions of another size.
    {
      title: 'consumer, rows per second',
      x: 'distinct keys',
      lines: [{
        name: 'keys that are there',
        points: (consumer ?? []).slice(1).map(({ keys, updated }) => [keys, spread(updated).median]),
      }],
    },
    {
      title: 'memory of a worker, MiB',
      x: 'pending keys',
      lines: [{
        name: 'resident',
        points: memoryOf(pending ?? []).filter(({ keys }) => keys > 0)
          .map(({ keys, bytes }) => [keys, bytes.median / 2 ** 20]),
      }],
    },
  ]
}

await runMain(main)
