// What a plugin's route counts, with the promise of a POST.
import { readHeader } from '@gearbox/protocol/batch.ts'
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import type { MemoryQueue } from '@gearbox/queue/memory.ts'
import { loadConfig } from '@gearbox/runtime/config.ts'
import type { IncrementOptions, Pairs } from '@gearbox/runtime/plugin.ts'
import { producerA } from '@gearbox/test-kit/batches.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { expect, test } from 'vitest'
import type { Flusher } from '../src/deliver/flusher.ts'
import { countPairs } from '../src/increment/count-pairs.ts'
import { parse, setUp, sumUp } from './fixtures/flusher.ts'
import { sumsOf } from './fixtures/open-queue.ts'

interface Counting {
  readonly queue: MemoryQueue
  readonly flusher: Flusher
  count (pairs: Pairs, options?: IncrementOptions, plugin?: string): Promise<'reached' | 'accepted'>
}

function counting (env: NodeJS.ProcessEnv = {}): Counting {
  const limits = loadConfig({ DATABASE_PATH: 'unused.db', ...env })
  const { queue, flusher } = setUp({ ackTimeoutMs: limits.ackTimeoutMs })
  return {
    queue,
    flusher,
    count: async (pairs, options, plugin = 'hits') =>
      await countPairs({ limits, flusher, queue }, plugin, pairs, options),
  }
}

test('pairs are counted at the level asked for, from an object or a Map', async () => {
  const { queue, count } = counting()
  expect(await count({ foo: 1, ключ: -20 }, { ack: 'queued' })).toBe('reached')
  expect(await count(new Map<string, number | bigint>([['foo', 2n], ['__proto__', -0]]), { ack: 'memory' }))
    .toBe('accepted')
  await until('both batches', () => queue.list.length === 2)
  expect(sumUp([queue.list[0]!])).toEqual({ foo: 1, ключ: -20 })
  expect(sumsOf(queue.list[1]!)).toEqual([['foo', 2n], ['__proto__', 0n]])
  const stored = count({ big: int64Max, small: int64Min }, { ack: 'stored' })
  await until('the batch', () => queue.list.length === 3)
  expect(sumsOf(queue.list[2]!)).toEqual([['big', int64Max], ['small', int64Min]])
  queue.reportProgress(producerA, { high: 3 })
  expect(await stored).toBe('reached')
})

test.each([
  ['no pairs', {}, 'GBX_EMPTY_BODY'],
  ['an empty key', { '': 1 }, 'GBX_BAD_PAIR'],
  ['a key of 257 bytes', { [`${'é'.repeat(128)}x`]: 1 }, 'GBX_BAD_PAIR'],
  ['a control character', { 'a\u0000b': 1 }, 'GBX_BAD_PAIR'],
  ['a DEL', { 'a\u007f': 1 }, 'GBX_BAD_PAIR'],
  ['half a character', { '\ud800': 1 }, 'GBX_BAD_PAIR'],
  ['a fraction', { foo: 1.5 }, 'GBX_BAD_PAIR'],
  ['a number that is not exact', { foo: 2 ** 53 }, 'GBX_BAD_PAIR'],
  ['no number', { foo: NaN }, 'GBX_BAD_PAIR'],
  ['more than 64 bits', { foo: int64Max + 1n }, 'GBX_BAD_PAIR'],
  ['more pairs than a body may have', Object.fromEntries(Array.from({ length: 4 }, (_, i) => [`k${i}`, 1])),
    'GBX_TOO_MANY_PAIRS'],
])('%s is refused, and nothing is counted', async (_what, pairs: Pairs, code) => {
  const { flusher, count } = counting({ BODY_PAIRS_MAX: '3' })
  await expect(count(pairs))
    .rejects.toMatchObject({ code, statusCode: 400 })
  expect(flusher.counts.increments).toBe(0)
})

test('a key of 256 bytes is counted', async () => {
  const { queue, count } = counting()
  expect(await count({ ['é'.repeat(128)]: 1 })).toBe('reached')
  expect(queue.list).toHaveLength(1)
})

test('an Idempotency-Key makes a request of its own per caller and plugin, apart from that of a POST', async () => {
  const { queue, count } = counting()
  queue.hold()
  const key = { idempotencyKey: 'k' }
  const all = [count({ foo: 1 }, key), count({ foo: 1 }, key), count({ foo: 1 }, { ...key, caller: 'a' }),
    count({ foo: 1 }, key, 'other')]
  await expect(count({ foo: 2 }, key, 'other')).rejects.toMatchObject({ code: 'GBX_OTHER_BODY', statusCode: 422 })
  await expect(count({ foo: 2 }, { idempotencyKey: 'a b' })).rejects.toMatchObject({ code: 'GBX_BAD_IDEMPOTENCY_KEY' })
  queue.release()
  expect(await Promise.all(all)).toEqual(['reached', 'reached', 'reached', 'reached'])
  const ids = queue.list.flatMap((element) => parse(element).once.map(({ id }) => id))
  expect(new Set(ids).size).toBe(3)
  expect(ids).toHaveLength(3)
})

test('what could not be reached in time is accepted, and what is refused throws', async () => {
  const { queue, count } = counting({ ACK_TIMEOUT_MS: '100' })
  expect(await count({ foo: 1 }, { ack: 'stored' })).toBe('accepted')
  const refused = count({ foo: 1 }, { ack: 'stored' })
  await until('the batch', () => queue.list.some((element) => {
    const header = readHeader(element)
    return typeof header !== 'string' && header.seq === 2
  }))
  queue.reportProgress(producerA, {
    high: 2, rejected: [{ seq: 2, key: 'foo', reason: 'overflow', filed: false, value: '1' }],
  })
  await expect(refused).rejects.toMatchObject({ code: 'GBX_TOTAL_OVERFLOW', statusCode: 422 })
})

test('limits hold as for a POST: 503, and nothing is counted', async () => {
  const { queue, flusher, count } = counting({ PENDING_REQUESTS_MAX: '1', PENDING_KEYS_MAX: '2' })
  queue.hold()
  const first = count({ foo: 1 })
  await until('the attempt', () => queue.attempts.length === 1)
  await expect(count({ bar: 1 })).rejects.toMatchObject({ code: 'GBX_OVERLOADED', statusCode: 503 })
  await expect(count({ a: 1, b: 1, c: 1 }, { ack: 'memory' })).rejects.toMatchObject({ code: 'GBX_OVERLOADED' })
  expect(flusher.counts.increments).toBe(1)
  queue.release()
  expect(await first).toBe('reached')
})
