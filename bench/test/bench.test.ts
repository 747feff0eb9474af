// What the bench computes from its measurements: medians, ratios by round, the order of a round, percentiles, the plot,
// and what counts as reached.
import { expect, test } from 'vitest'
import { number } from '../format.ts'
import { draw, ticksTo } from '../plot.ts'
import { describe, whatToReach, type Results } from '../report.ts'
import type { Figures, RowResult } from '../rounds.ts'
import { interval, orderOf, percentile, ratio, spread } from '../statistics.ts'

function result (name: string, rates: readonly number[], more: Partial<RowResult> = {}): RowResult {
  const rounds = rates.map((requestsPerSecond): Figures => ({
    requestsPerSecond,
    incrementsPerSecond: requestsPerSecond,
    p50: 1,
    p99: 2,
    cpuShare: 1,
    loadShare:
      1,
    cpuPerMillionRequests: 10,
    cpuPerMillion: 10,
    besidePerMillion: 1,
  }))
  return {
    row: { name, label: name, server: 'queued', connections: 256, body: 'foo=1', increments: 1 },
    rounds,
    notMeasured: undefined,
    failed: undefined,
    ...more,
  }
}

function results (rows: readonly RowResult[]): Results {
  return {
    rows,
    consumer: undefined,
    lags: undefined,
    pending: undefined,
    steps: undefined,
    tickets: undefined,
    plugins: undefined,
    failures: new Map(),
  }
}

test('a median is the middle, and of an even number the mean of the middle two', () => {
  expect(spread([3, 1, 2])).toEqual({ median: 2, min: 1, max: 3 })
  expect(spread([4, 1, 2, 3])).toEqual({ median: 2.5, min: 1, max: 4 })
  expect(() => spread([])).toThrow(RangeError)
})

test('a percentile is a measurement that so many are not above', () => {
  const hundred = Array.from({ length: 100 }, (_, i) => 100 - i)
  expect([percentile(hundred, 0.5), percentile(hundred, 0.99), percentile(hundred, 1), percentile([7], 0)])
    .toEqual([50, 99, 100, 7])
})

test('a round in which the whole machine was slow leaves the ratio as it is', () => {
  expect(ratio([200, 20, 200], [100, 10, 100])).toEqual({ median: 2, min: 2, max: 2 })
})

test('an interval holds the true median 95 times in a hundred, and of few measurements it is all of them', () => {
  expect(interval([5, 1, 3])).toEqual({ median: 3, min: 1, max: 5 })
  const ordered = (count: number): number[] => Array.from({ length: count }, (_, i) => i + 1)
  // Known from tables of order statistics.
  expect(interval(ordered(5))).toEqual({ median: 3, min: 1, max: 5 })
  expect(interval(ordered(6))).toEqual({ median: 3.5, min: 1, max: 6 })
  expect(interval(ordered(9))).toEqual({ median: 5, min: 2, max: 8 })
  expect(interval(ordered(20))).toEqual({ median: 10.5, min: 6, max: 15 })
  expect(interval(ordered(40))).toEqual({ median: 20.5, min: 14, max: 27 })
})

test('every round has every row once, and over the rounds different rows come first and follow each other', () => {
  const rows = ['a', 'b', 'c', 'd', 'e']
  const orders = Array.from({ length: 5 }, (_, round) => orderOf(rows, round, 5))
  for (const order of orders) expect(order.toSorted()).toEqual(rows)
  expect(new Set(orders.map(([first]) => first)).size).toBeGreaterThan(2)
  expect(new Set(orders.map((order) => order.join(' '))).size).toBe(5)
})

test('what to reach is judged by the measured median, and by nothing where nothing was measured', () => {
  const reaches = whatToReach(results([result('queued', [150, 140, 130]), result('fastify', [100, 100, 100]),
    result('nginx', [200, 200, 200])]))
  const of = (figure: string): unknown => {
    const found = reaches.find((reach) => reach.figure.includes(figure))
    return [found?.measured, found?.reached]
  }
  expect(of('bare Fastify')).toEqual(['1.4 (1.3–1.5)', true])
  expect(of('nginx')).toEqual(['0.7 (0.65–0.75)', false])
  expect(of('webdis')).toEqual(['not measured', undefined])
})

test('the results say what failed, what was not measured, and where another one wins', () => {
  const rows = [result('queued', [100]), result('fastify', [80]), result('nginx', [400]),
    result('go', [], { failed: 'it lost 3' }), result('webdis', [], { notMeasured: 'webdis is not installed' })]
  const text = describe(results(rows),
    { machine: 'm', loadAverage: 0, versions: 'v', date: 'd', command: 'c', pinning: 'p', rounds: 1, seconds: 1 },
    'plot.svg')
  expect(text).toContain('- go: it lost 3')
  expect(text).toMatch(/\| go \| \*\*failed\*\*: it lost 3 \|/)
  expect(text).toContain('not measured: webdis is not installed')
  expect(text).toMatch(/\| nginx \|.*\*\*0\.25\*\*/)
  expect(text).toMatch(/\| fastify \|.* 1\.25 /)
})

test('figures keep three digits, or all before the point', () => {
  expect([0.12345, 1.239, 99.94, 100.4, 1234567].map(number)).toEqual(['0.123', '1.24', '99.9', '100', '1,234,567'])
})

test('an axis ends at a round number at or above the most', () => {
  expect(ticksTo(930)).toEqual([0, 250, 500, 750, 1000])
  expect(ticksTo(0.3)).toEqual([0, 0.1, 0.2, 0.3])
  for (const most of [1, 7, 63, 64.5, 81_000, 1.3e6]) expect(ticksTo(most).at(-1)).toBeGreaterThanOrEqual(most)
})

test('the plot has each point within its chart, and leaves out a chart without any', () => {
  const svg = draw([{ title: 'a < b', x: 'keys', lines: [{ name: 'one', points: [[1, 5], [1000, 10]] }] },
    { title: 'empty', x: 'keys', lines: [{ name: 'none', points: [] }] }])
  const circles = [...svg.matchAll(/cx="([\d.]+)" cy="([\d.]+)"/g)].map(([, x, y]) => [Number(x), Number(y)])
  expect(circles).toHaveLength(2)
  for (const [x, y] of circles) expect(x! > 0 && x! < 420 && y! > 0 && y! < 260).toBe(true)
  expect(svg).toContain('a &#60; b')
  expect(svg).not.toContain('empty')
})
