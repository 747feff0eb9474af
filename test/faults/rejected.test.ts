// `npm run rejected`: what was promised and could not be counted is there, what was refused is not, and the command is
// one that can be relied on.
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { readTotals, root, type Program } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import { later, until } from '@gearbox/test-kit/until.ts'
import {
  batchesKey, freeze, makePlace, makePlaceFor, modes, childOf, query, runCommand, startGearbox,
  startRedis, stop, type Place,
} from './fixtures.ts'

const int64Max = 2n ** 63n - 1n

async function add (gearbox: { readonly url: string }, ack: string, body: string, key?: string): Promise<{
  status: number
  text: string
}> {
  return await post(`${gearbox.url}/increment?ack=${ack}`, body, key === undefined ? {} : { 'idempotency-key': key })
}

const rows = (place: Place): unknown[] => query(place.databasePath, 'SELECT reason FROM rejected ORDER BY id')

describe.each(modes)('with %s', (mode) => {
  test('what was refused to a client is not counted later', async () => {
    const place = await makePlaceFor(mode, { ACK_TIMEOUT_MS: '5000' })
    const gearbox = await startGearbox(place)
    expect((await add(gearbox, 'stored', 'foo=1', 'k')).status).toBe(204)
    expect(await add(gearbox, 'stored', 'foo=2', 'k'))
      .toMatchObject({ status: 422, text: expect.stringContaining('GBX_OTHER_BODY') })
    expect((await add(gearbox, 'stored', `full=${int64Max}`)).status).toBe(204)
    let [refused, counted] = [0, 0]
    await Promise.all(Array.from({ length: 8 }, async () => {
      for (let i = 0; i < 20; i++) {
        const { status } = await add(gearbox, 'stored', `full=1&bar=1&n${i}=1`, i % 4 === 0 ? randomUUID() : undefined)
        expect([202, 422]).toContain(status)
        if (status === 422) refused++
        if (status === 422 && i % 4 !== 0) counted++
      }
    }))
    expect(refused).toBe(160)
    await stop(gearbox)
    expect(rows(place)).toEqual([])
    expect(await runCommand(place, 'rejected', ['--retry', 'all'])).toEqual({ code: 0, output: '' })
    const totals = readTotals(place.databasePath)
    expect([totals.get('foo'), totals.get('full'), totals.get('bar')]).toEqual([1n, int64Max, BigInt(counted)])
  })

  test('where totals leave 64 bits at all levels at once, refused and kept ones are distinguished ' +
    'to the last', async () => {
    const place = await makePlaceFor(mode, { ACK_TIMEOUT_MS: '5000' })
    const gearbox = await startGearbox(place)
    expect((await add(gearbox, 'stored', `full=${int64Max}`)).status).toBe(204)
    let promised = 0n
    const statuses = new Set<string>()
    await Promise.all(Array.from({ length: 12 }, async (_, client) => {
      for (let i = 0; i < 30; i++) {
        const ack = ['memory', 'queued', 'stored', 'stored', 'stored'][(client + i) % 5]!
        const { status } = await add(gearbox, ack, `full=${client + 1}`)
        statuses.add(`${ack} ${status}`)
        if (status < 300) promised += BigInt(client + 1)
      }
    }))
    expect(statuses).toContain('stored 422')
    await stop(gearbox)
    const db = new Database(place.databasePath)
    const kept = db.prepare<[], bigint>('SELECT value FROM rejected').pluck().safeIntegers().all()
      .reduce((sum, value) => sum + value, 0n)
    expect(kept).toBe(promised)
    db.exec('UPDATE numbers SET value = 0')
    db.close()
    const { code, output } = await runCommand(place, 'rejected', ['--retry', 'all'])
    expect(code, output).toBe(0)
    expect(readTotals(place.databasePath)).toEqual(new Map([['full', promised]]))
  })

  test('what became a 202 as the consumer stood still is kept', async () => {
    const place = await makePlaceFor(mode, { ACK_TIMEOUT_MS: '500', WEB_WORKERS: '1' })
    const gearbox = await startGearbox(place)
    expect((await add(gearbox, 'stored', `full=${int64Max}`)).status).toBe(204)
    const thaw = freeze(await childOf(gearbox, 'apps/consumer'))
    const late = await Promise.all([add(gearbox, 'stored', 'full=5&a=1'), add(gearbox, 'stored', 'full=6&a=1', 'k')])
    expect(late.map(({ status }) => status)).toEqual([202, 202])
    thaw()
    await until('both to be kept', () => rows(place).length === 2)
    await stop(gearbox)
    expect(query(place.databasePath, 'SELECT value, sums FROM rejected ORDER BY once'))
      .toEqual([{ value: 5, sums: null }, { value: null, sums: '{"full":6,"a":1}' }])
    expect(readTotals(place.databasePath).get('a')).toBe(1n)
  })
})

