// A Redis that dies, forgets, or refuses to write, below the whole product under load. While the workers live nothing
// of what they answered is lost.
import { randomInt } from 'node:crypto'
import { cpSync, readdirSync, rmSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { Load, readTotals } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import type { RedisServer } from '@gearbox/test-kit/redis.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  batchesKey, expectExact, freeze, makePlace, noTmpfs, childOf, readiness, SmallDisk, startConsumer,
  startGearbox, startRedis, startWeb, stop, stopAndExpectExact,
} from './fixtures.ts'

function appendOnlyDir (redis: RedisServer): string {
  return join(redis.dir, 'appendonlydir')
}

function incrementalFile (redis: RedisServer): string {
  const [name] = readdirSync(appendOnlyDir(redis)).filter((name) => name.endsWith('.incr.aof'))
  return join(appendOnlyDir(redis), name!)
}

async function running (redis: RedisServer): Promise<{
  place: ReturnType<typeof makePlace>
  gearbox: Awaited<ReturnType<typeof startGearbox>>
  load: Load
}> {
  const place = makePlace(redis.url)
  const gearbox = await startGearbox(place)
  const load = new Load(gearbox.url)
  await load.more(300)
  return { place, gearbox, load }
}

test('killed under load, three times: all that was answered is there', async () => {
  const redis = await startRedis()
  const { place, gearbox, load } = await running(redis)
  for (let kills = 1; kills <= 3; kills++) {
    await redis.kill()
    await redis.startAgain()
    await load.more(200)
  }
  await stopAndExpectExact(gearbox, place, load)
})

// With the consumer at a stand the list is long, so that the cut goes through batches and not only through what was
// acknowledged.
test.each([1, 37, 1000,
  randomInt(1, 20_000)])('killed, and the last %i bytes of its append-only file are gone', async (bytes) => {
  const redis = await startRedis(['--aof-load-truncated', 'yes'])
  const { place, gearbox, load } = await running(redis)
  const thaw = freeze(await childOf(gearbox, 'apps/consumer'))
  await load.more(200)
  await redis.kill()
  const file = incrementalFile(redis)
  truncateSync(file, Math.max(0, statSync(file).size - bytes))
  await redis.startAgain()
  // Before the consumer goes on: one that reports all as stored sooner than a worker connects leaves nothing to push
  // again.
  await until('a worker to push its window again',
    async () => await metric(gearbox.url, 'gearbox_window_replays_total') > 0).finally(thaw)
  await load.more(200)
  await stopAndExpectExact(gearbox, place, load)
})

test('killed, and restarted on an older copy of its files: nothing is lost or counted twice', async () => {
  const redis = await startRedis(['--aof-load-truncated', 'yes'])
  const { place, gearbox, load } = await running(redis)
  const copy = join(place.dir, 'older')
  cpSync(appendOnlyDir(redis), copy, { recursive: true })
  await load.more(500)
  await redis.kill()
  rmSync(appendOnlyDir(redis), { recursive: true })
  cpSync(copy, appendOnlyDir(redis), { recursive: true })
  await redis.startAgain()
  await load.more(300)
  await stopAndExpectExact(gearbox, place, load)
})

test('killed, and restarted with nothing: nothing is lost or counted twice', async () => {
  const redis = await startRedis()
  const { place, gearbox, load } = await running(redis)
  await redis.kill()
  rmSync(appendOnlyDir(redis), { recursive: true })
  await redis.startAgain()
  await load.more(300)
  await stopAndExpectExact(gearbox, place, load)
})

test('a FLUSHALL that nothing follows: the idle workers notice, and all is stored within seconds', async () => {
  const redis = await startRedis()
  const { place, gearbox, load } = await running(redis)
  const client = redis.client()
  onTestFinished(() => client.disconnect())
  const thaw = freeze(await childOf(gearbox, 'apps/consumer'))
  await load.more(200)
  await load.stop()
  await until('batches to wait', async () => await client.llen(batchesKey) > 0)
  await client.flushall()
  const flushedAt = performance.now()
  thaw()
  await until('all to be stored', () => load.problems(readTotals(place.databasePath)).length === 0)
  expect(performance.now() - flushedAt, 'ms').toBeLessThan(5000)
  await stop(gearbox)
  expectExact(place.databasePath, load)
})

