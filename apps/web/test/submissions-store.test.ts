// Entries of plugins from the call in a worker to the plugin's table in the database, and back, on both queues.
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { Consumer } from '@gearbox/consumer/consumer.ts'
import { Store } from '@gearbox/consumer/store/store.ts'
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import { EmbeddedConsumerQueue } from '@gearbox/queue/embedded/consumer-queue.ts'
import { EmbeddedProducerQueue } from '@gearbox/queue/embedded/producer-queue.ts'
import type { ConsumerQueue, ProducerQueue } from '@gearbox/queue/queue.ts'
import { RedisConsumerQueue } from '@gearbox/queue/redis/consumer-queue.ts'
import { RedisProducerQueue } from '@gearbox/queue/redis/producer-queue.ts'
import { loadConfig } from '@gearbox/runtime/config.ts'
import { definePlugin, refuse, type LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { captureLog } from '@gearbox/test-kit/captured-log.ts'
import { readTotals } from '@gearbox/test-kit/gearbox.ts'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { Flusher } from '../src/deliver/flusher.ts'
import { countPairs } from '../src/increment/count-pairs.ts'
import { Submissions, type EntryOptions } from '../src/submit/submissions.ts'

let server: RedisServer

beforeAll(async () => { server = await RedisServer.start() })
afterAll(async () => { await server.stop() })

/** Keeps texts in their order, and refuses to keep `bad`. */
const list: LoadedPlugin = {
  settings: {},
  plugin: definePlugin({
    name: 'list',
    consumer: {
      migrations: ['CREATE TABLE list_items(number INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT'],
      apply: ({ data }, { database }) => {
        database.run('INSERT INTO list_items(text) VALUES (?)', String(data))
        if (data === 'bad') throw refuse(409, 'LIST_BAD', 'that is bad', { left: 0 })
        return database.get<{ number: number }>('SELECT max(number) AS number FROM list_items')?.number ?? null
      },
    },
  }),
}

interface Worker {
  readonly submissions: Submissions
  /** Submits to the plugin, and resolves with the result, also if that comes late. */
  submit (data: Json, options?: EntryOptions, plugin?: string): Promise<Json>
  count (pairs: Readonly<Record<string, number>>): Promise<string>
}

interface Setup {
  startWorker (): Promise<Worker>
  /** @returns a function that ends it */
  startConsumer (): Promise<() => Promise<void>>
  items (): string[]
  totals (): Map<string, bigint>
  /** Outcomes that the database keeps. */
  kept (): unknown
}

async function setUp (kind: string): Promise<Setup> {
  const dir = temporaryDir()
  const path = join(dir, 'numbers.db')
  const socket = join(dir, 'queue')
  const { logger } = captureLog()
  const redis = { url: server.url, queueName: randomUUID(), logger, warnOfSettings: false }
  const limits = loadConfig({ DATABASE_PATH: path })
  const read = (sql: string): unknown[] => {
    const db = new Database(path, { readonly: true })
    try {
      return db.prepare(sql).pluck().all()
    } finally {
      db.close()
    }
  }
  return {
    items: () => read('SELECT text FROM list_items ORDER BY number').map(String),
    totals: () => readTotals(path),
    kept: () => read('SELECT count(*) FROM results')[0],
    startWorker: async () => {
      const queue: ProducerQueue = kind === 'Redis' ? new RedisProducerQueue(redis) : new EmbeddedProducerQueue(socket)
      const producer = randomUUID()
      const flusher = new Flusher({ ...limits, queue, producer, logger, observeFlush: () => {} })
      const submissions = new Submissions({ flusher, queue, producer, limits })
      await queue.start()
      flusher.start()
      onTestFinished(async () => {
        submissions.stop()
        await flusher.finish(AbortSignal.abort())
        await queue.close()
      })
      return {
        submissions,
        submit: async (data, options, plugin = 'list') => {
          const submitted = await submissions.submit(plugin, data, options)
          if (submitted.state === 'dropped') throw new Error('dropped')
          return submitted.state === 'stored' ? submitted.result : await submitted.late
        },
        count: async (pairs) => await countPairs({ limits, flusher, queue }, 'list', pairs, { ack: 'stored' }),
      }
    },
    startConsumer: async () => {
      const queue: ConsumerQueue = kind === 'Redis' ? new RedisConsumerQueue(redis) : new EmbeddedConsumerQueue(socket)
      await queue.start()
      const store = new Store({
        path, idempotencyHours: 24, idempotencyRowsMax: 1000, pluginParts: { loaded: [list], logger },
      })
      const { owner } = await queue.readOwner()
      await queue.bind(owner, store.raiseEpoch())
      const consumer = new Consumer({ queue, store, logger, commitIntervalMs: 20, observeCommit: () => {} })
      const stop = new AbortController()
      const running = consumer.run(stop.signal, stop.signal)
      let ended: Promise<void> | undefined
      const end = async (): Promise<void> => {
        stop.abort()
        await running
        await queue.close()
        store.close()
      }
      const once = async (): Promise<void> => { await (ended ??= end()) }
      onTestFinished(once)
      return once
    },
  }
}

describe.each(['Redis', 'the embedded queue'])('with %s', (kind) => {
  test('results, refusals, and what no plugin applies return to the routes that submitted them', async () => {
    const { startWorker, startConsumer, items, totals, kept } = await setUp(kind)
    await startConsumer()
    const { submit, count, submissions } = await startWorker()
    const outcomes = await Promise.allSettled([
      submit('a'), submit('bad'), submit('b'), submit('x', {}, 'nobody'), count({ foo: 5 }),
    ])
    expect(outcomes).toMatchObject([
      { value: 1 },
      { reason: { statusCode: 409, code: 'LIST_BAD', message: 'that is bad', details: { left: 0 } } },
      { value: 2 },
      { reason: { statusCode: 503, code: 'GBX_NO_PLUGIN' } },
      { value: 'reached' },
    ])
    expect(items()).toEqual(['a', 'b'])
    expect(totals()).toEqual(new Map([['foo', 5n]]))
    expect(submissions.unsettled).toBe(0)
    await until('the outcomes to be received', () => kept() === 0)
  })

  test('a correction is behind everything that its worker accepted before', async () => {
    const { startWorker, startConsumer, totals } = await setUp(kind)
    await startConsumer()
    const { submit, count } = await startWorker()
    const correction = { key: 'foo', total: '100', by: 'test' }
    const [, corrected] = await Promise.all([count({ foo: 5 }), submit(correction, { alone: true }, 'totals')])
    expect(corrected).toEqual({ key: 'foo', before: '5', after: '100' })
    expect(await count({ foo: 1 })).toBe('reached')
    expect(totals()).toEqual(new Map([['foo', 101n]]))
    await expect(submit({ ...correction, if: '3' }, { alone: true }, 'totals'))
      .rejects.toMatchObject({ statusCode: 412, code: 'GBX_PRECONDITION_FAILED' })
  })

  test('a repeat has the same result at any worker, and another body is refused', async () => {
    const { startWorker, startConsumer, items } = await setUp(kind)
    await startConsumer()
    const [one, other] = [await startWorker(), await startWorker()]
    const key = { idempotencyKey: 'k', scope: 'list' }
    expect(await Promise.all([one.submit('a', key), other.submit('a', key), one.submit('a', key)])).toEqual([1, 1, 1])
    expect(await other.submit('a', key)).toBe(1)
    await expect(other.submit('b', key)).rejects.toMatchObject({ statusCode: 422, code: 'GBX_OTHER_BODY' })
    expect(await other.submit('b', { ...key, scope: 'another' })).toBe(2)
    expect(items()).toEqual(['a', 'b'])
  })

  test('while consumers come and go, every entry is applied once and gets its own result', async () => {
    const { startWorker, startConsumer, items } = await setUp(kind)
    const workers = [await startWorker(), await startWorker()]
    const results = new Map<string, Json>()
    let end = await startConsumer()
    for (let time = 0; time < 4; time++) {
      const submitted = workers.flatMap((worker, i) => Array.from({ length: 100 }, async (_, n) => {
        const text = `${time} ${i} ${n}`
        results.set(text, await worker.submit(text))
      }))
      await Promise.race(submitted)
      await end()
      end = await startConsumer()
      await Promise.all(submitted)
    }
    const applied = items()
    expect(applied).toHaveLength(800)
    expect(new Map(applied.map((text, i) => [text, i + 1]))).toEqual(results)
  })
})
