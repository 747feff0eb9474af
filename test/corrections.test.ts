// Corrections of totals, as an administrator makes them: over HTTP with an API key, and by the command on the host of
// the database. On both queues, while others count.
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post, send, type Reply } from '@gearbox/test-kit/client.ts'
import { endWithTest, readTotals, root, startAll } from '@gearbox/test-kit/gearbox.ts'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'

interface Place { readonly url: string, readonly databasePath: string }

async function startRedis (): Promise<RedisServer> {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  return redis
}

async function start (queue: 'redis' | 'embedded', env: NodeJS.ProcessEnv = {}): Promise<Place> {
  const databasePath = join(temporaryDir(), 'numbers.db')
  const redis = queue === 'redis' ? { REDIS_URL: (await startRedis()).url } : {}
  const keys = { API_KEYS: 'admin:boss,count:clerk,read:reader' }
  const { url } = endWithTest(await startAll({ DATABASE_PATH: databasePath, ...keys, ...redis, ...env }))
  return { url, databasePath }
}

const boss = { authorization: 'Bearer boss' }

async function correct (
  { url }: Place, method: 'PUT' | 'DELETE', path: string, headers: Record<string, string> = {}, body?: string
): Promise<Reply & { readonly json: unknown }> {
  const form = body === undefined ? {} : { 'content-type': 'application/x-www-form-urlencoded' }
  const reply = await send(`${url}/totals${path}`, { method, headers: { ...boss, ...form, ...headers }, body })
  return { ...reply, json: reply.text.startsWith('{') ? JSON.parse(reply.text) : undefined }
}

async function count ({ url }: Place, body: string): Promise<void> {
  expect((await post(`${url}/increment?ack=stored`, body, boss)).status).toBe(204)
}

function corrections ({ databasePath }: Place): unknown[] {
  const db = new Database(databasePath, { readonly: true })
  try {
    return db.prepare('SELECT key, before, after, by FROM corrections ORDER BY rowid').safeIntegers().all()
  } finally {
    db.close()
  }
}

describe.each(['redis', 'embedded'] as const)('with the %s queue', (queue) => {
  test('an administrator sets and removes totals, with every digit', async () => {
    const place = await start(queue)
    await count(place, 'foo=5')
    expect((await correct(place, 'PUT', '/foo?total=12')).json).toEqual({ key: 'foo', before: 5, after: 12 })
    await count(place, 'foo=1')
    expect((await correct(place, 'PUT', '?key=foo', {}, 'total=-9223372036854775808')).text)
      .toBe('{"key":"foo","before":13,"after":-9223372036854775808}')
    expect((await correct(place, 'PUT', '?key=a%2Fb&total=9223372036854775807&numbers=string')).json)
      .toEqual({ key: 'a/b', before: null, after: '9223372036854775807' })
    expect((await correct(place, 'DELETE', '/foo')).text)
      .toBe('{"key":"foo","before":-9223372036854775808,"after":null}')
    expect(readTotals(place.databasePath)).toEqual(new Map([['a/b', 9223372036854775807n]]))
    expect((await correct(place, 'DELETE', '/foo')).json).toMatchObject({ code: 'GBX_NOT_FOUND' })
    const by = expect.stringMatching(/^API key [0-9a-f]{8}$/)
    expect(corrections(place)).toEqual([
      { key: 'foo', before: 5n, after: 12n, by },
      { key: 'foo', before: 13n, after: -9223372036854775808n, by },
      { key: 'a/b', before: null, after: 9223372036854775807n, by },
      { key: 'foo', before: -9223372036854775808n, after: null, by },
    ])
  })

  test('a correction with if-total is made only if the total is that', async () => {
    const place = await start(queue)
    await count(place, 'foo=5')
    const refused = await correct(place, 'PUT', '/foo?total=7&if-total=6')
    expect([refused.status, refused.json]).toEqual([412, expect.objectContaining({ code: 'GBX_PRECONDITION_FAILED' })])
    expect((await correct(place, 'PUT', '/foo?total=7&if-total=5')).status).toBe(200)
    expect((await correct(place, 'DELETE', '/foo?if-total=5')).status).toBe(412)
    expect(readTotals(place.databasePath)).toEqual(new Map([['foo', 7n]]))
    expect(corrections(place)).toHaveLength(1)
  })

  test('with an Idempotency-Key a correction is made once, and has the same reply again', async () => {
    const place = await start(queue)
    await count(place, 'foo=5')
    const once = { 'idempotency-key': 'one' }
    const first = await correct(place, 'PUT', '/foo?total=7', once)
    await count(place, 'foo=1')
    expect((await correct(place, 'PUT', '/foo?total=7', once)).text).toBe(first.text)
    expect(readTotals(place.databasePath).get('foo')).toBe(8n)
    expect((await correct(place, 'PUT', '/foo?total=9', once)).json).toMatchObject({ code: 'GBX_OTHER_BODY' })
    // The key means something else for another key, and for another method.
    expect((await correct(place, 'PUT', '/bar?total=7', once)).status).toBe(200)
    expect((await correct(place, 'DELETE', '/foo', once)).json).toEqual({ key: 'foo', before: 8, after: null })
  })

  test('what was answered before a correction is in its "before", and what comes after is added', async () => {
    const place = await start(queue, { COMMIT_INTERVAL_MS: '100', ACK: 'queued' })
    let expected = 0n
    for (let i = 0; i < 20; i++) {
      const counts = Array.from({ length: 10 }, async () => await post(`${place.url}/increment`, 'foo=3&bar=1', boss))
      for (const { status } of await Promise.all(counts)) expect(status).toBe(204)
      const { json } = await correct(place, 'PUT', `/foo?total=${i}`)
      expect(json).toEqual({ key: 'foo', before: Number(expected + 30n), after: i })
      expected = BigInt(i)
    }
    await count(place, 'foo=1')
    expect(readTotals(place.databasePath)).toEqual(new Map([['foo', expected + 1n], ['bar', 200n]]))
  })

  test('the command sets a total while others count', async () => {
    const place = await start(queue)
    await count(place, 'foo=5')
    expect(runSet(place, 'foo', '-7')).toEqual({ code: 0, out: '"foo": 5 → -7\n', err: '' })
    await count(place, 'foo=1')
    expect(runSet(place, 'foo', '0', '--if-total', '5'))
      .toMatchObject({ code: 1, err: expect.stringContaining('is -6') })
    expect(runSet(place, 'foo', '--if-total', '-6', '-8')).toMatchObject({ code: 0, out: '"foo": -6 → -8\n' })
    expect(runSet(place, 'foo', '--delete')).toMatchObject({ code: 0, out: '"foo": -8 → no total\n' })
    expect(runSet(place, 'foo', '--delete')).toMatchObject({ code: 1 })
    expect(readTotals(place.databasePath)).toEqual(new Map())
    expect(corrections(place)).toMatchObject(Array(3).fill({ by: 'gearbox set' }))
  })
})

