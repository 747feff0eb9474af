// Entries of plugins through everything that breaks: each is applied once, in its order, and its result is its own.
import { createHash, randomUUID } from 'node:crypto'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { Load, readTotals, type Program } from '@gearbox/test-kit/gearbox.ts'
import { element } from '@gearbox/test-kit/batches.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import type { RedisServer } from '@gearbox/test-kit/redis.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'
import { TcpProxy } from '@gearbox/test-kit/tcp-proxy.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { canSetClocks, WrongClock } from '@gearbox/test-kit/wrong-clock.ts'
import {
  batchesKey, childOf, expectExact, freeze, launchConsumer, makePlace, makePlaceFor, modes, noStrace, noTmpfs, query,
  runCommand, SmallDisk, startConsumer, startGearbox, startRedis, startWeb, stop, tracing, type Place,
} from './fixtures.ts'
import { askFor, SerialLoad, writeSerial } from './serial.ts'

interface Loads {
  readonly serial: SerialLoad
  readonly counts: Load
}

/** Numbers are asked for and increments sent at the same time, so that they share batches. */
function load (url: string, name = 'client'): Loads {
  return { serial: new SerialLoad(url, 8, name), counts: new Load(url, name) }
}

/** Stops clients, then programs, and checks that all numbers and all counts are exact. */
async function expectAll ({ serial, counts }: Loads, { databasePath }: Place, ...programs: Program[]): Promise<void> {
  await Promise.all([serial.stop(), counts.stop()])
  await stop(...programs)
  expect(serial.problems(databasePath)).toEqual([])
  expectExact(databasePath, counts)
}

function unsentDir ({ databasePath }: Place): string {
  return join(dirname(databasePath), 'unsent')
}

/** A place whose Redis is reached through proxies, which can break each end's connections. */
async function makeProxied (): Promise<{
  redis: RedisServer, place: Place, ofWorkers: TcpProxy, ofConsumer: TcpProxy, consumerEnv: NodeJS.ProcessEnv
}> {
  const redis = await startRedis()
  const [ofWorkers, ofConsumer] = [await TcpProxy.start(redis.port), await TcpProxy.start(redis.port)]
  onTestFinished(async () => { await Promise.all([ofWorkers.close(), ofConsumer.close()]) })
  const place = makePlace(ofWorkers.url, { PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '5000' })
  return { redis, place, ofWorkers, ofConsumer, consumerEnv: { REDIS_URL: ofConsumer.url } }
}

describe('a consumer that is killed under load', () => {
  test.skipIf(noStrace !== undefined)('at a system call, from its start on, with Redis' +
    `${noStrace === undefined ? '' : ` (${noStrace})`}`, { timeout: 120_000 }, async () => {
    const place = makePlace((await startRedis()).url, { PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '5000' })
    const web = await startWeb(place)
    const loads = load(web.url)
    const random = new Random(seed)
    for (const [calls, least, most] of [['pwrite64,fdatasync,fsync', 20, 90], ['write,writev', 28, 60]] as const) {
      for (let times = 0; times < 6; times++) {
        const nth = random.int(least, most)
        const consumer = launchConsumer(place, place.databasePath, tracing(calls, `signal=SIGKILL:when=${nth}`))
        expect(await consumer.exited, `seed ${seed}, call ${nth}: ${consumer.output}`).toBe('SIGKILL')
      }
    }
    const consumer = await startConsumer(place)
    await loads.serial.more(100)
    await expectAll(loads, place, web, consumer)
  })

  test('between its commit and its report, with Redis', { timeout: 60_000 }, async () => {
    const { place, ofConsumer, consumerEnv } = await makeProxied()
    const web = await startWeb(place)
    const loads = load(web.url)
    // The report never gets out, and neither does anything behind it.
    for (const command of ['{0}:told', '{0}:told', 'evalsha', '{0}:told']) {
      const consumer = await startConsumer(place, place.databasePath, consumerEnv)
      await loads.serial.more(20)
      await until('outcomes that are kept', () => query(place.databasePath, 'SELECT 1 FROM results').length > 0)
      ofConsumer.cutIn(command)
      await until('the cut', () => ofConsumer.done)
      consumer.kill('SIGKILL')
      await consumer.exited
    }
    const consumer = await startConsumer(place)
    await loads.serial.more(100)
    await expectAll(loads, place, web, consumer)
  })

  test.each(modes)('as soon as outcomes are kept, with %s', { timeout: 60_000 }, async (mode) => {
    const place = await makePlaceFor(mode, { PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '5000' })
    const gearbox = await startGearbox(place)
    const loads = load(gearbox.url)
    for (let times = 0; times < 5; times++) {
      await loads.serial.more(20)
      const pid = await childOf(gearbox, 'apps/consumer')
      await until('outcomes that are kept', () => query(place.databasePath, 'SELECT 1 FROM results').length > 0)
      freeze(pid)
      process.kill(pid, 'SIGKILL')
      await until('another consumer', () => gearbox.children('apps/consumer').some((part) => part.pid !== pid))
    }
    await loads.serial.more(100)
    await expectAll(loads, place, gearbox)
  })
})

