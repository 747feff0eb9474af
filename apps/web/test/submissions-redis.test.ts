// Entries of plugins through a real Redis: what is lost on the way is asked for, and nothing is applied twice.
import { randomUUID } from 'node:crypto'
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import { RedisConsumerQueue } from '@gearbox/queue/redis/consumer-queue.ts'
import { RedisProducerQueue } from '@gearbox/queue/redis/producer-queue.ts'
import { loadConfig } from '@gearbox/runtime/config.ts'
import { captureLog } from '@gearbox/test-kit/captured-log.ts'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { Flusher } from '../src/deliver/flusher.ts'
import { Submissions } from '../src/submit/submissions.ts'
import { FakeConsumer, FakeDatabase, type Faults } from './fixtures/fake-consumer.ts'

let server: RedisServer

beforeAll(async () => { server = await RedisServer.start() })
afterAll(async () => { await server.stop() })

const { logger } = captureLog()

interface Setup {
  readonly queueName: string
  readonly database: FakeDatabase
  readonly submissions: Submissions
  /** Submits and resolves with the result, also if that comes late. */
  submit (data: Json, idempotencyKey?: string): Promise<Json>
  /** Starts a consumer, which takes the queue over. */
  consume (faults?: Faults): Promise<FakeConsumer>
}

async function setUp (env: NodeJS.ProcessEnv = {}): Promise<Setup> {
  const queueName = randomUUID()
  const limits = loadConfig({ DATABASE_PATH: 'unused.db', ...env })
  const producer = randomUUID()
  const queue = new RedisProducerQueue({ url: server.url, queueName, logger, warnOfSettings: false })
  const flusher = new Flusher({ ...limits, queue, producer, logger, observeFlush: () => {} })
  const submissions = new Submissions({ flusher, queue, producer, limits })
  await queue.start()
  flusher.start()
  onTestFinished(async () => {
    submissions.stop()
    await flusher.finish(AbortSignal.abort())
    await queue.close()
  })
  const database = new FakeDatabase()
  const uuid = randomUUID()
  let epoch = 0
  return {
    queueName,
    database,
    submissions,
    submit: async (data, idempotencyKey) => {
      const options = idempotencyKey === undefined ? {} : { idempotencyKey }
      const submitted = await submissions.submit('tickets', data, options)
      if (submitted.state === 'dropped') throw new Error('dropped')
      return submitted.state === 'stored' ? submitted.result : await submitted.late
    },
    consume: async (faults) => {
      const queue = new RedisConsumerQueue({ url: server.url, queueName, logger, warnOfSettings: false })
      await queue.start()
      await queue.bind((await queue.readOwner()).owner, { uuid, epoch: ++epoch })
      const consumer = new FakeConsumer(queue, database, faults)
      onTestFinished(async () => {
        await consumer.stop()
        await queue.close()
      })
      return consumer
    },
  }
}

function expectOnce ({ database }: Setup, count: number): void {
  expect(database.applied).toHaveLength(count)
  expect(new Set(database.applied.map((data) => JSON.stringify(data))).size).toBe(count)
}

test('each of many entries gets its own outcome, and then the consumer keeps none', async () => {
  const all = await setUp()
  await all.consume()
  const data = Array.from({ length: 2000 }, (_, i) => i)
  const results = await Promise.all(data.map(async (i) => await all.submit(i)))
  expect(results.map((result) => Reflect.get(Object(result), 'data'))).toEqual(data)
  // One worker: in the order in which they were submitted.
  expect(results.map((result) => Reflect.get(Object(result), 'number'))).toEqual(data.map((i) => i + 1))
  expectOnce(all, 2000)
  await until('the outcomes to be received', () => all.database.results.size === 0)
})

test('outcomes whose message was lost are asked for', async () => {
  const all = await setUp()
  await all.consume({ losesOutcomes: true })
  const data = Array.from({ length: 50 }, (_, i) => i)
  const results = await Promise.all(data.map(async (i) => await all.submit(i)))
  expect(results.map((result) => Reflect.get(Object(result), 'data'))).toEqual(data)
  expectOnce(all, 50)
})

test('a consumer that dies between commit and report is replaced, and the outcome is what it was', async () => {
  const all = await setUp()
  const first = await all.consume({ diesBeforeReport: true })
  const submitted = all.submit('x')
  await first.ended
  await all.consume()
  expect(await submitted).toEqual({ number: 1, data: 'x' })
  expectOnce(all, 1)
})

test('a Redis that was emptied gets the window again, and no entry is applied twice', async () => {
  const all = await setUp()
  const redis = server.client()
  onTestFinished(() => redis.disconnect())
  const first = await all.consume({ diesBeforeReport: true })
  const submitted = ['a', 'b', 'c'].map(async (data) => await all.submit(data))
  await first.ended
  await redis.flushall()
  await all.consume()
  const results = await Promise.all(submitted)
  expect(results.map((result) => Reflect.get(Object(result), 'data'))).toEqual(['a', 'b', 'c'])
  expectOnce(all, 3)
  await until('the outcomes to be received', () => all.database.results.size === 0)
  expect(all.submissions.unsettled).toBe(0)
})

test('what was answered as pending gets its outcome once a consumer comes', async () => {
  const all = await setUp({ ACK_TIMEOUT_MS: '100' })
  const outcome = await all.submissions.submit('tickets', 'x')
  if (outcome.state !== 'pending') throw new Error(outcome.state)
  await all.consume()
  expect(await outcome.late).toEqual({ number: 1, data: 'x' })
})
