// Elements that no worker wrote, of every size and shape that Redis takes, and requests that are larger than a batch:
// each is set aside or refused within seconds, and what is behind it counts.
import { createHash, randomUUID } from 'node:crypto'
import { Redis } from 'ioredis'
import { expect, onTestFinished, test } from 'vitest'
import { foreignBytesMax, idempotentBytesMax } from '@gearbox/protocol/batch.ts'
import { elementBytesMax } from '@gearbox/queue/queue.ts'
import { post } from '@gearbox/test-kit/client.ts'
import { Load, readTotals } from '@gearbox/test-kit/gearbox.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  batchesKey, expectExact, makePlace, makePlaceFor, modes, query, startConsumer, startGearbox, startRedis, startWeb,
  stop, stopAndExpectExact,
} from './fixtures.ts'

/** What a test may take to get past one element on a machine that does other things as well. */
const handledWithinMs = 15_000

function element (seq: number, sums: string, producer = '7f3d6f0e-5b1c-4a8e-9d2b-0c6a1e4f8b37'): string {
  return `{"v":1,"producer":"${producer}","seq":${seq},"at":${Date.now()},"requests":1,"increments":1,` +
    `"sums":{${sums}},"once":[]}`
}

/** The beginning of a batch, each of another producer: one that was there before would be skipped unread. */
function begun (): string {
  return element(1, '', randomUUID()).split('},"once"')[0]!
}

const poisons: ReadonlyArray<{ readonly what: string, readonly make: () => Buffer }> = [
  { what: 'an array of 100 MB', make: () => Buffer.from(`[${'0,'.repeat(50_000_000)}0]`) },
  { what: '64 MiB of zeros', make: () => Buffer.alloc(2 ** 26) },
  {
    what: 'a batch of 30 MB that is one in all but its size',
    make: () => Buffer.from(`${begun()}"k":1${' '.repeat(30_000_000)}},"once":[]}`),
  },
  {
    what: 'an array as large as any element may be',
    make: () => Buffer.from(`[${'0,'.repeat(elementBytesMax / 2 - 2)}00]`),
  },
  { what: 'an array one byte larger', make: () => Buffer.from(`[${'0,'.repeat(elementBytesMax / 2 - 2)}000]`) },
  { what: 'as many opening brackets', make: () => Buffer.alloc(elementBytesMax, '[') },
  { what: 'as many opening brackets as are parsed', make: () => Buffer.alloc(foreignBytesMax, '[') },
  { what: 'objects within objects', make: () => Buffer.from('{"a":'.repeat(foreignBytesMax / 5 - 1)) },
  { what: 'a batch whose sums nest', make: () => Buffer.from(`${begun()}"k":${'['.repeat(elementBytesMax - 1000)}`) },
  { what: 'a batch of 8 MB that ends too soon', make: () => Buffer.from(`${begun()}${'"key":1,'.repeat(1_000_000)}`) },
  { what: 'a string of 8 MB', make: () => Buffer.from(`"${'x'.repeat(8_000_000)}"`) },
  { what: '8 MB that is no UTF-8', make: () => Buffer.alloc(8_000_000, 0xff) },
]

test('elements of any size and shape are set aside, each within seconds, and what is around them counts',
  { timeout: 180_000 }, async () => {
    const server = await startRedis()
    const place = makePlace(server.url, { REJECTED_BYTES_MAX: '1000000000' })
    const redis = new Redis(server.url)
    onTestFinished(() => redis.disconnect())
    const [web, consumer] = [await startWeb(place), await startConsumer(place)]
    const load = new Load(web.url, 'load', 3)
    for (const [i, { what, make }] of poisons.entries()) {
      const poison = make()
      await redis.rpush(batchesKey, element(2 * i + 1, '"before":1'), poison, element(2 * i + 2, '"behind":1'))
      await until(`what is behind ${what}`, () => readTotals(place.databasePath).get('behind') === BigInt(i + 1),
        handledWithinMs)
    }
    await load.more(30)
    await load.stop()
    await stop(web, consumer)
    expect(readTotals(place.databasePath).get('before')).toBe(BigInt(poisons.length))
    expectExact(place.databasePath, load)
    expect(query(place.databasePath, "SELECT count(*) AS rows FROM rejected WHERE reason = 'unreadable'"))
      .toEqual([{ rows: poisons.length }])
    const longest = 'SELECT max(length(batch)) AS bytes FROM rejected'
    const kept = query(place.databasePath, longest) as Array<{ bytes: number }>
    expect(kept[0]!.bytes).toBeLessThanOrEqual(elementBytesMax)
    const first = poisons[0]!.make()
    const oldest = 'SELECT batch FROM rejected ORDER BY id LIMIT 1'
    const [{ batch }] = query(place.databasePath, oldest) as [{ batch: Buffer }]
    expect(batch.toString()).toMatch(new RegExp(
    `^an element of ${first.length} bytes, SHA-1 ${createHash('sha1').update(first).digest('hex')}, .*\\[0,0,0,`
    ))
  })

