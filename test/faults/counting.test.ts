// What could make a request count twice, or not at all, though every part does its work: clocks, repeated keys, and
// elements that are no batches.
import { randomUUID } from 'node:crypto'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { Load, readTotals, type Program } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import { TcpProxy } from '@gearbox/test-kit/tcp-proxy.ts'
import { later, until } from '@gearbox/test-kit/until.ts'
import { canSetClocks, WrongClock } from '@gearbox/test-kit/wrong-clock.ts'
import {
  batchesKey, expectExact, makePlace, makePlaceFor, modes, childOf, query, runCommand, startConsumer,
  startGearbox, startRedis, startWeb, stop, stopAndExpectExact,
} from './fixtures.ts'

/** POST of one increment of a key, on its own connection: which worker gets it, the kernel decides. */
async function once (url: string, key: string, more: {
  readonly apiKey?: string
  readonly value?: number
} = {}): Promise<{ status: number, text: string }> {
  return await post(`${url}/increment?ack=stored`, `${encodeURIComponent(key)}=${more.value ?? 1}`, {
    'idempotency-key': key.replaceAll(' ', '-'),
    ...(more.apiKey === undefined ? {} : { authorization: `Bearer ${more.apiKey}` }),
  })
}

/** Sends one request until it is stored: what had no answer or a late one may have counted. */
async function untilStored (url: string, key: string): Promise<void> {
  await until(`${key} to be stored`, async () => (await once(url, key)).status === 204)
}

test('junk and half of a batch pushed by others, under load: set aside, and nothing waits behind them', async () => {
  const redis = await startRedis()
  const client = redis.client()
  onTestFinished(() => client.disconnect())
  const place = makePlace(redis.url)
  const gearbox = await startGearbox(place)
  const load = new Load(gearbox.url)
  await load.more(200)
  const whole = JSON.stringify({
    v: 1,
    producer: randomUUID(),
    seq: 1,
    at: Date.now(),
    requests: 1,
    increments: 1,
    sums: { poison: 1 },
    once: [],
  })
  const junk = ['', 'junk', '{}', '[]', 'null', whole.slice(0, whole.length / 2),
    whole.replace('"poison":1', '"poison":1.5'), whole.replace('"poison":1', '"poison":1,'), Buffer.from([0, 255, 254])]
  for (const element of junk) {
    await client.rpush(batchesKey, element)
    await client.lpush(batchesKey, element)
    await load.more(10)
  }
  expect(((await post(`${gearbox.url}/increment?ack=stored`, 'behind=1')).status)).toBe(204)
  expect(await metric(gearbox.url, 'gearbox_rejected_total')).toBeGreaterThanOrEqual(junk.length - 1)
  await stopAndExpectExact(gearbox, place, load)
  expect(query(place.databasePath, 'SELECT DISTINCT reason FROM rejected')).toEqual([{ reason: 'unreadable' }])
  expect(readTotals(place.databasePath).has('poison')).toBe(false)
})

