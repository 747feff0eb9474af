// Somebody takes batches out of Redis's list, or puts an older copy in its place, while the consumer is away and the
// worker has nothing to do. No connection is closed and the generation is the same: only the worker still has what is
// gone.
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Redis } from 'ioredis'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { readTotals } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import type { RedisServer } from '@gearbox/test-kit/redis.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  batchesKey, freeze, gapsIn, launchConsumer, makePlace, startConsumer, startRedis, startWeb, stop,
} from './fixtures.ts'

interface Losing {
  readonly client: Redis
  readonly redis: RedisServer
  /** A server that has what the first had after half of the requests. */
  readonly older: RedisServer
}

const losses: ReadonlyArray<readonly [name: string, lose: (losing: Losing) => Promise<unknown>]> = [
  ['RPOP', async ({ client }) => await client.rpop(batchesKey)],
  ['DEL', async ({ client }) => await client.del(batchesKey)],
  ['LTRIM', async ({ client }) => await client.ltrim(batchesKey, -2, -1)],
  ['LREM in the middle',
    async ({ client }) => await client.lrem(batchesKey, 1, (await client.lindexBuffer(batchesKey, 3))!)],
  ['an older copy, as its replica and as a primary again', async ({ client, older }) => {
    await follow(client, older)
    await client.replicaof('NO', 'ONE')
  }],
]

const requests = 8

async function follow (client: Redis, { port }: RedisServer): Promise<void> {
  await client.replicaof('127.0.0.1', port)
  await until('a replica', async () => (await client.info('replication')).includes('master_link_status:up'))
}

async function prepare () {
  const [redis, older] = [await startRedis(), await startRedis()]
  const [client, olderClient] = [redis.client(), older.client()]
  onTestFinished(() => [client, olderClient].forEach((client) => client.disconnect()))
  // Before the worker starts: the first replica gives its primary a new history.
  await follow(olderClient, redis)
  const place = makePlace(redis.url, { ACK_TIMEOUT_MS: '5000' })
  // The database that it belongs to is bound.
  await stop(await startConsumer(place))
  const web = await startWeb(place)
  const count = async (from: number, to: number): Promise<void> => {
    for (let i = from; i <= to; i++) expect((await post(web.url, `a=1&b${i}=${i}`)).status).toBe(204)
  }
  await count(1, requests / 2)
  await client.wait(1, 0)
  await olderClient.replicaof('NO', 'ONE')
  await count(requests / 2 + 1, requests)
  expect(await client.llen(batchesKey)).toBe(requests)
  const unsentFiles = (): string[] => existsSync(join(place.dir, 'data', 'unsent'))
    ? readdirSync(join(place.dir, 'data', 'unsent'))
    : []
  return { redis, older, client, place, web, unsentFiles }
}

/** What all requests add up to, and `last` besides. */
function expected (last = 0): Map<string, bigint> {
  const each = Array.from({ length: requests }, (_, i) => [`b${i + 1}`, BigInt(i + 1)] as const)
  return new Map([['a', BigInt(requests + last)], ...each])
}

const sorted = (totals: ReadonlyMap<string, bigint>): Array<[string, bigint]> => [...totals].sort()

describe.each(losses)('%s, while the consumer is away', (_name, lose) => {
  test('an idle worker pushes what is gone again, and every count is there', async () => {
    const { redis, older, client, place, web } = await prepare()
    await lose({ redis, older, client })
    const consumer = await startConsumer(place)
    await until('all to be counted', () => readTotals(place.databasePath).get('a') === BigInt(requests))
    await until('all to be reported', async () => await metric(web.metricsUrl, 'gearbox_unstored_batches') === 0)
    expect((await post(`${web.url}/increment?ack=stored`, 'a=1')).status).toBe(204)
    await stop(web, consumer)
    expect(sorted(readTotals(place.databasePath))).toEqual(sorted(expected(1)))
    expect(gapsIn(place.databasePath)).toEqual([])
  })

  test('a worker that is stopped then leaves it in a file, and after the next start every count is there', async () => {
    const { redis, older, client, place, web, unsentFiles } = await prepare()
    await lose({ redis, older, client })
    await stop(web)
    const next = await startWeb(place)
    const consumer = await startConsumer(place)
    await until('the files to go', () => unsentFiles().length === 0)
    await until('all to be counted', () => readTotals(place.databasePath).get('a') === BigInt(requests))
    await stop(next, consumer)
    expect(sorted(readTotals(place.databasePath))).toEqual(sorted(expected()))
    expect(gapsIn(place.databasePath)).toEqual([])
  })
})

test('a worker whose batches all wait in the queue leaves no file and does not wait', async () => {
  const { place, web, unsentFiles } = await prepare()
  const startedAt = performance.now()
  await stop(web)
  expect(performance.now() - startedAt, 'ms').toBeLessThan(3000)
  expect(unsentFiles()).toEqual([])
  const consumer = await startConsumer(place)
  await until('all to be counted', () => readTotals(place.databasePath).get('a') === BigInt(requests))
  await stop(consumer)
})

test('a consumer that stands still while the list is deleted: what it had taken and what it had not ' +
  'counts once', async () => {
  const { client, place, web } = await prepare()
  const consumer = launchConsumer(place, place.databasePath)
  await until('a commit', () => readTotals(place.databasePath).get('a') === BigInt(requests))
  const thaw = freeze(consumer.pid)
  for (let i = 1; i <= 5; i++) expect((await post(web.url, 'a=1')).status).toBe(204)
  await client.del(batchesKey)
  await until('them to be pushed again', async () => await client.llen(batchesKey) >= 5)
  thaw()
  await until('all to be counted', () => readTotals(place.databasePath).get('a') === BigInt(requests + 5))
  await stop(web, consumer)
  expect(sorted(readTotals(place.databasePath))).toEqual(sorted(expected(5)))
})
