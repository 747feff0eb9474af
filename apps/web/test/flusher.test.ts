// The first gear on a queue that does what queues can do: be slow, fail, lose a reply, lose its memory.
import { setImmediate as turn } from 'node:timers/promises'
import { expect, onTestFinished, test } from 'vitest'
import { until } from '@gearbox/test-kit/until.ts'
import { batchBytesMax, int64Max, type Sum } from '@gearbox/protocol/batch.ts'
import { producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { captureLog, type CapturedLog } from '@gearbox/test-kit/captured-log.ts'
import { Flusher, type FlusherOptions } from '../src/deliver/flusher.ts'
import { packKeys } from '../src/deliver/reply-keys.ts'
import type { PendingReply, Outcome } from '../src/deliver/pending-replies.ts'
import type { Increment } from '../src/accumulate/columns.ts'
import { incrementsOf } from './fixtures/columns.ts'
import { MemoryQueue } from '@gearbox/queue/memory.ts'

interface Parsed {
  readonly seq: number
  readonly at: number
  readonly requests: number
  readonly increments: number
  readonly sums: { readonly [key: string]: number }
  readonly once: ReadonlyArray<{ readonly id: string, readonly sums: { readonly [key: string]: number } }>
}

interface Setup {
  readonly queue: MemoryQueue
  readonly flusher: Flusher
  readonly log: CapturedLog
  /** Counts one increment without waiting for anything. */
  count: (key: string, delta?: Sum) => void
  /** Counts one increment and resolves with what becomes of the reply. */
  post: (key: string, level: 'queued' | 'stored', delta?: Sum) => Promise<Outcome>
}

function setUp (options: Partial<FlusherOptions> = {}): Setup {
  const queue = new MemoryQueue()
  const log = captureLog()
  const flusher = new Flusher({
    queue,
    producer: producerA,
    logger: log.logger,
    flushIntervalMs:
      'auto',
    ackTimeoutMs: 20_000,
    unstoredBytesMax: 1e9,
    observeFlush: () => {},
    ...options,
  })
  flusher.start()
  onTestFinished(async () => { await flusher.finish(AbortSignal.abort()) })
  return {
    queue,
    flusher,
    log,
    count: (key, delta = 1) => flusher.accept(incrementsOf({ key, delta }), undefined, 'memory', undefined),
    post: async (key, level, delta = 1) => await new Promise((resolve) => {
      flusher.accept(incrementsOf({ key, delta }), undefined, level, replyTo([{ key, delta }], resolve))
    }),
  }
}

/** A reply to a plain request of these pairs. */
function replyTo (pairs: readonly Increment[], settle: (outcome: Outcome) => void): PendingReply {
  return {
    pendingSince: performance.now(),
    keys: packKeys(incrementsOf(...pairs)),
    once: undefined,
    ownBytes: 0,
    increments: 0,
    settle,
  }
}

function parse (element: Buffer): Parsed {
  const batch: Parsed = JSON.parse(element.toString())
  return batch
}

const sequences = (elements: readonly Buffer[]): number[] => elements.map((element) => parse(element).seq)

/** The totals of every batch once. */
function sumUp (elements: readonly Buffer[]): { [key: string]: number } {
  const seen = new Set<number>()
  const totals: { [key: string]: number } = {}
  for (const { seq, sums } of elements.map(parse)) {
    if (seen.has(seq)) continue
    seen.add(seq)
    for (const [key, sum] of Object.entries(sums)) totals[key] = (totals[key] ?? 0) + sum
  }
  return totals
}

/** Counts how often a queue is polled from now on. */
function spyOn (queue: MemoryQueue): { polled: () => number } {
  const poll = queue.pollProgress.bind(queue)
  let polls = 0
  queue.pollProgress = async (producer) => {
    polls++
    return await poll(producer)
  }
  return { polled: () => polls }
}

// Gears

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

// Failing pushes

test('a failed push is sent again with the same bytes, and nothing is merged into it', async () => {
  const { queue, flusher, count } = setUp()
  queue.misfortunes('fail', 'fail after', 'fail')
  count('a')
  await until('the first push', () => queue.attempts.length === 1)
  for (let i = 0; i < 10; i++) count('a')
  await until('all of it', () => queue.list.length === 3)
  const [first, ...repeats] = queue.attempts.slice(0, 4).map(({ elements }) => elements[0]!)
  expect(repeats).toHaveLength(3)
  for (const repeat of repeats) expect(repeat.equals(first!)).toBe(true)
  expect(sequences(queue.list)).toEqual([1, 1, 2])
  expect(sumUp(queue.list)).toEqual({ a: 11 })
  expect(flusher.counts).toMatchObject({ increments: 11, pushed: 2, retries: 3, replays: 0 })
})

test('while the queue fails, the log says why and for how long, and that it is available again', async () => {
  const { queue, flusher, log, count } = setUp()
  queue.break()
  count('a')
  await until('a warning', () => log.messages(40).length > 0)
  expect(flusher.failure).toBe('cut')
  expect(flusher.failingMs).toBeGreaterThan(900)
  queue.mend()
  await until('the batch', () => queue.list.length === 1)
  await until('a line that it is available', () => log.messages(30).some((message) => message.includes('again')))
  expect(flusher.failure).toBeUndefined()
  expect(flusher.failingMs).toBe(0)
  expect(log.messages(40)).toHaveLength(1)
})

// The window

test('a queue that lost its memory gets the whole window again, in order, with the same bytes', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd']) await post(key, 'queued')
  const before = queue.list
  queue.forget()
  await until('the window', () => queue.list.length === 4)
  expect(Buffer.concat(queue.list).equals(Buffer.concat(before))).toBe(true)
  expect(flusher.counts.replays).toBe(1)
  await post('e', 'queued')
  expect(sequences(queue.list)).toEqual([1, 2, 3, 4, 5])
})