test('nobody corrects totals but an administrator', async () => {
  const place = await start('embedded')
  await count(place, 'foo=5')
  for (const [authorization, status] of [['', 401], ['Bearer clerk', 403], ['Bearer reader', 403]] as const) {
    for (const method of ['PUT', 'DELETE'] as const) {
      const headers = authorization === '' ? { authorization: 'Bearer nobody' } : { authorization }
      expect((await correct(place, method, '/foo?total=1', headers)).status, authorization).toBe(status)
    }
  }
  const page = await correct(place, 'PUT', '/foo?total=1', { origin: 'https://evil.example' })
  expect(page.json).toMatchObject({ code: 'GBX_FORBIDDEN_ORIGIN' })
  for (const header of [{ 'content-type': 'application/json' }, { 'content-encoding': 'gzip' }]) {
    expect((await correct(place, 'PUT', '/foo', header, 'total=1')).status, JSON.stringify(header)).toBe(415)
  }
  expect(readTotals(place.databasePath)).toEqual(new Map([['foo', 5n]]))
})

test.each([
  ['no API key at all', {}],
  ['API keys of which none is for an administrator', { API_KEYS: 'boss' }],
])('with %s the routes are not there', async (_name, env) => {
  const databasePath = join(temporaryDir(), 'numbers.db')
  const { url } = endWithTest(await startAll({ DATABASE_PATH: databasePath, ...env }))
  for (const method of ['PUT', 'DELETE'] as const) {
    const { status, json } = await correct({ url, databasePath }, method, '/foo')
    expect([status, json]).toEqual([404, expect.objectContaining({ code: 'GBX_NOT_FOUND' })])
  }
  const { paths } = JSON.parse((await send(`${url}/docs/json`, { headers: boss })).text)
  expect(Object.keys(paths['/totals'])).toEqual(['get'])
})

test('what can not be read is refused by name, and changes nothing', async () => {
  const place = await start('embedded')
  await count(place, 'foo=5')
  for (const [path, body, status, message] of [
    ['/foo', undefined, 400, /total=N/],
    ['?total=1', undefined, 400, /name the key/],
    ['/foo?total=x', undefined, 400, /"total"/],
    ['/foo?total=9223372036854775808', undefined, 400, /"total".*64 bits/],
    ['/foo?total=1&if-total=1.5', undefined, 400, /"if-total"/],
    ['/foo?total=1&iftotal=1', undefined, 400, /if-total/],
    ['/foo?total=1', 'total=1', 400, /not in both/],
    ['/foo', 'value=1', 400, /total=N/],
    ['/foo', 'total=1&total=2', 400, /pairs/],
    [`/${'x'.repeat(257)}?total=1`, undefined, 400, /257 bytes/],
    ['/a%01b?total=1', undefined, 400, /control/],
  ] as const) {
    const reply = await correct(place, 'PUT', path, {}, body)
    expect([reply.status, reply.json], path).toEqual([status, expect.objectContaining({
      message: expect.stringMatching(message),
    })])
  }
  for (const words of [[], ['foo'], ['foo', '1', '2'], ['foo', 'x'], ['foo', '1', '--delete'], ['\u0001', '1'],
    ['foo', '1', '--if-total', 'x']]) {
    expect(runSet(place, ...words), words.join(' ')).toMatchObject({ code: 64, out: '' })
  }
  expect(runSet(place, 'foo', '1', '--port', '2').err).toContain('PORT=2 npm run gearbox -- set')
  expect(readTotals(place.databasePath)).toEqual(new Map([['foo', 5n]]))
  expect(corrections(place)).toEqual([])
})

interface Ran { readonly code: number | null, readonly out: string, readonly err: string }

function runSet ({ databasePath }: Place, ...words: readonly string[]): Ran {
  const { status, stdout, stderr } = spawnSync('./run-node', ['bin/gearbox.ts', 'set', ...words], {
    cwd: root, encoding: 'utf8', env: { ...process.env, DATABASE_PATH: databasePath },
  })
  return { code: status, out: stdout, err: stderr }
}
