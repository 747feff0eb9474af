// Web workers and consumer as separate programs around a Redis, as a real deployment runs them.
import { randomUUID } from 'node:crypto'
import { spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync } from 'node:fs'
import { request } from 'node:http'
import { connect, createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, listening, Load, Program, readTotals, startAll } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

const webModule = 'apps/web/src/main.ts'
const consumerModule = 'apps/consumer/src/main.ts'

async function startRedis (): Promise<RedisServer> {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  return redis
}

async function startWeb (env: NodeJS.ProcessEnv): Promise<Program & { url: string }> {
  return endWithTest(await listening(new Program(process.execPath, [webModule], env)))
}

/** Starts a consumer; resolves once it works. */
async function startConsumer (path: string, env: NodeJS.ProcessEnv): Promise<Program> {
  const consumer = endWithTest(new Program(process.execPath, [consumerModule, path], env))
  await consumer.printed(/consuming from/)
  return consumer
}

async function stop (...programs: readonly Program[]): Promise<void> {
  for (const program of programs) program.kill('SIGTERM')
  for (const program of programs) expect(await program.exited, program.output).toBe(0)
}

/** POST on its own connection: which of the workers on a port gets it, the kernel decides by the connection. */
async function postAnew (url: string, body: string, headers: Record<string, string> = {}): Promise<number> {
  return (await post(url, body, headers)).status
}

test('workers share a port, their batches wait in Redis as readable JSON, and a consumer started later ' +
  'stores all', async () => {
  const redis = await startRedis()
  const dir = temporaryDir()
  const env = {
    REDIS_URL: redis.url,
    PORT: String(await freePort()),
    DATABASE_PATH: join(dir, 'elsewhere.db'),
    QUEUE_NAME: 'my.queue',
  }
  const before = Date.now()
  const webs = await Promise.all([startWeb(env), startWeb(env), startWeb(env)])
  const { url } = webs[0]!

  const posts = 60
  expect(await Promise.all(Array.from({ length: posts }, async (_, i) =>
    await postAnew(`${url}/increment`,
      `foo=1&${encodeURIComponent('bär "1"')}=-20&foo=${i}`)))).toEqual(Array(posts).fill(204))
  expect(await postAnew(`${url}/increment`, 'big=9223372036854775807&small=-9223372036854775808')).toBe(204)
  expect(await postAnew(`${url}/increment`, 'once=5&foo=0', { 'idempotency-key': 'abc' })).toBe(204)

  const client = redis.client()
  onTestFinished(() => client.disconnect())
  const elements = await client.lrange('my.queue:{0}:batches', 0, -1)
  const batches = elements.map((element) => parseBatch(element))
  expect(new Set(batches.map(({ producer }) => producer)).size, 'workers that got requests').toBe(webs.length)
  expect(sum(batches.map(({ requests }) => requests))).toBe(posts + 2)
  expect(sum(batches.map(({ increments }) => increments))).toBe(3 * posts + 4)
  expect(sum(batches.map(({ sums }) => sums.foo ?? 0))).toBe(posts + posts * (posts - 1) / 2)
  expect(sum(batches.map(({ sums }) => sums['bär "1"'] ?? 0))).toBe(-20 * posts)
  expect(elements.join()).toContain('"big":9223372036854775807')
  expect(elements.join()).toContain('"small":-9223372036854775808')
  const onces = batches.flatMap(({ once }) => once)
  expect(onces).toEqual([{
    id: expect.stringMatching(/^[0-9a-f]{64}$/),
    at: expect.any(Number),
    sums: { once: 5, foo: 0 },
  }])
  for (const { v, at } of batches) {
    expect(v).toBe(1)
    expect(at).toBeGreaterThanOrEqual(before)
    expect(at).toBeLessThanOrEqual(Date.now())
  }
  for (const [producer, own] of Map.groupBy(batches, (batch) => batch.producer)) {
    expect(own.map(({ seq }) => seq), `sequences of ${producer}`).toEqual(own.map((_, i) => i + 1))
  }

  const path = join(dir, 'data', 'numbers.db')
  const consumer = await startConsumer(path, env)
  await until('the queue to be empty', async () => await client.llen('my.queue:{0}:batches') === 0)
  expect(readTotals(path)).toEqual(new Map([
    ['foo', BigInt(posts + posts * (posts - 1) / 2)], ['bär "1"', BigInt(-20 * posts)], ['big', 9223372036854775807n],
    ['small', -9223372036854775808n], ['once', 5n],
  ]))
  expect(readdirSync(dir)).toEqual(['data'])
  await stop(...webs, consumer)
})

