// Which replies are given, when, and with which outcome.
import { setImmediate as turn } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { int64Max } from '@gearbox/protocol/int64.ts'
import { producerA } from '@gearbox/test-kit/batches.ts'
import { until } from '@gearbox/test-kit/until.ts'
import type { Outcome } from '../src/deliver/pending-replies.ts'
import { packKeys } from '../src/deliver/reply-keys.ts'
import { incrementsOf } from './fixtures/columns.ts'
import { parse, replyTo, setUp, sumUp } from './fixtures/flusher.ts'

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
  queue.reportProgress(producerA, { high: 1, rejected: [refusal(1, 'full', '5')] }, { received: false })
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
  queue.repair()
  await until('it', () => sumUp(queue.list)['b'] === 1)
})
