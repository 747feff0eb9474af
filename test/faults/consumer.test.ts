// A consumer that is killed between any two of its steps, stands still, has a rival, or is away: nothing is lost or
// counted twice.
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { Load, readTotals } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import { later, until } from '@gearbox/test-kit/until.ts'
import {
  batchesKey, expectExact, freeze, launchConsumer, makePlace, makePlaceFor, noStrace, childOf, query,
  runCommand, startConsumer, startGearbox, startRedis, startWeb, stop, stopAndExpectExact, trace, tracing,
} from './fixtures.ts'

const why = noStrace === undefined ? '' : ` (${noStrace})`

const long = process.env.GEARBOX_LONG === '1'

/** Filling and storing as much as UNSTORED_BYTES_MAX is unless set, in two workers, takes most of a minute. */
const windowBytes = long ? 64 * 2 ** 20 : 100_000

/** Calls of a consumer, counted from its start or from when the tracer attached. */
const files = 'pwrite64,fdatasync,fsync'
const sockets = 'write,writev'

describe.skipIf(noStrace !== undefined)(`killed at a system call${why}`, () => {
  test.each<[what: string, calls: string, places: readonly number[]]>([
    ['of its files', files, [1, 2, 9, 20, 21, 22, 23, 24, 25, 26, 40, 75]],
    // The last ones take and acknowledge batches, and report them.
    ['of its sockets', sockets, [1, 12, 30, 31, 32, 33, 34, 35]],
  ])('%s, from its start on, with Redis', { timeout: 60_000 }, async (_what, calls, places) => {
    const place = makePlace((await startRedis()).url)
    const web = await startWeb(place)
    const load = new Load(web.url)
    for (const nth of places) {
      const consumer = launchConsumer(place, place.databasePath, tracing(calls, `signal=SIGKILL:when=${nth}`))
      expect(await consumer.exited, `call ${nth}: ${consumer.output}`).toBe('SIGKILL')
      await load.more(20)
    }
    const consumer = await startConsumer(place)
    await load.more(100)
    await load.stop()
    await stop(web, consumer)
    expectExact(place.databasePath, load)
  })

  test('under npm start, with the embedded queue', { timeout: 60_000 }, async () => {
    const place = await makePlaceFor('the embedded queue')
    const gearbox = await startGearbox(place)
    const load = new Load(gearbox.url)
    for (const [calls, nth] of [[files, 1], [files, 2], [files, 3], [files, 4], [files, 5], [sockets, 1], [sockets, 2],
      [sockets, 5]] as const) {
      await load.more(50)
      const pid = await childOf(gearbox, 'apps/consumer')
      await trace(pid, calls, `signal=SIGKILL:when=${nth}`)
      await until('another consumer', () => gearbox.children('apps/consumer').some((part) => part.pid !== pid))
    }
    await load.more(100)
    await stopAndExpectExact(gearbox, place, load)
  })
})

describe('two consumers of one database', () => {
  test('that start at once: one goes on, the other ends with 69, and nothing is lost or counted twice', async () => {
    const place = makePlace((await startRedis()).url)
    const web = await startWeb(place)
    const load = new Load(web.url)
    // The first time they both find no database.
    for (let times = 1; times <= 3; times++) {
      const rivals = [launchConsumer(place, place.databasePath), launchConsumer(place, place.databasePath)]
      const [left, goesOn] = await Promise.race(rivals.map(async (rival, i) => {
        await rival.exited
        return [rival, rivals[1 - i]!] as const
      }))
      expect(left.output).not.toMatch(/unexpected|\n +at /)
      expect(await left.exited, left.output).toBe(69)
      await goesOn.printed(/consuming from/)
      await load.more(100)
      expect((await post(`${web.url}/increment?ack=stored`, 'probe=1')).status).toBe(204)
      await stop(goesOn)
    }
    const last = await startConsumer(place)
    await load.stop()
    await stop(web, last)
    expectExact(place.databasePath, load)
  })

  test('of which the older stands still while the newer starts: when it goes on it ends with 69', async () => {
    const place = makePlace((await startRedis()).url)
    const web = await startWeb(place)
    const load = new Load(web.url)
    const older = await startConsumer(place)
    await load.more(200)
    // Not in the middle of a transaction, which would keep everybody else out.
    const thaw = await freezeIdle(older.pid, place.databasePath)
    const newer = await startConsumer(place)
    await load.more(200)
    thaw()
    expect(await older.exited, older.output).toBe(69)
    expect(older.output).toMatch(/another consumer has superseded this one/)
    await load.more(100)
    await load.stop()
    await stop(web, newer)
    expectExact(place.databasePath, load)
  })

  test.skipIf(noStrace !== undefined)('of which the older stands still in the middle of a commit: the newer waits ' +
    `for it and then goes on${why}`, async () => {
    const place = makePlace((await startRedis()).url)
    const web = await startWeb(place)
    const load = new Load(web.url)
    const older = launchConsumer(place, place.databasePath, tracing('fdatasync,fsync', 'signal=SIGSTOP:when=60'))
    await older.printed(/consuming from/)
    let locked = 0
    // No commit takes as long as thirty checks.
    await until('it to stand still', () => {
      locked = isFree(place.databasePath) ? 0 : locked + 1
      return locked > 30
    })
    const newer = launchConsumer(place, place.databasePath)
    await later(1000)
    process.kill(older.pid, 'SIGCONT')
    await newer.printed(/consuming from/)
    expect(await older.exited, older.output).toBe(69)
    await load.more(100)
    await load.stop()
    await stop(web, newer)
    expectExact(place.databasePath, load)
  })
})