test('Redis emptied, killed, and restarted empty; reports and requests about outcomes lost',
  { timeout: 120_000 }, async () => {
    const { redis, place, ofWorkers, ofConsumer, consumerEnv } = await makeProxied()
    const webs = [await startWeb(place), await startWeb(place)]
    const consumer = await startConsumer(place, place.databasePath, consumerEnv)
    const loads = webs.map(({ url }, i) => load(url, `client-${i}`))
    const random = new Random(seed)
    const faults: ReadonlyArray<() => Promise<void> | void> = [
      async () => {
        const client = redis.client()
        await client.flushall()
        client.disconnect()
      },
      async () => { await redis.kill(); await redis.startAgain() },
      async () => {
        await redis.kill()
        rmSync(join(redis.dir, 'appendonlydir'), { recursive: true, force: true })
        await redis.startAgain()
      },
      () => { ofWorkers.cutAll() },
      () => { ofConsumer.cutAll() },
      () => { ofWorkers.loseReplyTo('evalsha') },
      () => { ofConsumer.cutIn('{0}:told') },
      () => { ofConsumer.loseReplyTo('evalsha') },
    ]
    for (const fault of random.shuffle([...faults, ...faults])) {
      await fault()
      await Promise.all(loads.map(async ({ serial }) => { await serial.more(10) }))
    }
    await Promise.all(loads.flatMap(({ serial, counts }) => [serial.stop(), counts.stop()]))
    await stop(...webs, consumer)
    const all = new SerialLoad('', 0)
    for (const { serial } of loads) for (const [who, answers] of serial.answers) all.answers.set(who, answers)
    expect(all.problems(place.databasePath), `seed ${seed}`).toEqual([])
    for (const { counts } of loads) expectExact(place.databasePath, counts)
  })

test.skipIf(!canSetClocks)('clocks that jump, of the worker and of the consumer', { timeout: 60_000 }, async () => {
  const place = makePlace((await startRedis()).url, { PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '5000' })
  const clocks = [new WrongClock(temporaryDir()), new WrongClock(temporaryDir())] as const
  const web = await startWeb(place, clocks[0].env)
  const consumer = await startConsumer(place, place.databasePath, clocks[1].env)
  const loads = load(web.url)
  for (const hours of [[0, -48], [48, -48], [-48, 0], [-48, 48], [0, 0]] as const) {
    for (const [i, clock] of clocks.entries()) clock.set(hours[i]!)
    await loads.serial.more(50)
  }
  await expectAll(loads, place, web, consumer)
})

describe.each(modes)('with %s', (mode) => {
  test.skipIf(noTmpfs !== undefined)('a disk that is full while an entry is applied' +
    `${noTmpfs === undefined ? '' : ` (${noTmpfs})`}`, { timeout: 60_000 }, async () => {
    const disk = new SmallDisk(96)
    const databasePath = join(disk.path, 'numbers.db')
    const env = { DATABASE_PATH: databasePath, PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '3000' }
    const place = await makePlaceFor(mode, env)
    const gearbox = await startGearbox(place)
    const loads = load(gearbox.url)
    await loads.serial.more(50)
    disk.fill()
    const large = askFor(gearbox.url, 'large', 'large')
    await gearbox.printed(/nothing can be stored/)
    expect((await large).status).toBe(202)
    disk.makeRoom()
    await gearbox.printed(/storing batches again/)
    await loads.serial.more(50)
    const answer = await askFor(gearbox.url, 'large', 'large')
    expect(answer.status).toBe(201)
    loads.serial.answers.set('large', [answer])
    await expectAll(loads, place, gearbox)
    expect(query(databasePath, 'SELECT count(*) AS n FROM serial_large')).toEqual([{ n: 1 }])
  })

  test('SIGTERM while entries wait: each has its number, or its client knows that it has not', async () => {
    const place = await makePlaceFor(mode, { PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '3000' })
    const gearbox = await startGearbox(place)
    const loads = load(gearbox.url)
    for (let times = 0; times < 2; times++) await loads.serial.more(50)
    const thaw = freeze(await childOf(gearbox, 'apps/consumer'))
    await until('entries to wait', () => loads.serial.waiting === loads.serial.clients)
    gearbox.kill('SIGTERM')
    await until('it to stop', () => gearbox.output.includes('stopping (SIGTERM)'))
    thaw()
    expect(await gearbox.exited, gearbox.output).toBe(0)
    await Promise.all([loads.serial.stop(), loads.counts.stop()])
    // What could not be pushed waits in a file, and is pushed at the next start.
    const next = await startGearbox(place)
    await until('no files', () => !existsSync(unsentDir(place)) || readdirSync(unsentDir(place)).length === 0)
    await stop(next)
    expect(loads.serial.problems(place.databasePath)).toEqual([])
    expectExact(place.databasePath, loads.counts)
  })

  test('entries that end the transaction get an error, and nothing else does', { timeout: 60_000 }, async () => {
    const place = await makePlaceFor(mode, { PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '5000' })
    const gearbox = await startGearbox(place)
    const loads = load(gearbox.url)
    for (let i = 0; i < 10; i++) {
      await loads.serial.more(10)
      const key = i % 2 === 0 ? undefined : `key-${i}`
      expect(await askFor(gearbox.url, `poison-${i}`, key)).toMatchObject({ status: 500, code: 'GBX_PLUGIN_FAILED' })
    }
    await loads.serial.more(50)
    await expectAll(loads, place, gearbox)
    expect(gearbox.output).not.toContain('nothing can be stored')
  })
})