test('FLUSHALL under load, many times: nothing is lost or counted twice', async () => {
  const redis = await startRedis()
  const { place, gearbox, load } = await running(redis)
  const client = redis.client()
  onTestFinished(() => client.disconnect())
  for (let flushes = 1; flushes <= 5; flushes++) {
    await client.flushall()
    await load.more(100)
  }
  await stopAndExpectExact(gearbox, place, load)
})

describe('at maxmemory', () => {
  test('pushes are refused, and a consumer that is started then makes room: everything arrives', async () => {
    const redis = await startRedis()
    const client = redis.client()
    onTestFinished(() => client.disconnect())
    const place = makePlace(redis.url)
    await stop(await startConsumer(place))
    const [one, other] = [await startWeb(place), await startWeb(place)]
    expect((await post(one.url, 'before=1')).status).toBe(204)
    const used = Number(/^used_memory:(\d+)/m.exec(await client.info('memory'))?.[1])
    await client.config('SET', 'maxmemory', String(used + 2_000_000))
    // Long keys fill it soon.
    const loads = [new Load(one.url, 'one'), new Load(other.url, 'other')]
    const filler = 'x'.repeat(200)
    const filled = 400
    let fillers = 0
    await until('Redis to refuse', async () => {
      const body = Array.from({ length: filled }, (_, i) => `${filler}${fillers}-${i}=1`).join('&').slice(0,
        60_000).replace(/&[^&]*$/, '')
      await post(`${one.url}/increment?ack=memory`, body)
      fillers++
      return await metric(one.metricsUrl, 'gearbox_push_retries_total') > 3
    })
    for (const load of loads) await load.more(30)
    const consumer = await startConsumer(place)
    for (const load of loads) await load.more(200)
    for (const load of loads) await load.stop()
    await stop(one, other, consumer)
    for (const load of loads) expectExact(place.databasePath, load)
    expect(readTotals(place.databasePath).get('before')).toBe(1n)
    expect(await client.llen(batchesKey)).toBe(0)
  })

  test('a worker that is started then waits, and its counts arrive', async () => {
    const redis = await startRedis()
    const client = redis.client()
    onTestFinished(() => client.disconnect())
    const place = makePlace(redis.url)
    await client.config('SET', 'maxmemory', '1')
    const web = await startWeb(place)
    const load = new Load(web.url)
    await load.more(50)
    const consumer = await startConsumer(place)
    await client.config('SET', 'maxmemory', '0')
    await load.more(300)
    await load.stop()
    await stop(web, consumer)
    expectExact(place.databasePath, load)
  })
})

describe('on a full disk', () => {
  test.skipIf(noTmpfs !== undefined)('a Redis that refuses to write: what was answered is there when there is ' +
    `room${noTmpfs === undefined ? '' : ` (${noTmpfs})`}`, async () => {
    const disk = new SmallDisk(24)
    const redis = await startRedis(['--dir', disk.path, '--appendfsync', 'everysec'])
    const { place, gearbox, load } = await running(redis)
    const client = redis.client()
    onTestFinished(() => client.disconnect())
    disk.fill()
    await until('Redis to refuse',
      async () => await client.set('probe', 'x'.repeat(10_000)).then(() => false,
        (error: unknown) => /MISCONF/.test(String(error))))
    await load.more(30)
    disk.makeRoom()
    await load.more(300)
    await stopAndExpectExact(gearbox, place, load)
  })

  test.skipIf(noTmpfs !== undefined)('a Redis that dies of it, as it does when it syncs always: all is there after ' +
    `its restart${noTmpfs === undefined ? '' : ` (${noTmpfs})`}`, async () => {
    const disk = new SmallDisk(24)
    const redis = await startRedis(['--dir', disk.path])
    const { place, gearbox, load } = await running(redis)
    disk.fill()
    await until('Redis to be gone', async () => await readiness(gearbox.url) === 503)
    await load.more(10)
    disk.makeRoom()
    await redis.kill()
    await redis.startAgain()
    await load.more(300)
    await stopAndExpectExact(gearbox, place, load)
  })
})