test('what is set aside after a 204 is in the metrics from their start, in the log and in the list, and can ' +
  'be discarded', async () => {
  const place = makePlace((await startRedis()).url)
  const gearbox = await startGearbox(place)
  for (const name of ['gearbox_set_aside_total', 'gearbox_rejected_rows', 'gearbox_rejected_dropped_total']) {
    expect(await metric(gearbox.url, name), name).toBe(0)
  }
  const text = await (await fetch(`${gearbox.url}/metrics`)).text()
  for (const reason of ['overflow', 'unreadable', 'other body', 'too late', 'trigger']) {
    expect(text).toContain(`gearbox_rejected_total{reason="${reason}"} 0`)
  }
  expect((await add(gearbox, 'stored', 'foo=1', 'k')).status).toBe(204)
  expect((await add(gearbox, 'queued', 'foo=2&bar=-3', 'k')).status).toBe(204)
  await until('it to be set aside', async () => await metric(gearbox.url, 'gearbox_set_aside_total') === 1)
  expect(await metric(gearbox.url, 'gearbox_rejected_rows')).toBe(1)
  await gearbox.printed(/an Idempotency-Key came again with another body.*npm run rejected/)
  const list = (await runCommand(place, 'rejected', [])).output
  expect(list).toMatch(/^1: other body: "foo" 2, "bar" -3 \(20\d\d-.*Z, worker [0-9a-f-]{36}, batch \d+\)\n$/)
  expect(await runCommand(place, 'rejected', ['--discard', '2']))
    .toEqual({ code: 1, output: '2: there is no such entry\n' })
  expect(await runCommand(place, 'rejected', ['--discard', '1'])).toEqual({ code: 0, output: '1: discarded\n' })
  expect((await runCommand(place, 'rejected', [])).output).toBe('nothing was rejected\n')
  expect(await metric(gearbox.url, 'gearbox_rejected_rows')).toBe(0)
  await stop(gearbox)
  expect(readTotals(place.databasePath)).toEqual(new Map([['foo', 1n]]))
})

test('a batch whose time or sequence is out of range is set aside, and neither it nor a row from before ' +
  'ends a command', async () => {
  const redis = await startRedis()
  const client = redis.client()
  onTestFinished(() => client.disconnect())
  const place = makePlace(redis.url)
  const gearbox = await startGearbox(place)
  const batch = {
    v: 1,
    producer: randomUUID(),
    seq: 1,
    at: 1,
    requests: 1,
    increments: 1,
    sums: { poison: 1 },
    once: [],
  }
  for (const wrong of [{ at: 9e15 }, { seq: 9e15 }, { seq: 999_999_999_999_999 }]) {
    await client.rpush(batchesKey, JSON.stringify({ ...batch, ...wrong }))
    expect((await add(gearbox, 'stored', 'behind=1')).status).toBe(204)
  }
  expect(rows(place)).toEqual([{ reason: 'unreadable' }, { reason: 'unreadable' }])
  const db = new Database(place.databasePath)
  db.exec("INSERT INTO rejected(key, value, reason, at) VALUES ('old', 1, 'overflow', 9000000000000000)")
  db.close()
  expect((await runCommand(place, 'rejected', [])).output)
    .toMatch(/^1: unreadable: a batch of \d+ bytes .*\n2: .*\n3: overflow: "old" 1 \(at 9000000000000000\)\n$/)
  const verify = spawn(process.execPath, ['bin/gearbox.ts', 'verify', '--url', gearbox.url],
    { cwd: root, env: { ...process.env, ...place.env }, stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  verify.stdout.on('data', (chunk) => { output += String(chunk) })
  await new Promise((resolve) => verify.once('close', resolve))
  // One that was never pushed is missing, and the output says so in one line.
  expect(output).toMatch(/batches 1 to 999999999999998 are MISSING/)
  await stop(gearbox)
})

describe('the list in a pipe', () => {
  const count = 20_020

  async function start (): Promise<{ place: Place, list: () => ReturnType<typeof spawn> }> {
    const place = makePlace(undefined)
    const gearbox: Program = await startGearbox(place)
    await stop(gearbox)
    const db = new Database(place.databasePath)
    db.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${count})
      INSERT INTO rejected(producer, seq, key, value, reason, at)
      SELECT 'w', i, 'counter ' || i, i, 'overflow', 0 FROM n`)
    db.close()
    return {
      place,
      list: () => spawn(process.execPath, ['bin/gearbox.ts', 'rejected'],
        { cwd: root, env: { ...process.env, ...place.env }, stdio: ['ignore', 'pipe', 'pipe'] }),
    }
  }

  test('arrives whole, however slowly it is read', async () => {
    const { list } = await start()
    const child = list()
    let lines = 0
    await later(500)
    const stdout = child.stdout!
    stdout.on('data', (chunk: Buffer) => {
      for (const byte of chunk) if (byte === 0x0a) lines++
      stdout.pause()
      setTimeout(() => stdout.resume(), 1)
    })
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0)
    expect(lines).toBe(count)
  })

  test('ends quietly when its reader has seen enough', async () => {
    const { list } = await start()
    const child = list()
    let errors = ''
    child.stderr!.on('data', (chunk) => { errors += String(chunk) })
    child.stdout!.once('data', () => child.stdout!.destroy())
    expect(await new Promise((resolve) => child.once('exit', resolve))).toBe(0)
    expect(errors).toBe('')
  })
})