test('a mere reconnect repeats nothing but the batch in flight', async () => {
  const { queue, flusher, count, post } = setUp()
  await post('a', 'queued')
  await post('b', 'queued')
  queue.disconnect()
  count('c')
  await until('a failed attempt', () => flusher.counts.retries > 0)
  queue.connect()
  await until('the third', () => queue.list.length === 3)
  queue.misfortunes('fail after')
  await post('d', 'queued')
  expect(sequences(queue.list)).toEqual([1, 2, 3, 4, 4])
  expect(flusher.counts.replays).toBe(0)
})

test('a queue that changes during a replay gets all of it again, from the start', async () => {
  const { queue, post } = setUp()
  for (let i = 1; i <= 300; i++) await post('a', 'queued')
  const attemptsBefore = queue.attempts.length
  queue.misfortunes('fail')
  queue.forget()
  await until('the first failure', () => queue.misfortunesLeft === 0)
  await until('the window', () => queue.list.length === 300)
  const groups = queue.attempts.slice(attemptsBefore).map(({ elements }) => elements.length)
  expect(groups.slice(0, 3)).toEqual([256, 256, 44])
  queue.hold()
  queue.forget()
  await until('the first group', () => queue.attempts.at(-1)?.elements.length === 256)
  queue.release()
  queue.misfortunes('move')
  await until('the whole window', () => queue.misfortunesLeft === 0 && queue.list.length === 300)
  expect(sequences(queue.list)).toEqual(Array.from({ length: 300 }, (_, i) => i + 1))
})

test('a batch that finds the queue moved goes behind the window', async () => {
  const { queue, post } = setUp()
  await post('a', 'queued')
  await post('b', 'queued')
  queue.misfortunes('move')
  expect(await post('c', 'queued')).toBe('reached')
  // The batch in flight is in the window by then: it comes with it.
  expect(sequences(queue.list)).toEqual([1, 2, 3])
})

test('exactly what is stored leaves the window: a gap is pushed again', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd', 'e']) await post(key, 'queued')
  queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] })
  queue.reportProgress(producerB, { high: 5 })
  expect(flusher.unstoredBatches).toBe(3)
  queue.forget()
  await until('the rest', () => queue.list.length === 3)
  expect(sequences(queue.list)).toEqual([2, 3, 5])
})