describe.each(modes)('an Idempotency-Key with %s', (mode) => {
  test('sent to all workers at once counts once, by each caller', async () => {
    const place = await makePlaceFor(mode, { WEB_WORKERS: '3', API_KEYS: 'alice,bob' })
    const gearbox = await startGearbox(place)
    const keys = Array.from({ length: 20 }, (_, i) => `at once ${i}`)
    const replies = await Promise.all(keys.flatMap(
      (key) => Array.from({ length: 6 },
        async (_, i) => await once(gearbox.url, key, { apiKey: i % 2 === 0 ? 'alice' : 'bob' }))
    ))
    expect(new Set(replies.map(({ status }) => status))).toEqual(new Set([204]))
    await stop(gearbox)
    expect(readTotals(place.databasePath)).toEqual(new Map(keys.map((key) => [key, 2n])))
  })

  test('counts once although workers and the consumer are killed between its repeats', async () => {
    const place = await makePlaceFor(mode)
    const gearbox = await startGearbox(place)
    const keys = Array.from({ length: 6 }, (_, i) => `killed ${i}`)
    for (const [i, key] of keys.entries()) {
      const repeats = Array.from({ length: 8 }, async () => await once(gearbox.url, key).catch(() => undefined))
      process.kill(await childOf(gearbox, i % 2 === 0 ? 'apps/web' : 'apps/consumer'), 'SIGKILL')
      await Promise.all(repeats)
      await untilStored(gearbox.url, key)
    }
    await stop(gearbox)
    expect(readTotals(place.databasePath)).toEqual(new Map(keys.map((key) => [key, 1n])))
  })

  test('with another body is refused, and no more than IDEMPOTENCY_ROWS_MAX are remembered', async () => {
    const place = await makePlaceFor(mode, { IDEMPOTENCY_ROWS_MAX: '5' })
    const gearbox = await startGearbox(place)
    expect((await once(gearbox.url, 'first')).status).toBe(204)
    const other = await once(gearbox.url, 'first', { value: 2 })
    expect(other).toMatchObject({ status: 422, text: expect.stringContaining('GBX_OTHER_BODY') })
    for (let i = 0; i < 10; i++) expect((await once(gearbox.url, `filler ${i}`)).status).toBe(204)
    expect(query(place.databasePath, 'SELECT count(*) AS rows FROM once')).toEqual([{ rows: 5 }])
    await stop(gearbox)
    expect(readTotals(place.databasePath).get('first')).toBe(1n)
  })
})

test('an Idempotency-Key counts once although Redis is killed, and loses all it had, between its repeats', async () => {
  const redis = await startRedis()
  const client = redis.client()
  client.on('error', () => {})
  onTestFinished(() => client.disconnect())
  const place = makePlace(redis.url)
  const gearbox = await startGearbox(place)
  const keys = Array.from({ length: 4 }, (_, i) => `redis ${i}`)
  for (const [i, key] of keys.entries()) {
    const repeats = Array.from({ length: 8 }, async () => await once(gearbox.url, key).catch(() => undefined))
    if (i % 2 === 0) {
      await redis.kill()
      await redis.startAgain()
    } else {
      await client.flushall()
    }
    await Promise.all(repeats)
    await untilStored(gearbox.url, key)
  }
  await stop(gearbox)
  expect(readTotals(place.databasePath)).toEqual(new Map(keys.map((key) => [key, 1n])))
})

test('an Idempotency-Key that a worker could not push in time is refused as too late, if what came meanwhile has ' +
  'pushed its repeat out of memory', async () => {
  const redis = await startRedis()
  const proxy = await TcpProxy.start(redis.port)
  onTestFinished(async () => { await proxy.close() })
  const place = makePlace(redis.url, { IDEMPOTENCY_ROWS_MAX: '5' })
  const [cutOff, other] = [await startWeb(place, { REDIS_URL: proxy.url, ACK_TIMEOUT_MS: '20000' }),
    await startWeb(place)]
  const consumer = await startConsumer(place)
  proxy.blackHole()
  const late = [once(cutOff.url, 'repeated'), once(cutOff.url, 'never seen')]
  await until('it to be on its way', async () => await metric(cutOff.metricsUrl, 'gearbox_unstored_batches') > 0)
  expect((await once(other.url, 'repeated')).status).toBe(204)
  for (let i = 0; i < 6; i++) expect((await once(other.url, `filler ${i}`)).status).toBe(204)
  proxy.heal()
  for (const reply of await Promise.all(late)) {
    expect(reply).toMatchObject({ status: 422, text: expect.stringContaining('GBX_TOO_LATE') })
  }
  await stop(cutOff, other, consumer)
  // Their clients were told that nothing was counted, so nothing can be counted later.
  expect(query(place.databasePath, 'SELECT * FROM rejected')).toEqual([])
  expect((await runCommand(place, 'rejected', ['--retry', 'all'])).output).toBe('')
  expect(readTotals(place.databasePath).get('repeated')).toBe(1n)
  expect(readTotals(place.databasePath).has('never seen')).toBe(false)
})