interface BatchJson {
  v: number
  producer: string
  seq: number
  at: number
  requests: number
  increments: number
  sums: Record<string, number>
  once: unknown[]
}

function parseBatch (element: string): BatchJson {
  const batch: BatchJson = JSON.parse(element)
  expect(Object.keys(batch)).toEqual(['v', 'producer', 'seq', 'at', 'requests', 'increments', 'sums', 'once'])
  expect(batch.producer).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
  return batch
}

function sum (numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0)
}

test('a newer consumer of the same database takes over from the older, and nothing is lost or ' +
  'counted twice', async () => {
  const redis = await startRedis()
  const path = join(temporaryDir(), 'numbers.db')
  const env = { REDIS_URL: redis.url, PORT: String(await freePort()), DATABASE_PATH: path }
  const web = await startWeb(env)
  let consumer = await startConsumer(path, env)
  const load = new Load(web.url)
  await load.more(200)
  for (let changes = 1; changes <= 3; changes++) {
    const newer = await startConsumer(path, env)
    expect(await consumer.exited, consumer.output).toBe(69)
    expect(consumer.output).toMatch(/^gearbox: .*another (one|consumer)/m)
    expect(consumer.output).not.toMatch(/unexpected|\n +at /)
    await load.more(200)
    consumer = newer
  }
  await load.stop()
  await stop(web)
  await stop(consumer)
  expect(load.problems(readTotals(path))).toEqual([])
})

test('a database that is not the queue\'s own is refused before anything is written to it', async () => {
  const redis = await startRedis()
  const dir = temporaryDir()
  const env = { REDIS_URL: redis.url }
  await stop(await startConsumer(join(dir, 'first.db'), env))
  const other = endWithTest(new Program(process.execPath, [consumerModule, join(dir, 'other.db')], env))
  expect(await other.exited).toBe(69)
  expect(other.output).toMatch(/^gearbox: .*other\.db .*npm run rebind/m)
  expect(readdirSync(dir)).not.toContain('other.db')
  const all = endWithTest(new Program(process.execPath, ['bin/start.ts'],
    { ...env, PORT: '0', DATABASE_PATH: join(dir, 'other.db') }, { detached: true }))
  expect(await all.exited, all.output).toBe(69)
  expect(all.output).toMatch(/^gearbox: .*npm run rebind/m)
  expect(all.group()).toEqual([])
})

test('a worker without the database in reach counts, and says that it can not read totals', async () => {
  const redis = await startRedis()
  const web = await startWeb({
    REDIS_URL: redis.url,
    PORT: String(await freePort()),
    DATABASE_PATH: join(temporaryDir(), 'not-here', 'numbers.db'),
  })
  expect((await post(web.url, 'foo=1')).status).toBe(204)
  for (const path of ['/totals/foo', '/totals?key=foo', '/totals', '/totals?order=total']) {
    const response = await fetch(`${web.url}${path}`)
    expect(response.status, path).toBe(503)
    expect(response.headers.get('retry-after')).not.toBe(null)
    expect(await response.json()).toMatchObject({ statusCode: 503, code: 'GBX_NO_DATABASE' })
  }
  await stop(web)
})

