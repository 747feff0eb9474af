// The first gear: when a flush leaves, what is in its batches, and what it leaves behind at the end.
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { batchBytesMax } from '@gearbox/protocol/batch.ts'
import { int64Max } from '@gearbox/protocol/int64.ts'
import { producerA } from '@gearbox/test-kit/batches.ts'
import { until } from '@gearbox/test-kit/until.ts'
import type { Outcome } from '../src/deliver/pending-replies.ts'
import { incrementsOf } from './fixtures/columns.ts'
import { parse, replyTo, setUp, spyOn, sumUp } from './fixtures/flusher.ts'

test('with an interval of auto, what arrives during a push leaves in one batch when it is acknowledged', async () => {
  const { queue, count } = setUp()
  queue.hold()
  count('a')
  await until('the first push', () => queue.attempts.length === 1)
  for (let i = 0; i < 1000; i++) count(i % 2 === 0 ? 'a' : 'b')
  for (let i = 0; i < 5; i++) await turn()
  expect(queue.attempts).toHaveLength(1)
  queue.release()
  await until('the second', () => queue.list.length === 2)
  expect(queue.list.map(parse)).toMatchObject([
    { seq: 1, requests: 1, increments: 1, sums: { a: 1 }, once: [] },
    { seq: 2, requests: 1000, increments: 1000, sums: { a: 500, b: 500 }, once: [] },
  ])
  expect(Object.keys(parse(queue.list[1]!).sums)).toEqual(['a', 'b'])
})

test('with an interval of auto and under light load a request is flushed at once', async () => {
  const { queue, post } = setUp()
  for (const n of [1, 2, 3]) {
    expect(await post('a', 'queued')).toBe('reached')
    expect(queue.list).toHaveLength(n)
  }
})

test('a fixed interval keeps flushes that far apart, and what came last needs no further request', async () => {
  const intervalMs = 100
  const { queue, count } = setUp({ flushIntervalMs: intervalMs })
  let counted = 0
  const counting = setInterval(() => { count('a'); counted++ }, 5)
  await until('four flushes', () => queue.list.length === 4)
  clearInterval(counting)
  await until('the last increment', () => sumUp(queue.list)['a'] === counted)
  const times = queue.attempts.map(({ at }) => at)
  const pauses = times.slice(1).map((at, i) => at - times[i]!)
  for (const pause of pauses) expect(pause).toBeGreaterThan(intervalMs - 10)
})

test('a fixed interval does not hold up the end', async () => {
  const { queue, flusher, count } = setUp({ flushIntervalMs: 60_000 })
  count('a')
  await until('the first flush', () => queue.list.length === 1)
  count('a')
  const startedAt = performance.now()
  expect(await flusher.finish(AbortSignal.timeout(20_000))).toEqual([])
  expect(performance.now() - startedAt).toBeLessThan(10_000)
  expect(sumUp(queue.list)).toEqual({ a: 2 })
})

test('a batch says when its oldest increment was accepted', async () => {
  const { queue, post, count } = setUp()
  queue.hold()
  const first = post('a', 'queued')
  await until('the first push', () => queue.attempts.length === 1)
  const before = Date.now()
  count('b')
  const after = Date.now()
  count('b')
  queue.release()
  await first
  await until('the second batch', () => queue.list.length === 2)
  const { at } = parse(queue.list[1]!)
  expect(at).toBeGreaterThanOrEqual(before)
  expect(at).toBeLessThanOrEqual(after)
})

// The end

test('finish flushes what is left, and then nothing is unsent', async () => {
  const { queue, flusher, count } = setUp()
  queue.hold()
  count('a')
  await until('the push', () => queue.attempts.length === 1)
  count('a')
  const finishing = flusher.finish(AbortSignal.timeout(20_000))
  count('b')
  queue.release()
  expect(await finishing).toEqual([])
  expect(sumUp(queue.list)).toEqual({ a: 2, b: 1 })
})

test.each(['fails',
  'hangs'])('at the deadline with a queue that %s, finish returns what was not pushed, under the ' +
    'identities it has', async (trouble) => {
  const { queue, flusher, count, post } = setUp()
  expect(await post('a', 'queued')).toBe('reached')
  if (trouble === 'fails') queue.break()
  else queue.hold()
  const late = post('b', 'queued')
  await until('the attempt', () => queue.attempts.length > 1)
  const lateToo = post('c', 'stored')
  count('c')
  const deadline = new AbortController()
  const finishing = flusher.finish(deadline.signal)
  deadline.abort()
  const unsent = (await finishing).map(({ element }) => element)
  // Nobody can be asked any more what became of the first.
  expect(unsent.map(parse)).toMatchObject([{ seq: 1, sums: { a: 1 } }, { seq: 2, sums: { b: 1 } },
    { seq: 3, sums: { c: 2 }, requests: 2 }])
  expect(unsent[1]!.equals(queue.attempts[1]!.elements[0]!)).toBe(true)
  expect(await Promise.all([late, lateToo])).toEqual(['late', 'late'])
  expect(flusher.pendingReplies).toBe(0)
  queue.release()
})