test('a reported gap is pushed again at once, those batches only and once', async () => {
  const { queue, flusher, log, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd', 'e']) await post(key, 'queued')
  queue.list = []
  queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] })
  await until('the gap', () => queue.list.length === 2)
  expect(sequences(queue.list)).toEqual([2, 3])
  queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] })
  await post('f', 'queued')
  expect(sequences(queue.list)).toEqual([2, 3, 6])
  expect(flusher.counts).toMatchObject({ replays: 0, refilled: 2 })
  expect(log.messages(40)).toEqual([expect.stringContaining('lost 2 batches')])
})

test('a gap is pushed again until the queue has it', async () => {
  const { queue, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  queue.list = []
  queue.misfortunes('fail', 'fail after', 'fail')
  queue.reportProgress(producerA, { high: 3, gaps: [[1, 2]] })
  await until('the gap', () => queue.misfortunesLeft === 0 && queue.list.length === 4)
  expect(sequences(queue.list)).toEqual([1, 2, 1, 2])
})

test('a gap in a queue that has moved comes with the whole window', async () => {
  const { queue, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd']) await post(key, 'queued')
  queue.misfortunes('move')
  queue.reportProgress(producerA, { high: 3, gaps: [[2, 2]] })
  await until('the window', () => queue.list.length === 2)
  expect(sequences(queue.list)).toEqual([2, 4])
})

test('a tail that vanished is pushed again by an idle worker, once', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  queue.reportProgress(producerA, { high: 1 })
  queue.list = []
  await until('the tail', () => queue.list.length === 2)
  expect(sequences(queue.list)).toEqual([2, 3])
  expect(flusher.onTheWay.window).toBe(0)
  queue.list = []
  const { polled } = spyOn(queue)
  await until('four more polls', () => polled() > 4)
  expect(queue.list).toEqual([])
  expect(flusher.counts).toMatchObject({ replays: 0, refilled: 2 })
})

test('what was lost and has left the window can not be pushed again, and the log says how much that is', async () => {
  const { queue, log, post } = setUp({ unstoredBytesMax: 1000 })
  for (let i = 0; i < 20; i++) await post('a', 'queued')
  queue.reportProgress(producerA, { high: 10, gaps: [[2, 4]] })
  queue.reportProgress(producerA, { high: 11, gaps: [[2, 4]] })
  expect(log.messages(50)).toEqual([expect.stringMatching(/lost 3 batches.*npm run verify/)])
})

test('an idle worker notices what is stored, although no report reaches it', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  queue.reportProgress(producerA, { high: 2 }, { heard: false })
  await until('a poll', () => flusher.unstoredBatches === 1)
  expect(flusher.lagSeconds).toBeGreaterThan(0)
  queue.reportProgress(producerA, { high: 3 }, { heard: false })
  await until('a poll', () => flusher.unstoredBatches === 0)
  expect(flusher.lagSeconds).toBe(0)
})

test('past UNSTORED_BYTES_MAX the oldest batches leave the window, with a warning', async () => {
  const { queue, flusher, log, post } = setUp({ unstoredBytesMax: 1000 })
  for (let i = 0; i < 20; i++) await post('a', 'queued')
  const bytes = queue.list[0]!.length
  expect(flusher.unstoredBatches).toBe(Math.floor(1000 / (bytes + 1)))
  expect(log.messages(40)).toContainEqual(expect.stringContaining('UNSTORED_BYTES_MAX'))
  const kept = flusher.unstoredBatches
  queue.forget()
  await until('the rest of the window', () => queue.list.length === kept)
  expect(sequences(queue.list)).toEqual(Array.from({ length: kept }, (_, i) => 20 - kept + 1 + i))
})

// Replies