test('worker and consumer wait for a Redis that comes later', async () => {
  const redis = await startRedis()
  await redis.kill()
  const path = join(temporaryDir(), 'numbers.db')
  const env = { REDIS_URL: redis.url, PORT: String(await freePort()), DATABASE_PATH: path }
  const consumer = endWithTest(new Program(process.execPath, [consumerModule, path], env))
  await consumer.printed(/can't be used: nothing listens there/)
  const web = await startWeb(env)
  expect((await fetch(`${web.url}/healthz`)).status).toBe(200)
  expect((await fetch(`${web.url}/readyz`)).status).toBe(503)
  expect(await postAnew(`${web.url}/increment?ack=memory`, 'foo=1')).toBe(202)
  await redis.startAgain()
  await until('the total', () => readTotals(path).get('foo') === 1n)
  await until('the worker to be ready', async () => (await fetch(`${web.url}/readyz`)).status === 200)
  await stop(web, consumer)
})

test.each([webModule, consumerModule])('%s without REDIS_URL says that it must be set', async (module) => {
  const program = new Program(process.execPath, [module], { DATABASE_PATH: join(temporaryDir(), 'numbers.db') })
  expect(await program.exited).toBe(78)
  expect(program.output).toMatch(/REDIS_URL must be set/)
  expect(program.output).not.toMatch(/\n +at /)
})

test('every process of its own serves its metrics on METRICS_PORT, and the shared port of the ' +
  'workers says so', async () => {
  const redis = await startRedis()
  const path = join(temporaryDir(), 'numbers.db')
  const env = { REDIS_URL: redis.url, PORT: String(await freePort()), DATABASE_PATH: path }
  const [consumerPort, ...webPorts] = await Promise.all([freePort(), freePort(), freePort()])
  const onPort = (port: number): NodeJS.ProcessEnv => ({ ...env, METRICS_PORT: String(port) })
  const [consumer,
    ...webs] = await Promise.all([startConsumer(path, onPort(consumerPort)),
    ...webPorts.map(async (port) => await startWeb(onPort(port)))])
  const { url } = webs[0]!
  const posts = 40
  for (let i = 0; i < posts; i++) expect(await postAnew(`${url}/increment?ack=stored`, 'foo=1&bar=2')).toBe(204)

  const scrape = async (port: number): Promise<string> => {
    const response = await fetch(`http://127.0.0.1:${port}/metrics`)
    expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/)
    return await response.text()
  }
  await until('the keys to be counted', async () => /^gearbox_keys 2$/m.test(await scrape(consumerPort)))
  const consumerText = await scrape(consumerPort)
  expect(consumerText).toMatch(/^gearbox_batches_applied_total [1-9]\d*$/m)
  expect(consumerText).not.toMatch(/gearbox_requests_total/)
  // Always the same worker's, and none of it twice.
  const shares = await Promise.all(webPorts.map(async (port) => {
    const texts = await Promise.all(Array.from({ length: 5 }, async () => await scrape(port)))
    const counts = texts.map((text) => Number(/^gearbox_requests_total\{status="204"\} (\d+)$/m.exec(text)?.[1] ?? 0))
    expect(new Set(counts).size, `worker on ${port}: ${counts.join()}`).toBe(1)
    expect(texts[0]).not.toMatch(/gearbox_batches_applied_total/)
    return counts[0]!
  }))
  expect(sum(shares)).toBe(posts)

  for (let i = 0; i < 10; i++) {
    const response = await fetch(`${url}/metrics`, { headers: { connection: 'close' } })
    expect(response.status).toBe(404)
    const { code, message }: { code: string, message: string } = JSON.parse(await response.text())
    expect(code).toBe('GBX_METRICS_ELSEWHERE')
    expect(webPorts.some((port) => message.includes(`http://127.0.0.1:${port}/metrics`)), message).toBe(true)
  }
  const elsewhere = await fetch(`http://127.0.0.1:${webPorts[0]}/increment`,
    { method: 'POST', body: new URLSearchParams({ foo: '1' }) })
  expect([elsewhere.status, await elsewhere.json()])
    .toEqual([404, expect.objectContaining({ code: 'GBX_NOT_FOUND', message: expect.stringContaining('/metrics') })])
  await stop(...webs, consumer)
})