test.each(['out of reach',
  'a new one'])('with a queue that is %s at the end, what was pushed and is not stored is ' +
    'returned as well', async (state) => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  const before = queue.list
  queue.reportProgress(producerA, { high: 1 })
  if (state === 'out of reach') {
    queue.disconnect()
  } else {
    queue.break()
    queue.forget()
  }
  const unsent = await flusher.finish(AbortSignal.timeout(500))
  expect(unsent.map(({ element }) => String(element))).toEqual(before.slice(1).map(String))
})

test('what the queue has is not returned at the end, what it lost meanwhile is', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd', 'e']) await post(key, 'queued')
  queue.reportProgress(producerA, { high: 1 })
  queue.list = queue.list.filter((_, i) => i === 2)
  // It is reported only after it has left the queue.
  setTimeout(() => queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] }, { received: false }), 200)
  const unsent = await flusher.finish(AbortSignal.timeout(20_000))
  expect(unsent.map(({ seq }) => seq)).toEqual([2, 5])
})

test('the end does not wait for a report where all of it is in the queue', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  const { polled } = spyOn(queue)
  expect(await flusher.finish(AbortSignal.timeout(20_000))).toEqual([])
  expect(polled()).toBe(0)
})

test('finish at once returns everything', async () => {
  const { flusher, count } = setUp({ flushIntervalMs: 60_000 })
  count('a')
  const unsent = await flusher.finish(AbortSignal.abort())
  expect(sumUp(unsent.map(({ element }) => element))).toEqual({ a: 1 })
})

// Size

test('a flush of a million keys becomes batches of their most bytes that make up all of it', async () => {
  const { queue, flusher } = setUp({ flushIntervalMs: 60_000 })
  const keys = 1_000_000
  // The first flush leaves at once; what comes behind it in the same turn leaves with it.
  for (let i = 0; i < keys; i += 1000) {
    flusher.accept(incrementsOf(...Array.from({ length: 1000 }, (_, j) => ({ key: `counter/${i + j}`, delta: i + j }))),
      undefined, 'memory', undefined)
  }
  expect(flusher.pendingKeys).toBe(keys)
  expect(await flusher.finish(AbortSignal.timeout(25_000))).toEqual([])
  expect(flusher.pendingKeys).toBe(0)
  expect(queue.attempts.every(({ elements }) => elements.length === 1)).toBe(true)
  const batches = queue.list.map((element) => {
    expect(element.length).toBeLessThan(batchBytesMax + 1024)
    return parse(element)
  })
  expect(batches.length).toBeLessThan(keys * 24 / batchBytesMax + 2)
  const sums = new Map(batches.flatMap((batch) => Object.entries(batch.sums)))
  expect(sums.size).toBe(keys)
  for (const [key, sum] of sums) if (key !== `counter/${sum}`) throw new Error(`${key} is ${sum}`)
  expect(batches.reduce((all, { requests }) => all + requests, 0)).toBe(keys / 1000)
  expect(batches.reduce((all, { increments }) => all + increments, 0)).toBe(keys)
})

test('a sum beyond 64 bits travels in as many batches as it needs, and its stored reply waits for ' +
  'all of them', async () => {
  const { queue, flusher } = setUp()
  queue.hold()
  const outcome = new Promise<Outcome>((resolve) => {
    const pairs = [{ key: 'a', delta: int64Max }, { key: 'a', delta: int64Max }, { key: 'b', delta: 1 }]
    flusher.accept(incrementsOf(...pairs), undefined, 'stored', replyTo(pairs, resolve))
  })
  let settled = false
  outcome.then(() => { settled = true }, () => {})
  await until('the first push', () => queue.attempts.length === 1)
  queue.reportProgress(producerA, { high: 1 })
  queue.release()
  await until('both', () => queue.list.length === 2)
  expect(queue.list.map((element) => /"sums":(\{[^}]*\})/.exec(element.toString())?.[1]))
    .toEqual(['{"a":9223372036854775807,"b":1}', '{"a":9223372036854775807}'])
  await turn()
  expect(settled).toBe(false)
  queue.reportProgress(producerA, { high: 2 })
  expect(await outcome).toBe('reached')
})