test('level queued is reached when the queue has the batch, stored when the database has it', async () => {
  const { queue, flusher, post } = setUp()
  let stored = false
  const reply = post('a', 'stored').then((outcome) => { stored = true; return outcome })
  expect(await post('b', 'queued')).toBe('reached')
  await until('both', () => Object.keys(sumUp(queue.list)).length === 2)
  expect(stored).toBe(false)
  expect(flusher.pendingReplies).toBe(1)
  queue.reportProgress(producerA, { high: 7, gaps: [[1, 6]] })
  await turn()
  expect(stored).toBe(false)
  queue.reportProgress(producerA, { high: 7, gaps: [[3, 6]] })
  expect(await reply).toBe('reached')
  expect(flusher.pendingReplies).toBe(0)
})

test('a report of a commit that comes before the push is known to have worked is not lost', async () => {
  const { queue, post } = setUp()
  queue.hold()
  const reply = post('a', 'stored')
  await until('the push', () => queue.attempts.length === 1)
  queue.reportProgress(producerA, { high: 1 })
  queue.release()
  expect(await reply).toBe('reached')
})

test('a refused entry is named to the requests summed in it and to no others', async () => {
  const { queue, post } = setUp()
  queue.hold()
  const first = post('a', 'stored')
  await until('the first push', () => queue.attempts.length === 1)
  const replies = [post('full', 'stored'), post('b', 'stored'), post('full', 'stored')]
  queue.release()
  await until('both', () => queue.list.length === 2)
  const rejection = { seq: 2, key: 'full', reason: 'overflow', filed: false, value: '2' } as const
  queue.reportProgress(producerA, { high: 2, rejected: [rejection] })
  expect(await first).toBe('reached')
  expect(await Promise.all(replies)).toEqual([{ refused: [rejection] }, 'reached', { refused: [rejection] }])
})

test('a batch whose rejections are too many to report refuses all of its requests without names', async () => {
  const { queue, post } = setUp()
  const reply = post('a', 'stored')
  await until('the batch', () => queue.list.length === 1)
  queue.reportProgress(producerA, { high: 1, omittedRejections: [1] })
  expect(await reply).toEqual({ refused: [] })
})

// What is refused, and what was promised

const refusal = (seq: number, key: string, value: string) =>
  ({ seq, key, value, reason: 'overflow', filed: false }) as const

/** Of a batch, whether it says that it may be refused. */
const mayBeRefused = (element: Buffer): boolean => typeof JSON.parse(element.toString()).timeout === 'number'

test('a batch may be refused only where everything summed in it was asked for at level stored, ' +
  'and in time', async () => {
  const { queue, flusher, count, post } = setUp({ ackTimeoutMs: 500 })
  post('a', 'stored').catch(() => {})
  await until('the first', () => queue.list.length === 1)
  queue.hold()
  post('a', 'stored').catch(() => {})
  await until('the second push', () => queue.attempts.length === 2)
  post('b', 'stored').catch(() => {})
  count('c')
  queue.release()
  await until('the third', () => queue.list.length === 3)
  expect(queue.list.map(mayBeRefused)).toEqual([true, true, false])
  queue.hold()
  count('d')
  await until('the fourth push', () => queue.attempts.length === 4)
  expect(await post('e', 'stored'), 'late before it is in a batch').toBe('late')
  queue.release()
  await until('the fifth', () => queue.list.length === 5)
  expect(queue.list.map(mayBeRefused).slice(3)).toEqual([false, false])
  expect(flusher.replyBytes).toBe(0)
})

test('a sum that travels in parts may not be refused: one of them may count', async () => {
  const { queue, post } = setUp()
  queue.hold()
  const first = post('x', 'stored')
  await until('the first push', () => queue.attempts.length === 1)
  for (const delta of [int64Max, 1]) post('a', 'stored', delta).catch(() => {})
  queue.release()
  await until('all of it', () => queue.list.length === 3)
  expect(queue.list.map(mayBeRefused)).toEqual([true, false, false])
  queue.reportProgress(producerA, { high: 3 })
  expect(await first).toBe('reached')
})

