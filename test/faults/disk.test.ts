// A disk that is full or fails, and others that have the database open: the consumer loses nothing, says so once, and
// goes on when it can.
import { statSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { Load, readTotals, type Program } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import { later, until } from '@gearbox/test-kit/until.ts'
import {
  launchConsumer, makePlaceFor, modes, noStrace, noTmpfs, childOf, readiness, SmallDisk, startConsumer,
  startGearbox, stop, stopAndExpectExact, trace, type Mode,
} from './fixtures.ts'

/** A lock that a backup or a careless shell may hold. */
const heldMs = process.env.GEARBOX_LONG === '1' ? 30_000 : 3000

const trouble = 'nothing can be stored'

function count (program: Program, text: string): number {
  return program.output.split(text).length - 1
}

/**
 * A worker keeps what it can not store, and with Redis it is as ready as before.
 * @returns how often it counted "probe"
 */
async function expectToGoOn ({ url, output }: { url: string, output: string }, load: Load,
  mode: Mode): Promise<bigint> {
  await until('lag to rise', async () => await metric(url, 'gearbox_lag_seconds') > 0.5)
  if (mode === 'Redis') {
    expect(await readiness(url)).toBe(200)
    expect((await post(`${url}/increment?ack=queued`, 'probe=1')).status).toBe(204)
    expect((await post(`${url}/increment?ack=stored`, 'probe=1')).status, 'counted, and not stored yet').toBe(202)
    await load.more(20)
    return 2n
  }
  const late = (await post(`${url}/increment?ack=stored`, 'probe=1')).status
  expect([202, 503]).toContain(late)
  // Each worker finds out by itself.
  for (let asked = 1; asked <= 4; asked++) await until('readyz to say so', async () => await readiness(url) === 503)
  expect(await (await fetch(`${url}/readyz`)).text()).toMatch(/"nothing is stored: [^"]+"/)
  for (const level of ['queued', 'stored']) {
    const askedAt = performance.now()
    expect((await post(`${url}/increment?ack=${level}`, 'probe=1')).status).toBe(503)
    expect(performance.now() - askedAt).toBeLessThan(1000)
  }
  expect((await post(`${url}/increment?ack=memory`, 'probe=1')).status).toBe(202)
  // Until it works again, a stop could lose what waits.
  expect(output).not.toMatch(/[Nn]othing is lost|no data is lost/)
  expect(output).toMatch(/nothing can be stored .*before stopping.*UNSENT_DIR/)
  await load.more(20)
  return late === 202 ? 2n : 1n
}

describe.each(modes)('with %s', (mode) => {
  test.skipIf(noTmpfs !== undefined)(`a full disk${noTmpfs === undefined ? '' : ` (${noTmpfs})`}`, async () => {
    const disk = new SmallDisk(16)
    const place = await makePlaceFor(mode, { DATABASE_PATH: join(disk.path, 'numbers.db') })
    const gearbox = await startGearbox(place)
    const load = new Load(gearbox.url)
    await load.more(200)
    disk.fill()
    await gearbox.printed(RegExp(trouble))
    const probes = await expectToGoOn(gearbox, load, mode)
    expect(count(gearbox, trouble)).toBe(1)
    disk.makeRoom()
    await gearbox.printed(/storing batches again/)
    await until('readyz', async () => await readiness(gearbox.url) === 200)
    await load.more(200)
    await stopAndExpectExact(gearbox, place, load)
    expect(readTotals(place.databasePath).get('probe')).toBe(probes)
  })

  test.skipIf(noStrace !== undefined).each(['fdatasync,fsync',
    'pwrite64'])(`I/O errors of %s${noStrace === undefined ? '' : ` (${noStrace})`}`, async (calls) => {
    const place = await makePlaceFor(mode)
    const gearbox = await startGearbox(place)
    const load = new Load(gearbox.url)
    await load.more(200)
    const mend = await trace(await childOf(gearbox, 'apps/consumer'), calls, 'error=EIO:when=3+')
    await gearbox.printed(RegExp(trouble))
    const probes = await expectToGoOn(gearbox, load, mode)
    expect(count(gearbox, trouble)).toBe(1)
    await mend()
    await gearbox.printed(/storing batches again/)
    await load.more(200)
    await stopAndExpectExact(gearbox, place, load)
    expect(readTotals(place.databasePath).get('probe')).toBe(probes)
  })

  test.skipIf(noStrace !== undefined)('single I/O errors, each at another place of a ' +
    `commit${noStrace === undefined ? '' : ` (${noStrace})`}`, async () => {
    const place = await makePlaceFor(mode)
    const gearbox = await startGearbox(place)
    const load = new Load(gearbox.url)
    await load.more(200)
    const mend = await trace(await childOf(gearbox, 'apps/consumer'), 'pwrite64,fdatasync,fsync', 'error=EIO:when=2+7')
    await gearbox.printed(RegExp(trouble))
    await load.more(100)
    await mend()
    await load.more(200)
    await stopAndExpectExact(gearbox, place, load)
  })

  test('another process that holds the write lock for seconds', { timeout: heldMs + 30_000 }, async () => {
    const place = await makePlaceFor(mode)
    const gearbox = await startGearbox(place)
    const load = new Load(gearbox.url)
    await load.more(200)
    const other = new Database(place.databasePath, { timeout: 5000 })
    onTestFinished(() => { other.close() })
    other.exec('BEGIN IMMEDIATE')
    const heldAt = performance.now()
    await gearbox.printed(RegExp(trouble))
    const probes = await expectToGoOn(gearbox, load, mode)
    await later(Math.max(0, heldMs - (performance.now() - heldAt)))
    expect(count(gearbox, trouble)).toBe(1)
    other.exec('ROLLBACK')
    await gearbox.printed(/storing batches again/)
    await load.more(200)
    await stopAndExpectExact(gearbox, place, load)
    expect(readTotals(place.databasePath).get('probe')).toBe(probes)
  })
})

describe('a start', () => {
  test('while another process holds the write lock waits for it', async () => {
    const place = await makePlaceFor('the embedded queue')
    await stop(await startGearbox(place))
    const other = new Database(place.databasePath)
    onTestFinished(() => { other.close() })
    other.exec('BEGIN IMMEDIATE')
    const start = startGearbox(place)
    const early = await Promise.race([start.then(() => 'started', (error: unknown) => String(error)), later(2000)])
    expect(early).toBe(undefined)
    other.exec('ROLLBACK')
    const gearbox = await start
    expect((await post(`${gearbox.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    await stop(gearbox)
  })

  test.skipIf(noTmpfs !== undefined)('on a full disk says so in one ' +
    `line${noTmpfs === undefined ? '' : ` (${noTmpfs})`}`, async () => {
    const disk = new SmallDisk(16)
    const place = await makePlaceFor('Redis', { DATABASE_PATH: join(disk.path, 'numbers.db') })
    const killed = await startConsumer(place)
    killed.kill('SIGKILL')
    await killed.exited
    disk.fill()
    const consumer = launchConsumer(place, place.databasePath)
    expect(await consumer.exited, consumer.output).toBe(1)
    expect(consumer.output).toMatch(/^gearbox: .*numbers\.db .*disk/m)
    expect(consumer.output).not.toMatch(/unexpected|\n +at /)
    disk.makeRoom()
    await stop(await startConsumer(place))
  })
})

test('a reader that stays makes the WAL grow, and when it has left the WAL is cut back',
  { timeout: 60_000 }, async () => {
    const walBytesMax = 64 * 2 ** 20
    const place = await makePlaceFor('the embedded queue', { COMMIT_INTERVAL_MS: '0' })
    const gearbox = await startGearbox(place)
    const bodies = Array.from({ length: 40 },
      (_, body) => Array.from({ length: 1000 },
        (_, i) => `${(i * 40 + body).toString(36)}-${body}-${'x'.repeat(30)}=1`).join('&'))
    let posts = 0
    const postAll = async (): Promise<void> => {
      expect(await Promise.all(bodies.map(async (body) =>
        (await post(`${gearbox.url}/increment?ack=memory`, body)).status))).toEqual(bodies.map(() => 202))
      posts++
    }
    const walBytes = (): number => statSync(`${place.databasePath}-wal`).size
    await postAll()
    const reader = new Database(place.databasePath, { readonly: true })
    onTestFinished(() => { reader.close() })
    reader.exec('BEGIN')
    reader.prepare('SELECT count(*) FROM numbers').get()
    await until('the WAL to grow', async () => {
      await postAll()
      return walBytes() > walBytesMax
    }, 40_000)
    reader.exec('COMMIT')
    await until('the WAL to be cut back', async () => {
      await postAll()
      return walBytes() <= walBytesMax
    })
    gearbox.kill('SIGTERM')
    expect(await gearbox.exited).toBe(0)
    const totals = readTotals(place.databasePath)
    expect(totals.size).toBe(40_000)
    expect(new Set(totals.values())).toEqual(new Set([BigInt(posts)]))
  })