test.each([webModule, consumerModule,
  'bin/start.ts'])('the metrics port of %s is as closed as all others', async (module) => {
  const redis = await startRedis()
  const scrape = async (port: number, headers: Record<string, string>): Promise<{ status: number, text: string }> =>
    await new Promise((resolve, reject) => {
      request({ host: '127.0.0.1', port, path: '/metrics', headers, agent: false }, (response) => {
        let text = ''
        response.setEncoding('utf8').on('data', (chunk: string) => { text += chunk }).on('end',
          () => resolve({ status: response.statusCode ?? 0, text }))
      }).on('error', reject).end()
    })
  for (const guarded of [{}, { API_KEYS: 'count:c0unt,read:r3ad' }]) {
    const port = await freePort()
    const program = endWithTest(new Program(process.execPath, [module], {
      REDIS_URL: redis.url,
      QUEUE_NAME: randomUUID(),
      PORT: '0',
      METRICS_PORT: String(port),
      WEB_WORKERS:
        '1',
      DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
      ...guarded,
    }, { detached: true }))
    await program.printed(/metrics at/)
    const statuses = async (...all: ReadonlyArray<Record<string, string>>): Promise<number[]> =>
      await Promise.all(all.map(async (headers) => (await scrape(port, headers)).status))
    if ('API_KEYS' in guarded) {
      const bearer = (key: string): Record<string, string> => ({ Host: 'any.example', Authorization: `Bearer ${key}` })
      expect(await statuses({}, bearer('x'), bearer('c0unt'), bearer('r3ad'))).toEqual([401, 401, 403, 200])
    } else {
      expect(await statuses({}, { Host: 'localhost:1' }, { Host: 'evil.example' })).toEqual([200, 200, 421])
      expect(JSON.parse((await scrape(port, { Host: 'evil.example' })).text)).toEqual({
        statusCode: 421,
        code: 'GBX_UNKNOWN_HOST',
        error:
          'Misdirected Request',
        message: expect.stringContaining('HOSTS_ALLOWED'),
      })
    }
    await stop(program)
  }
})

test('a worker without METRICS_PORT says on its port that it needs one', async () => {
  const redis = await startRedis()
  const web = await startWeb({
    REDIS_URL: redis.url,
    PORT: String(await freePort()),
    DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
  })
  const response = await fetch(`${web.url}/metrics`)
  expect([response.status, await response.json()]).toEqual([404,
    expect.objectContaining({ code: 'GBX_METRICS_ELSEWHERE', message: expect.stringContaining('set METRICS_PORT') })])
  await stop(web)
})

test.each([webModule, consumerModule,
  'bin/start.ts'])('%s whose METRICS_PORT is taken says so and leaves', async (module) => {
  const redis = await startRedis()
  const taken = createServer()
  await new Promise<void>((resolve) => taken.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => { taken.close() })
  const { port } = taken.address() as AddressInfo
  const program = endWithTest(new Program(process.execPath, [module], {
    REDIS_URL: redis.url, PORT: '0', METRICS_PORT: String(port), DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
  }, { detached: true }))
  expect(await program.exited).toBe(1)
  expect(program.output).toMatch(new RegExp(`^gearbox: metrics .*:${port}.*METRICS_PORT`, 'm'))
  expect(program.group()).toEqual([])
})