test('an idempotent request may be refused only while all who sent it asked for level stored', async () => {
  const { queue, flusher, count } = setUp()
  queue.hold()
  count('first')
  await until('the first push', () => queue.attempts.length === 1)
  const send = (id: string, level: 'memory' | 'stored'): void => {
    const reply = level === 'stored' ? replyTo([], () => {}) : undefined
    flusher.accept(incrementsOf({ key: 'a', delta: 1 }), { id, at: Date.now(), sums: new Map([['a', 1]]) }, level,
      reply)
  }
  for (const [id, level] of [['x', 'stored'], ['y', 'stored'], ['x', 'stored'], ['y', 'memory'], ['z', 'memory'],
    ['z', 'stored']] as const) {
    send(id, level)
  }
  queue.release()
  await until('the second', () => queue.list.length === 2)
  const once: ReadonlyArray<{ id: string, ack?: string }> = JSON.parse(queue.list[1]!.toString()).once
  expect(once.map(({ id, ack }) => [id, ack])).toEqual([['x', 'stored'], ['y', undefined], ['z', undefined]])
})

test('what was filed is refused to nobody', async () => {
  const { queue, post } = setUp()
  queue.hold()
  const replies = [post('full', 'stored'), post('b', 'stored'), post('other', 'stored')]
  queue.release()
  await until('the batch', () => queue.list.length === 1)
  queue.reportProgress(producerA,
    { high: 1, rejected: [{ seq: 1, key: 'full', reason: 'overflow' }, refusal(1, 'other', '1')] })
  expect(await Promise.all(replies)).toEqual(['accepted', 'reached', 'accepted'])
  await until('what was not filed to be sent again', () => queue.list.length === 2)
  expect(parse(queue.list[1]!)).toMatchObject({ sums: { other: 1 }, requests: 0, increments: 0 })
  expect(mayBeRefused(queue.list[1]!)).toBe(false)
})

test('what is refused after a 202 is sent once more, and only once, however often it is reported', async () => {
  const { queue, flusher, post } = setUp({ ackTimeoutMs: 100 })
  expect(await post('full', 'stored', 5)).toBe('late')
  expect(await post('full', 'stored', 6)).toBe('late')
  expect(await post('a', 'queued')).toBe('reached')
  const rejected = [refusal(1, 'full', '5'), refusal(2, 'full', '6'), refusal(2, 'huge', '-9223372036854775808')]
  for (let times = 1; times <= 3; times++) queue.reportProgress(producerA, { high: 3, rejected })
  await until('it to be sent again', () => queue.list.length === 4)
  expect(queue.list[3]!.toString()).toMatch(
    /"requests":0,"increments":0,"sums":\{"full":11,"huge":-9223372036854775808\},"once":\[\]\}$/
  )
  queue.reportProgress(producerA, { high: 4, rejected })
  expect(await post('b', 'queued')).toBe('reached')
  expect(queue.list).toHaveLength(5)
  expect(flusher.counts.increments).toBe(4)
  expect(flusher.pendingReplies).toBe(0)
})

test('of a flush one of whose replies was late, nobody is refused what is sent once more', async () => {
  const { queue, post } = setUp({ ackTimeoutMs: 1000 })
  queue.hold()
  const first = post('x', 'queued')
  await until('the first push', () => queue.attempts.length === 1)
  const startedAt = performance.now()
  const late = post('full', 'stored', 5)
  await until('time to pass', () => performance.now() > startedAt + 500)
  const inTime = post('full', 'stored', 7)
  queue.release()
  await first
  expect(await late).toBe('late')
  queue.reportProgress(producerA, { high: 2, rejected: [refusal(2, 'full', '12')] })
  expect(await inTime).toBe('accepted')
  await until('it to be sent again', () => queue.list.length === 3)
  expect(sumUp(queue.list.slice(2))).toEqual({ full: 12 })
})

test('between late flushes, one that was settled in time is not sent again', async () => {
  const { queue, post } = setUp({ ackTimeoutMs: 300 })
  const first = post('full', 'stored', 1)
  await until('the first', () => queue.list.length === 1)
  const second = post('full', 'stored', 2)
  await until('the second', () => queue.list.length === 2)
  const rejected = [refusal(1, 'full', '1'), refusal(2, 'full', '2'), refusal(3, 'full', '4')]
  queue.reportProgress(producerA, { high: 2, gaps: [[1, 1]], rejected: rejected.slice(1, 2) })
  expect(await second).toEqual({ refused: [rejected[1]] })
  expect(await first).toBe('late')
  expect(await post('full', 'stored', 4)).toBe('late')
  queue.reportProgress(producerA, { high: 3, rejected })
  const again = await until('what was late to be sent again', () => queue.list.map(parse).find(({ seq }) => seq === 4))
  expect(again).toMatchObject({ requests: 0, sums: { full: 5 } })
})