describe('no replay storm', () => {
  test(`a consumer that comes back to workers that each have ${windowBytes} bytes in their window: no batch is ` +
    'pushed twice', { timeout: long ? 180_000 : 30_000 }, async () => {
    const redis = await startRedis()
    const client = redis.client()
    onTestFinished(() => client.disconnect())
    const place = makePlace(redis.url, { UNSTORED_BYTES_MAX: String(windowBytes) })
    const webs = [await startWeb(place), await startWeb(place)]
    const consumer = await startConsumer(place)
    const loads = webs.map(({ url }, i) => new Load(url, `load ${i}`))
    for (const load of loads) await load.more(100)
    consumer.kill('SIGKILL')
    await consumer.exited
    const filler = Array.from({ length: 250 }, (_, i) => `${i}${'-'.repeat(200)}=1`).join('&')
    await Promise.all(webs.map(async (web) => {
      await until('its window to be full', async () => {
        expect((await post(web.url, filler)).status).toBe(204)
        return web.output.includes('UNSTORED_BYTES_MAX')
      }, 60_000)
    }))
    const next = await startConsumer(place)
    for (const load of loads) await load.more(200)
    for (const load of loads) await load.stop()
    await until('the queue to be empty', async () => await client.llen(batchesKey) === 0, 60_000)
    let pushed = 0
    for (const web of webs) {
      expect(await metric(web.metricsUrl, 'gearbox_window_replays_total')).toBe(0)
      pushed += await metric(web.metricsUrl, 'gearbox_batches_pushed_total')
    }
    expect(query(place.databasePath, 'SELECT sum(high) AS high FROM producers')).toEqual([{ high: pushed }])
    await stop(...webs, next)
    for (const load of loads) expectExact(place.databasePath, load)
  })

  test.each(['SIGSTOP',
    'SIGKILL'] as const)('an embedded consumer that gets %s: at most one replay a worker, and one ' +
      'batch in each', async (signal) => {
    const place = await makePlaceFor('the embedded queue')
    const gearbox = await startGearbox(place)
    const load = new Load(gearbox.url)
    await load.more(200)
    const pid = await childOf(gearbox, 'apps/consumer')
    if (signal === 'SIGSTOP') {
      const thaw = freeze(pid)
      // The embedded queue's answers are given up after 2 s.
      await later(2500)
      thaw()
    } else {
      process.kill(pid, signal)
      await until('another consumer', () => gearbox.children('apps/consumer').some((part) => part.pid !== pid))
    }
    await load.more(200)
    expect(await metric(gearbox.url, 'gearbox_window_replays_total')).toBeLessThanOrEqual(signal === 'SIGSTOP' ? 0 : 2)
    expect(await metric(gearbox.url, 'gearbox_batches_duplicate_total'))
      .toBeLessThanOrEqual(signal === 'SIGSTOP' ? 0 : 2)
    await stopAndExpectExact(gearbox, place, load)
  })
})