const why = canSetClocks ? '' : ' (libfaketime is not installed)'

test('an Idempotency-Key counts once whatever Authorization comes with it where nobody checks that, and by each ' +
  'caller where somebody does', async () => {
  const free = await makePlaceFor('the embedded queue')
  const gearbox = await startGearbox(free)
  for (const authorization of [undefined, 'Bearer alice', 'bearer bob', 'Basic YWxpY2U6', '']) {
    const headers = { 'idempotency-key': 'k', ...(authorization === undefined ? {} : { authorization }) }
    expect((await post(`${gearbox.url}/increment?ack=stored`, 'a=1', headers)).status,
      authorization).toBe(204)
  }
  await stop(gearbox)
  expect(readTotals(free.databasePath)).toEqual(new Map([['a', 1n]]))

  const keyed = await makePlaceFor('the embedded queue', { API_KEYS: 'alice,count:bob' })
  const checking = await startGearbox(keyed)
  const statuses = new Map<string, number>()
  for (const authorization of ['Bearer alice', 'bearer alice', 'BEARER alice', 'Bearer bob']) {
    const headers = { 'idempotency-key': 'k', authorization }
    statuses.set(authorization, (await post(`${checking.url}/increment?ack=stored`, 'a=1', headers)).status)
  }
  expect([statuses.get('Bearer alice'), statuses.get('Bearer bob')]).toEqual([204, 204])
  await stop(checking)
  expect(readTotals(keyed.databasePath)).toEqual(new Map([['a', 2n]]))
})