test('an idempotent request that is refused after a 202 is sent once more, as promised', async () => {
  const { queue, flusher } = setUp({ ackTimeoutMs: 100 })
  const once = { id: 'x', at: Date.now(), sums: new Map([['a', 1]]) }
  const outcome = await new Promise<Outcome>((resolve) => {
    flusher.accept(incrementsOf({ key: 'a', delta: 1 }), once, 'stored',
      { pendingSince: performance.now(), keys: undefined, once, ownBytes: 0, increments: 0, settle: resolve })
  })
  expect(outcome).toBe('late')
  const rejected = [{ seq: 1, once: 'x', reason: 'other body', filed: false } as const]
  for (let times = 1; times <= 3; times++) queue.reportProgress(producerA, { high: 1, rejected })
  await until('it to be sent again', () => queue.list.length === 2)
  expect(parse(queue.list[1]!)).toMatchObject({
    requests: 0,
    increments: 0,
    once: [{ id: 'x', at: once.at, sums: { a: 1 } }],
  })
  expect(queue.list[1]!.toString()).not.toContain('"ack"')
})

test('a batch whose rejections are too many to be listed, and were filed, refuses nothing', async () => {
  const { queue, post } = setUp()
  const reply = post('a', 'stored')
  await until('the batch', () => queue.list.length === 1)
  queue.reportProgress(producerA, { high: 1, omittedRejections: [1], omittedFiled: [1] })
  expect(await reply).toBe('accepted')
})

test('what could not be named and was answered with 202 is counted and logged', async () => {
  const { queue, flusher, log, post } = setUp({ ackTimeoutMs: 100 })
  expect(await post('a', 'stored')).toBe('late')
  queue.reportProgress(producerA, { high: 1, omittedRejections: [1] })
  expect(flusher.counts.setAside).toBe(1)
  expect(log.messages(40)).toContainEqual(expect.stringContaining('202'))
})

test('at the end, what is written down may not be refused, and what was refused after a 202 still leaves', async () => {
  const { queue, flusher, post } = setUp({ ackTimeoutMs: 100 })
  expect(await post('full', 'stored', 5)).toBe('late')
  queue.reportProgress(producerA, { high: 1, rejected: [refusal(1, 'full', '5')] }, { heard: false })
  expect(await flusher.finish(AbortSignal.timeout(20_000))).toEqual([])
  expect(sumUp(queue.list.slice(1))).toEqual({ full: 5 })

  const { queue: broken, flusher: stuck, post: postStuck } = setUp()
  broken.hold()
  postStuck('a', 'stored').catch(() => {})
  await until('the attempt', () => broken.attempts.length === 1)
  expect(mayBeRefused(broken.attempts[0]!.elements[0]!)).toBe(true)
  const [unsent] = await stuck.finish(AbortSignal.abort())
  expect(parse(unsent!.element)).toMatchObject({ seq: 1, sums: { a: 1 } })
  expect(mayBeRefused(unsent!.element)).toBe(false)
  broken.release()
})