test('what has left a window (UNSTORED_BYTES_MAX) is kept by Redis alone, through its death and that of ' +
  'the worker', async () => {
  const redis = await startRedis()
  const place = makePlace(redis.url, { UNSTORED_BYTES_MAX: '2048' })
  const [web, other] = [await startWeb(place), await startWeb(place)]
  const loads = [new Load(web.url), new Load(other.url, 'other')]
  await web.printed(/UNSTORED_BYTES_MAX/)
  await redis.kill()
  await redis.startAgain()
  for (const load of loads) await load.more(100)
  web.kill('SIGKILL')
  await loads[0]!.stop()
  const consumer = await startConsumer(place)
  await loads[1]!.more(100)
  await loads[1]!.stop()
  await stop(other, consumer)
  expectExact(place.databasePath, loads[0]!, ['memory'])
  expectExact(place.databasePath, loads[1]!)
})

test('a worker that is stopped while an embedded consumer stands still leaves a file, the next worker pushes it, and ' +
  'all counts once', async () => {
  const place = await makePlaceFor('the embedded queue', { WEB_WORKERS: '1' })
  const gearbox = await startGearbox(place)
  expect((await post(`${gearbox.url}/increment?ack=stored`, 'a=1')).status).toBe(204)
  const worker = await childOf(gearbox, 'apps/web')
  const thaw = freeze(await childOf(gearbox, 'apps/consumer'))
  // The first batch is on its way to the consumer, the second waits behind it.
  expect((await post(`${gearbox.url}/increment?ack=queued`, 'a=10')).status, 'not reached in time').toBe(202)
  expect((await post(`${gearbox.url}/increment?ack=memory`, 'a=100', { 'idempotency-key': 'k' })).status).toBe(202)
  process.kill(worker, 'SIGTERM')
  const unsentFiles = (): string[] => existsSync(join(place.dir, 'data', 'unsent'))
    ? readdirSync(join(place.dir, 'data', 'unsent'))
    : []
  await until('the file', () => unsentFiles().some((name) => name.endsWith('.jsonl')))
  thaw()
  await until('the file to go', () => unsentFiles().length === 0)
  expect((await post(`${gearbox.url}/increment?ack=stored`, 'a=100', { 'idempotency-key': 'k' })).status).toBe(204)
  await stop(gearbox)
  expect(readTotals(place.databasePath)).toEqual(new Map([['a', 111n]]))
})

test('a restored copy is refused with 69 until a rebind, and then counts what is still to come', async () => {
  const place = makePlace((await startRedis()).url)
  const web = await startWeb(place)
  let consumer = await startConsumer(place)
  const before = new Load(web.url, 'before')
  await before.more(200)
  const copy = `${place.databasePath}.copy`
  expect((await runCommand(place, 'backup', [copy])).code).toBe(0)
  const kept = readTotals(copy)
  await before.more(100)
  await before.stop()
  await until('all to be stored', () => before.problems(readTotals(place.databasePath)).length === 0)
  await stop(consumer)

  const refused = launchConsumer(place, copy)
  expect(await refused.exited, refused.output).toBe(69)
  expect(refused.output).toContain('npm run rebind')
  expect(readTotals(copy)).toEqual(kept)

  const after = new Load(web.url, 'after')
  await after.more(50)
  const rebound = await runCommand(place, 'rebind', [copy])
  expect(rebound.code, rebound.output).toBe(0)
  consumer = await startConsumer(place, copy)
  await after.more(100)
  await after.stop()
  await stop(web, consumer)
  expect(after.problems(readTotals(copy))).toEqual([])
  for (const [key, total] of kept) expect(readTotals(copy).get(key)).toBe(total)

  // Now the one that it was copied from is the stranger.
  const stranger = launchConsumer(place, place.databasePath)
  expect(await stranger.exited, stranger.output).toBe(69)
  expect(existsSync(copy)).toBe(true)
})

async function freezeIdle (pid: number, path: string): Promise<() => void> {
  return await until('it to stand still outside of a transaction', () => {
    const thaw = freeze(pid)
    if (isFree(path)) return thaw
    thaw()
    return undefined
  })
}

function isFree (path: string): boolean {
  const db = new Database(path, { timeout: 0 })
  try {
    db.exec('BEGIN IMMEDIATE; ROLLBACK')
    return true
  } catch {
    return false
  } finally {
    db.close()
  }
}