test('a client that says nothing on the metrics port does not hold up a stop', async () => {
  const redis = await startRedis()
  const path = join(temporaryDir(), 'numbers.db')
  const port = await freePort()
  const env = { REDIS_URL: redis.url, METRICS_PORT: String(port), DATABASE_PATH: path }
  const consumer = await startConsumer(path, env)
  const silent = connect(port, '127.0.0.1')
  onTestFinished(() => { silent.destroy() })
  silent.on('error', () => {})
  silent.write('GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n')
  await new Promise((resolve) => silent.once('connect', resolve))
  const stoppedAt = performance.now()
  await stop(consumer)
  expect(performance.now() - stoppedAt, 'ms').toBeLessThan(3000)
})

test('a database of piccolo-daimao is migrated by a start, and kept as it was next to it', async () => {
  const dir = temporaryDir()
  const path = join(dir, 'numbers.db')
  mkdirSync(dir, { recursive: true })
  const original = new Database(path)
  original.exec(`
    CREATE TABLE numbers(key TEXT, value INTEGER DEFAULT 0);
    CREATE UNIQUE INDEX numbers_key_index ON numbers(key);
    INSERT INTO numbers VALUES ('one', 1), ('none', NULL), ('real', 7.0), ('text', '8'), 
      ('most', 9223372036854775807), ('least', -9223372036854775808);
  `)
  original.close()
  const gearbox = endWithTest(await startAll({ DATABASE_PATH: path }))
  expect(gearbox.output).toMatch(/migrated the database of piccolo-daimao.*numbers\.db\.original/)
  expect((await post(gearbox.url, 'key=one&value=41')).status).toBe(204)
  expect((await post(gearbox.url, 'none=5&new=6')).status).toBe(204)
  await stop(gearbox)
  expect(readTotals(path)).toEqual(new Map([['one', 42n], ['none', 5n], ['real', 7n], ['text', 8n],
    ['most', 9223372036854775807n], ['least', -9223372036854775808n], ['new', 6n]]))
  const copy = new Database(`${path}.original`, { readonly: true })
  expect(copy.prepare('SELECT count(*), sum(value IS NULL), max(key) FROM numbers').raw().get()).toEqual([6, 1, 'text'])
  copy.close()

  const again = endWithTest(await startAll({ DATABASE_PATH: path }))
  expect(again.output).not.toMatch(/migrated/)
  await stop(again)
})

test('a row of such a database that can not be migrated is named, and nothing is changed', async () => {
  const path = join(temporaryDir(), 'numbers.db')
  const original = new Database(path)
  original.exec("CREATE TABLE numbers(key TEXT, value INTEGER DEFAULT 0); INSERT INTO numbers VALUES ('good', 1), " +
    "('bad', 1.5)")
  original.close()
  const gearbox = endWithTest(new Program(process.execPath, ['bin/start.ts'], { PORT: '0', DATABASE_PATH: path },
    { detached: true }))
  expect(await gearbox.exited).toBe(1)
  expect(gearbox.output.trimEnd().split('\n')).toHaveLength(1)
  expect(gearbox.output).toMatch(/row 2 .*'bad'.*1\.5/)
  expect(gearbox.group()).toEqual([])
  const db = new Database(path, { readonly: true })
  expect(db.prepare('SELECT key, value FROM numbers').raw().all()).toEqual([['good', 1], ['bad', 1.5]])
  db.close()
})

const noNamespace = process.getuid?.() !== 0 ||
  spawnSync('unshare', ['--pid', '--fork', '--mount-proc', 'true']).status !== 0

test.skipIf(noNamespace)('as PID 1 of a container everything counts, and stops at SIGTERM', async () => {
  const databasePath = join(temporaryDir(), 'numbers.db')
  const container = endWithTest(await listening(
    new Program('unshare', ['--pid', '--fork', '--kill-child', '--mount-proc', './run-node', 'bin/start.ts'],
      { PORT: String(await freePort()), DATABASE_PATH: databasePath })
  ))
  const [first] = container.children('bin/start.ts')
  expect((await post(`${container.url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
  process.kill(first!.pid, 'SIGTERM')
  expect(await container.exited, container.output).toBe(0)
  expect(readTotals(databasePath)).toEqual(new Map([['foo', 1n]]))
})