describe.skipIf(!canSetClocks)(`a wrong clock${why}`, () => {
  test('of a worker, set forth and back: every key counts once', async () => {
    const place = makePlace((await startRedis()).url, { IDEMPOTENCY_HOURS: '1', STATS_INTERVAL_MS: '200' })
    const clock = new WrongClock(place.dir)
    const [right, wrong] = [await startWeb(place), await startWeb(place, clock.env)]
    const consumer = await startConsumer(place)
    const load = new Load(wrong.url)
    const keys: string[] = []
    for (const hours of [0, 1, -1, 2, 0, -2]) {
      clock.set(hours)
      const key = `worker at ${hours} (${keys.length})`
      keys.push(key)
      for (const url of [wrong.url, right.url, wrong.url]) expect((await once(url, key)).status, key).toBe(204)
      for (const before of keys) expect((await once(wrong.url, before)).status, before).toBe(204)
      await load.more(30)
    }
    await until('its log to show its clock', () => clockOf(wrong) < -1)
    await load.stop()
    await stop(right, wrong, consumer)
    expectExact(place.databasePath, load)
    for (const key of keys) expect(readTotals(place.databasePath).get(key), key).toBe(1n)
  })

  test('of the consumer, set forth and back: no key is forgotten early, and every one counts once',
    { timeout: 60_000 }, async () => {
      const place = makePlace((await startRedis()).url, { IDEMPOTENCY_HOURS: '1', STATS_INTERVAL_MS: '200' })
      const clock = new WrongClock(place.dir)
      const web = await startWeb(place)
      let consumer = await startConsumer(place, place.databasePath, clock.env)
      const load = new Load(web.url)
      expect((await once(web.url, 'before')).status).toBe(204)
      clock.set(3)
      // It prunes every 10 s.
      await load.more(50)
      await load.stop()
      await later(11_000)
      expect((await once(web.url, 'before')).status).toBe(204)
      expect((await once(web.url, 'ahead')).status).toBe(204)
      clock.set(-3)
      for (const key of ['before', 'ahead', 'behind']) expect((await once(web.url, key)).status).toBe(204)
      await until('its log to show its clock', () => clockOf(consumer) < -2)
      await stop(consumer)
      consumer = await startConsumer(place, place.databasePath, clock.env)
      for (const key of ['before', 'ahead', 'behind']) expect((await once(web.url, key)).status).toBe(204)
      await stop(web, consumer)
      expectExact(place.databasePath, load)
      expect([...readTotals(place.databasePath)].filter(([key]) => !key.startsWith('load')))
        .toEqual([['ahead', 1n], ['before', 1n], ['behind', 1n]])
    })

  test('of a worker, 30 days ahead, when its key has been forgotten: every later key counts, at ' +
    'each level', async () => {
    const place = makePlace((await startRedis()).url, { IDEMPOTENCY_ROWS_MAX: '1' })
    const clock = new WrongClock(place.dir)
    clock.set(30 * 24)
    const [right, wrong] = [await startWeb(place), await startWeb(place, clock.env)]
    const consumer = await startConsumer(place)
    expect((await once(wrong.url, 'ahead')).status).toBe(204)
    for (let i = 0; i < 3; i++) expect((await once(right.url, `stored ${i}`)).status).toBe(204)
    const queued = await post(`${right.url}/increment?ack=queued`, 'queued=1', { 'idempotency-key': 'queued' })
    expect(queued.status).toBe(204)
    expect((await once(wrong.url, 'ahead too')).status).toBe(204)
    // What it refuses is refused, though its clock says that it has been waiting since long before or for long to come.
    expect((await post(`${wrong.url}/increment?ack=stored`, 'full=9223372036854775807')).status).toBe(204)
    expect((await post(`${wrong.url}/increment?ack=stored`, 'full=1')).status).toBe(422)
    await stop(right, wrong, consumer)
    expect(query(place.databasePath, 'SELECT * FROM rejected')).toEqual([])
    expect(readTotals(place.databasePath).get('queued')).toBe(1n)
  })

  test('of all of it, with the embedded queue, set an hour forth and back: every key counts once', async () => {
    const place = await makePlaceFor('the embedded queue', { STATS_INTERVAL_MS: '200' })
    const clock = new WrongClock(place.dir)
    const gearbox = await startGearbox({ ...place, env: { ...place.env, ...clock.env } })
    const load = new Load(gearbox.url)
    const keys: string[] = []
    for (const hours of [0, 1, -1, 0]) {
      clock.set(hours)
      keys.push(`at ${hours} (${keys.length})`)
      for (const key of [...keys, ...keys]) expect((await once(gearbox.url, key)).status, key).toBe(204)
      if (hours === 1) await until('its log to show its clock', () => clockOf(gearbox) > 0.9)
      await load.more(30)
    }
    await stopAndExpectExact(gearbox, place, load)
    for (const key of keys) expect(readTotals(place.databasePath).get(key), key).toBe(1n)
  })

  test('of a worker, an hour back, when keys are forgotten for want of room: what may be a repeat is refused ' +
    'as too late', async () => {
    const place = makePlace((await startRedis()).url, { IDEMPOTENCY_ROWS_MAX: '5' })
    const clock = new WrongClock(place.dir)
    clock.set(-1)
    const [right, wrong] = [await startWeb(place), await startWeb(place, clock.env)]
    const consumer = await startConsumer(place)
    expect((await once(wrong.url, 'early')).status).toBe(204)
    for (let i = 0; i < 6; i++) expect((await once(right.url, `filler ${i}`)).status).toBe(204)
    for (let repeats = 1; repeats <= 2; repeats++) {
      expect(await once(wrong.url, 'early'))
        .toMatchObject({ status: 422, text: expect.stringContaining('GBX_TOO_LATE') })
    }
    expect(await once(wrong.url, 'late')).toMatchObject({ status: 422, text: expect.stringContaining('GBX_TOO_LATE') })
    await stop(right, wrong, consumer)
    expect(query(place.databasePath, 'SELECT * FROM rejected')).toEqual([])
    expect(readTotals(place.databasePath).get('early')).toBe(1n)
    expect(readTotals(place.databasePath).has('late')).toBe(false)
  })
})

/** By how many hours the last line of a program's log is ahead. */
function clockOf (program: Program): number {
  const times = program.logged().map(({ time }) => typeof time === 'number' ? time : Date.parse(String(time)))
  return (times.at(-1)! - Date.now()) / 3_600_000
}