test('256 elements of 20 KB that are no batches are set aside in one go', { timeout: 60_000 }, async () => {
  const server = await startRedis()
  const place = makePlace(server.url)
  const redis = new Redis(server.url)
  onTestFinished(() => redis.disconnect())
  const consumer = await startConsumer(place)
  await redis.rpush(batchesKey, ...Array.from({ length: 256 }, (_, i) => `[${i},${'0,'.repeat(10_000)}0]`),
    element(1, '"behind":1'))
  await until('what is behind them', () => readTotals(place.databasePath).get('behind') === 1n, handledWithinMs)
  await stop(consumer)
})

test('an element that is too large is replaced also where Redis has no memory left', { timeout: 60_000 }, async () => {
  const server = await startRedis()
  const place = makePlace(server.url)
  const redis = new Redis(server.url)
  onTestFinished(() => redis.disconnect())
  await redis.rpush(batchesKey, Buffer.alloc(20_000_000, '['), element(1, '"behind":1'))
  await redis.config('SET', 'maxmemory', '5mb')
  const consumer = await startConsumer(place)
  await until('what is behind it', () => readTotals(place.databasePath).get('behind') === 1n, handledWithinMs)
  await stop(consumer)
})

/** A body of so many pairs with their own keys, and what its JSON takes. */
function bodyOf (pairs: number): { readonly body: Buffer, readonly jsonBytes: number } {
  const keys = Array.from({ length: pairs }, (_, i) => `key ${i}`)
  return {
    body: Buffer.from(keys.map((key) => `${key.replace(' ', '+')}=1`).join('&')),
    jsonBytes: keys.reduce((bytes, key) => bytes + key.length + 5, 0) - 1,
  }
}

/** The most pairs whose JSON still fits. */
function mostPairs (): number {
  let pairs = 250_000
  for (let jsonBytes = bodyOf(pairs).jsonBytes; jsonBytes + pairs.toString().length +
    9 <= idempotentBytesMax; pairs++) {
    jsonBytes += `"key ${pairs}":1,`.length
  }
  return pairs
}

test.each(modes)('requests of 64 MiB and a million pairs, with %s: what can travel counts, what can not is refused ' +
  'at the door', { timeout: 180_000 }, async (mode) => {
  const place = await makePlaceFor(mode, {
    BODY_BYTES_MAX: String(2 ** 26),
    BODY_PAIRS_MAX: '1000000',
    PENDING_BYTES_MAX: String(2 ** 31),
    PENDING_KEYS_MAX: '5000000',
    WEB_WORKERS: '1',
    REQUEST_TIMEOUT_MS: '60000',
    ACK_TIMEOUT_MS: '30000',
  })
  const gearbox = await startGearbox(place)
  const count = async (body: Buffer, key?: string): Promise<number> => {
    const headers = key === undefined ? undefined : { 'idempotency-key': key }
    return (await post(`${gearbox.url}/increment?ack=stored`, body, headers)).status
  }
  const most = mostPairs()
  expect(bodyOf(most).jsonBytes).toBeLessThanOrEqual(idempotentBytesMax)
  expect(bodyOf(most + 1).jsonBytes).toBeGreaterThan(idempotentBytesMax)
  expect(await count(bodyOf(most + 1).body, 'too-large'), 'larger than a batch has room for').toBe(413)
  expect(await count(Buffer.from(`${'x'.repeat(20)}=1&`.repeat(900_000).slice(0, -1)), 'one-key'),
    'sums that are small whatever their body').toBe(204)
  expect(await count(bodyOf(most).body, 'largest'), 'just not too large').toBe(204)
  expect(await count(bodyOf(most).body, 'largest'), 'a repeat').toBe(204)
  expect(await count(bodyOf(1_000_000).body), 'without a key it is divided').toBe(204)
  const load = new Load(gearbox.url, 'load', 3)
  await load.more(30)
  await stopAndExpectExact(gearbox, place, load)
  const totals = readTotals(place.databasePath)
  expect(totals.get('key 0')).toBe(2n)
  expect(totals.get(`key ${most - 1}`)).toBe(2n)
  expect(totals.get('key 999999')).toBe(1n)
  expect(totals.get('x'.repeat(20))).toBe(900_000n)
})
