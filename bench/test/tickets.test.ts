// Everything that the bench compares tickets with, really started and asked a little: what is not installed is skipped.
// No figure is judged here but what follows from made-up ones.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test, type TestContext } from 'vitest'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { describePairs, measurePairs, pairReaches } from '../alternating.ts'
import { Host, NotMeasuredError, type Server } from '../host.ts'
import type { Figures } from '../rounds.ts'
import { servers } from '../servers.ts'
import { gather } from '../tickets/crowd.ts'
import { askSteadily, measureCrowd, ticketRows, type Tickets } from '../tickets/measure.ts'
import { describeTickets, ticketReaches } from '../tickets/report.ts'
import { ticketServers } from '../tickets/servers.ts'

/** Tornado is installed first. */
const timeout = 120_000

const dir = mkdtempSync(join(tmpdir(), 'gearbox-bench-test-'))
const cores = { load: undefined, server: undefined, note: '' }
const host = new Host({ cores, dir, catalog: servers, searchSeconds: 0 })

afterAll(async () => {
  await host.stop()
  rmSync(dir, { recursive: true, force: true })
})

async function getOrSkip ({ skip }: TestContext, name: string): Promise<Server> {
  return await orSkip(skip, async () => await host.get(name))
}

async function orSkip<T> (skip: TestContext['skip'], action: () => Promise<T>): Promise<T> {
  try {
    return await action()
  } catch (error) {
    if (error instanceof NotMeasuredError) return skip(error.message)
    throw error
  }
}

test.for(Object.keys(ticketServers))('%s gives who asks the next number, each once', { timeout },
  async (name, context) => {
    const server = await getOrSkip(context, name)
    for (const row of ticketRows.filter((row) => row.server === name)) {
      const before = await server.total!()
      const { numbers } = await askSteadily(host, row, 200, 1)
      expect(numbers).toBe(200)
      await until(`200 numbers after ${before}`, async () => await server.total!() === before + 200)
    }
    expect(server.pids.length).toBeGreaterThan(0)
  })

test('a crowd is answered by nginx, each connection once', { timeout }, async (context) => {
  const server = await getOrSkip(context, 'nginx')
  const crowd = await orSkip(context.skip,
    async () => await gather(host, server, '/', { requests: 300, atOnce: 50 }))
  expect(crowd).toMatchObject({ refused: 0, broken: 0 })
})

test('a crowd gets as many numbers as it has connections', { timeout }, async (context) => {
  await getOrSkip(context, 'tickets')
  await getOrSkip(context, 'nginx')
  const { gearbox, nginx, notMeasured, failed } = await measureCrowd(host, { rounds: 1, say: () => {} },
    { requests: 300, atOnce: 50 })
  if (notMeasured !== undefined) context.skip(notMeasured)
  expect(failed).toBeUndefined()
  const all = { refused: 0, broken: 0, late: 0 }
  expect([...gearbox, ...nginx]).toMatchObject([all, all])
})

test('the load alternates between Gearbox with plugins and without', { timeout }, async ({ skip }) => {
  if (findProgram('wrk') === undefined) skip('wrk is not installed')
  const row = { name: 'row', label: 'row', ack: 'memory', withRedis: false, body: 'foo=1' } as const
  const [pairs] = await measurePairs(host, [row], { pairs: 1, warmUps: 0, say: () => {} })
  for (const { requestsPerSecond, cpuPerMillion } of [pairs!.without, pairs!.loaded]) {
    expect([requestsPerSecond.length, cpuPerMillion.length]).toEqual([1, 1])
    expect(requestsPerSecond[0]).toBeGreaterThan(0)
  }
})

function measured (rates: Readonly<Record<string, number>>, failed: number): Tickets {
  const rows = ticketRows.map((row) => ({
    row,
    rounds: row.name in rates ? Array.from({ length: 6 }, () => figures(rates[row.name]!)) : [],
    notMeasured: row.name in rates ? undefined : 'it is not here',
    failed: undefined,
    note: 'two processes',
  }))
  const steady = rows.filter(({ row }) => row.name.startsWith('tickets')).map(({ row }) => ({
    row,
    rounds: row.name === 'tickets'
      ? [{ rate: 1100, answeredPerSecond: 1100, p50: 5, p99: 12, most: 20, numbers: 3300 }]
      : [],
    notMeasured: undefined,
    failed: undefined,
  }))
  return {
    rows,
    steady,
    crowd: {
      size: { requests: 100_000, atOnce: 10_000 },
      gearbox: [{ seconds: 10, refused: failed, broken: 0, late: 0 }],
      nginx: [{ seconds: 8, refused: 0, broken: 0, late: 0 }],
      notMeasured: undefined,
      failed: undefined,
    },
  }
}

function figures (rate: number): Figures {
  return {
    requestsPerSecond: rate,
    incrementsPerSecond: rate,
    p50: 1,
    p99: 2,
    cpuShare: 1,
    loadShare: 1,
    cpuPerMillionRequests: 1e6 / rate,
    cpuPerMillion: 1e6 / rate,
    besidePerMillion: 0,
  }
}

test('tickets are judged by ratios of rounds, by every failed request of a crowd, and by nothing not measured', () => {
  const rates = { tickets: 30_000, stored: 60_000, 'tickets-fastcgi': 20_000, 'tickets-postgres': 2000 }
  const found = ticketReaches(measured(rates, 3)).map(({ measured, reached }) => [measured, reached])
  expect(found).toEqual([['1.5', false], ['15', true], ['2', false], ['not measured', undefined], ['3', false],
    ['1.25', true], ['12 ms', true], ['not measured', undefined]])
  const text = describeTickets(measured(rates, 0))
  expect(text).toContain('not measured: it is not here')
  expect(text).toMatch(/\| nginx \+ FastCGI .*two processes \|/)
  expect(text).toMatch(/\| tickets \| 10 \| 10,000 \| 0 \|/)
})

test('plugins that nobody uses are judged by the lower end of the interval', () => {
  const slices = (rates: readonly number[]): { requestsPerSecond: number[], cpuPerMillion: number[] } =>
    ({ requestsPerSecond: [...rates], cpuPerMillion: rates.map((rate) => 1e6 / rate) })
  const pairsOf = (least: number): Parameters<typeof pairReaches>[0] => [{
    name: 'queued',
    label: '`queued`',
    without: slices(Array.from({ length: 9 }, () => 100)),
    loaded: slices([50, least, 99, 99, 100, 100, 101, 101, 200]),
  }]
  expect(pairReaches(pairsOf(97)).map(({ reached }) => reached)).toEqual([false])
  expect(pairReaches(pairsOf(99))).toMatchObject([{ measured: '1 (0.99–1.01)', reached: true }])
  expect(describePairs(pairsOf(99))).toMatch(/\| `queued` \| 9 \| 100 \| 100 \(99–101\) \| 1 \(0\.99–1\.01\) \|/)
})