test('settling thousands of replies with thousands of keys, a part of them refused, takes a moment, and none ' +
  'of it long', async () => {
  const { queue, flusher } = setUp()
  queue.hold()
  flusher.accept(incrementsOf({ key: 'first', delta: 1 }), undefined, 'memory', undefined)
  await until('the first push', () => queue.attempts.length === 1)
  const [requests, pairs] = [4000, 1000]
  const increments = incrementsOf(...Array.from({ length: pairs }, (_, i) => ({ key: `counter ${i}`, delta: 1 })))
  const outcomes = new Map<string, number>()
  for (let i = 0; i < requests; i++) {
    flusher.accept(increments, undefined, 'stored', {
      pendingSince: performance.now(),
      keys: packKeys(increments),
      once: undefined,
      ownBytes: 0,
      increments: 0,
      settle: (outcome) => {
        const what = typeof outcome === 'string' ? outcome : `${outcome.refused.length} refused`
        outcomes.set(what, (outcomes.get(what) ?? 0) + 1)
      },
    })
  }
  expect(flusher.replyBytes).toBeGreaterThan(requests * pairs * 8)
  queue.release()
  await until('the batch', () => queue.list.length === 2)
  const rejected = Array.from({ length: 500 }, (_, i) => refusal(2, `counter ${2 * i}`, '4000'))
  let longest = 0
  let last = performance.now()
  const watch = setInterval(() => { longest = Math.max(longest, performance.now() - last); last = performance.now() },
    1)
  const startedAt = performance.now()
  queue.reportProgress(producerA, { high: 2, rejected })
  await until('all replies', () => outcomes.get('500 refused') === requests)
  clearInterval(watch)
  // Every key of every reply compared with every rejection took a minute. The machine may be busy with other things.
  expect(performance.now() - startedAt).toBeLessThan(10_000)
  expect(longest).toBeLessThan(1000)
  expect(flusher.replyBytes).toBe(0)
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

test('a refused idempotent request is named by its id', async () => {
  const { queue, flusher } = setUp()
  const outcomes: { [id: string]: Outcome } = {}
  queue.hold()
  for (const id of ['x', 'y']) {
    const once = { id, at: Date.now(), sums: new Map([['a', 1]]) }
    flusher.accept(incrementsOf({ key: 'a', delta: 1 }), once, 'stored',
      {
        pendingSince: performance.now(),
        keys: undefined,
        once,
        ownBytes: 0,
        increments: 0,
        settle: (outcome) => { outcomes[id] = outcome },
      })
  }
  await until('the push', () => queue.attempts.length === 1)
  queue.release()
  await until('the batch', () => queue.list.length === 1)
  expect(parse(queue.list[0]!)).toMatchObject({
    requests: 2,
    increments: 2,
    sums: {},
    once: [{ id: 'x', sums: { a: 1 } }, { id: 'y', sums: { a: 1 } }],
  })
  const rejection = { seq: 1, once: 'x', reason: 'other body', filed: false } as const
  queue.reportProgress(producerA, { high: 1, rejected: [rejection] })
  expect(outcomes).toEqual({ x: { refused: [rejection] }, y: 'reached' })
})

test('an idempotent request that comes again before its flush travels once, and both replies get ' +
  'their level', async () => {
  const { queue, flusher, post } = setUp()
  queue.hold()
  const first = post('a', 'queued')
  await until('the first push', () => queue.attempts.length === 1)
  const repeat = async (): Promise<Outcome> => await new Promise((resolve) => {
    const once = { id: 'x', at: Date.now(), sums: new Map([['b', 1]]) }
    flusher.accept(incrementsOf({ key: 'b', delta: 1 }), once, 'queued',
      { ...replyTo([], resolve), keys: undefined })
  })
  const replies = [first, repeat(), repeat()]
  expect(flusher.counts.increments).toBe(2)
  queue.release()
  expect(await Promise.all(replies)).toEqual(['reached', 'reached', 'reached'])
  expect(parse(queue.list[1]!)).toMatchObject({ requests: 1, increments: 1, once: [{ id: 'x', sums: { b: 1 } }] })
  expect(parse(queue.list[1]!).once).toHaveLength(1)
})

test('a level that is not reached within ACK_TIMEOUT_MS is late, and the increment is still delivered', async () => {
  const { queue, flusher, post } = setUp({ ackTimeoutMs: 100 })
  expect(await post('a', 'stored')).toBe('late')
  queue.break()
  expect(await post('b', 'queued')).toBe('late')
  expect(flusher.pendingReplies).toBe(0)
  queue.mend()
  await until('it', () => sumUp(queue.list)['b'] === 1)
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
  setTimeout(() => queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] }, { heard: false }), 200)
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