describe('releases that follow each other', () => {
  test('a batch of a newer version ends the consumer with one line; without it all goes on', async () => {
    const redis = await startRedis()
    const place = makePlace(redis.url, { PLUGINS: writeSerial() })
    const client = redis.client()
    onTestFinished(() => client.disconnect())
    const web = await startWeb(place)
    const first = await startConsumer(place)
    expect(await askFor(web.url, 'before')).toMatchObject({ status: 201, number: 1 })
    await stop(first)
    expect((await post(`${web.url}/increment?ack=queued`, 'a=1')).status).toBe(204)
    const newer = element({ producer: randomUUID(), seq: 1, sums: { a: 10 } }).toString().replace('"v":1', '"v":3')
    await client.rpush(batchesKey, newer)
    expect((await post(`${web.url}/increment?ack=queued`, 'a=100')).status).toBe(204)
    for (let times = 1; times <= 2; times++) {
      const consumer = launchConsumer(place, place.databasePath)
      expect(await consumer.exited, consumer.output).toBe(69)
      const lines = consumer.output.trim().split('\n').filter((line) => line.includes('version 3'))
      expect(lines).toEqual([expect.stringMatching(/a batch of version 3, and this consumer reads versions up to 2/)])
      expect(consumer.output).not.toMatch(/\n +at /)
      expect(readTotals(place.databasePath).get('a')).toBe(1n)
      expect(query(place.databasePath, 'SELECT * FROM rejected')).toEqual([])
    }
    expect(await client.lrange(batchesKey, 0, 0)).toEqual([newer])
    expect(await client.lpop(batchesKey)).toBe(newer)
    const consumer = await startConsumer(place)
    expect(await askFor(web.url, 'after')).toMatchObject({ status: 201, number: 2 })
    await stop(web, consumer)
    expect(readTotals(place.databasePath).get('a')).toBe(101n)
  })

  test('a batch with entries that the release before has set aside is applied once, whoever comes first', async () => {
    const redis = await startRedis()
    const place = makePlace(redis.url, { PLUGINS: writeSerial() })
    await stop(await startConsumer(place))
    const [retried, repeated] = [randomUUID(), randomUUID()].map((producer) =>
      element({ producer, seq: 1, sums: { a: 1 }, entries: [{ plugin: 'serial', data: producer }] }))
    // As that release files them: it takes a batch of version 2 for something else than a batch.
    const db = new Database(place.databasePath)
    for (const batch of [retried!, repeated!]) {
      const hash = createHash('sha256').update(batch).digest('hex')
      db.prepare("INSERT INTO rejected(reason, at, batch, hash) VALUES ('unreadable', ?, ?, ?)")
        .run(Date.now(), batch, hash)
    }
    db.close()
    const consumer = await startConsumer(place)
    const client = redis.client()
    onTestFinished(() => client.disconnect())
    const total = (): bigint | undefined => readTotals(place.databasePath).get('a')
    await client.rpush(batchesKey, repeated!)
    await until('the repeated one', () => total() === 1n)
    expect(await runCommand(place, 'rejected', ['--retry', 'all'])).toEqual({
      code: 1, output: expect.stringMatching(/^1: counted\n2: not counted, it came again and was counted then\n$/),
    })
    await client.rpush(batchesKey, retried!, repeated!)
    await until('all to be handled', async () => await client.llen(batchesKey) === 0)
    await stop(consumer)
    expect(total()).toBe(2n)
    expect(query(place.databasePath, 'SELECT number FROM serial_numbers')).toEqual([{ number: 1 }, { number: 2 }])
    expect(query(place.databasePath, 'SELECT count(*) AS n FROM results')).toEqual([{ n: 2 }])
    expect(query(place.databasePath, 'SELECT * FROM rejected')).toEqual([])
  })

  test('a database that the release before has used meanwhile is as good as before', async () => {
    const place = makePlace((await startRedis()).url, { PLUGINS: writeSerial(), ACK_TIMEOUT_MS: '5000' })
    const web = await startWeb(place)
    const first = await startConsumer(place)
    expect(await askFor(web.url, 'one', 'key')).toMatchObject({ status: 201, number: 1 })
    await stop(first)
    // What it writes of an idempotent request: it does not know the column of results.
    const db = new Database(place.databasePath)
    db.prepare('INSERT INTO once(id, sums_hash, at, elapsed_ms) VALUES (?, ?, ?, ?)').run('x', 'y', Date.now(), 1)
    db.close()
    const second = await startConsumer(place)
    expect(await askFor(web.url, 'one', 'key')).toMatchObject({ status: 201, number: 1 })
    expect(await askFor(web.url, 'two', 'other-key')).toMatchObject({ status: 201, number: 2 })
    await stop(web, second)
  })
})
