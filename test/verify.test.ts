// `npm run verify` on living workers and dead ones: it agrees where nothing is wrong, and finds what was taken away.
import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { readDatabaseUuid, writeSpool } from '@gearbox/web/deliver/spool.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, listening, Program, startAll, startCommand } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

async function verify (env: NodeJS.ProcessEnv, ...urls: readonly string[]): Promise<{
  code: number |
  NodeJS.Signals,
  output: string
}> {
  const program = endWithTest(startCommand('verify', urls.flatMap((url) => ['--url', url]), env))
  return { code: await program.exited, output: program.output }
}

test.each(['the embedded queue',
  'Redis'])('what every worker accepted is found, under load and at rest, with %s', async (queue) => {
  const redis = queue === 'Redis' ? await RedisServer.start() : undefined
  onTestFinished(async () => { await redis?.stop() })
  const env = { DATABASE_PATH: join(temporaryDir(), 'numbers.db'), REDIS_URL: redis?.url }
  const gearbox = endWithTest(await startAll(env))
  await Promise.all(Array.from({ length: 50 }, async (_, i) => await post(gearbox.url, `a=1&b${i}=-2`)))
  const { code, output } = await verify(env, gearbox.url)
  expect(output).toMatch(/worker [0-9a-f-]{36}: accepted \d+; stored \d+, queued 0, in its window 0, pending 0\n/)
  expect(output).toMatch(/rejected: 0\nall of it adds up\n$/)
  expect(code, output).toBe(0)
  const accepted = Array.from(output.matchAll(/accepted (\d+)/g), ([, count]) => Number(count))
  expect(accepted.reduce((sum, count) => sum + count, 0)).toBe(100)
})

test('the address and the key come from the variables that the workers have', async () => {
  const env = {
    DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
    PORT: String(await freePort()),
    WEB_WORKERS: '1',
    BASE_PATH:
      '/gear/box',
    API_KEYS: 'count:c0unt,read:r3ad',
  }
  const gearbox = endWithTest(await startAll(env))
  expect(gearbox.url).toBe(`http://127.0.0.1:${env.PORT}/gear/box`)
  await gearbox.printed(new RegExp(`curl -d '[^']+' .*${gearbox.url}/increment`))
  expect((await post(gearbox.url, 'a=1', { Authorization: 'Bearer c0unt' })).status).toBe(204)
  const { code, output } = await verify(env)
  expect(output).toMatch(/accepted 1; stored 1,/)
  expect(code, output).toBe(0)
  const lacking = await verify({ ...env, API_KEYS: 'count:c0unt' })
  expect(lacking.output).toMatch(/answers 401; API_KEYS must have one of its keys that may read/)
  expect(lacking.code).toBe(1)
})

test('a batch that disappears from the queue is missed, and later its hole', async () => {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  const client = redis.client()
  onTestFinished(() => client.disconnect())
  const env = { DATABASE_PATH: join(temporaryDir(), 'numbers.db'), REDIS_URL: redis.url, WEB_WORKERS: '1' }
  const consumer = endWithTest(startCommand('consumer', [], env))
  await consumer.printed(/consuming from/)
  consumer.kill('SIGTERM')
  await consumer.exited
  const metricsPort = String(await freePort())
  const web = endWithTest(new Program(process.execPath, ['apps/web/src/main.ts'],
    { ...env, PORT: '0', METRICS_PORT: metricsPort }))
  // The consumer is away: what is pushed stays in the list.
  const [, port] = await web.printed(/"producer":.*listens on http:\/\/[^:]+:(\d+)/)
  const url = `http://127.0.0.1:${port}`
  for (let i = 0; i < 3; i++) expect((await post(url, 'a=1')).status).toBe(204)
  const metrics = `http://127.0.0.1:${metricsPort}`
  expect((await verify(env, metrics)).code).toBe(0)
  expect(await client.lpop('gearbox:{0}:batches')).toContain('"a":1')
  const missed = await verify(env, metrics)
  expect(missed.output).toMatch(/accepted 3; stored 0, queued 2, .*DOES NOT ADD UP, 1 missing/)
  expect(missed.code).toBe(1)

  web.kill('SIGKILL')
  await web.exited
  const again = endWithTest(await startAll(env))
  await until('the rest to be stored', async () => await client.llen('gearbox:{0}:batches') === 0)
  const hole = await verify(env, again.url)
  expect(hole.output).toMatch(/gone: batches 1 to 1 are MISSING/)
  expect(hole.code).toBe(1)
})

test('what a worker that is gone left in a file is counted and fills its hole, where it belongs to ' +
  'this database', async () => {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  const client = redis.client()
  onTestFinished(() => client.disconnect())
  const databasePath = join(temporaryDir(), 'numbers.db')
  const env = { DATABASE_PATH: databasePath, REDIS_URL: redis.url, WEB_WORKERS: '1' }
  const gearbox = endWithTest(await startAll(env))
  expect((await post(`${gearbox.url}/increment?ack=stored`, 'a=1')).status).toBe(204)
  const batch = (seq: number): Buffer => element({ seq, sums: { gone: 1 }, increments: 10 })
  await client.rpush('gearbox:{0}:batches', batch(1), batch(3))
  await until('them to be stored', async () => await client.llen('gearbox:{0}:batches') === 0)
  const hole = await verify(env, gearbox.url)
  expect(hole.output).toMatch(/gone: batches 2 to 2 are MISSING/)

  const dir = join(dirname(databasePath), 'unsent')
  const here = { queue: 'of the test', generation: undefined, database: readDatabaseUuid(databasePath) }
  const theirs = await writeSpool(dir, producerB, { ...here, database: 'another' },
    [element({ producer: producerB, increments: 1000 })])
  const missing = await verify(env, gearbox.url)
  expect(missing.output).toContain(`unsent file ${theirs} is not counted: it belongs to database another (of ` +
    'the test)\n')
  expect(missing.code).toBe(1)
  // The first was stored before it could be deleted.
  await writeSpool(dir, producerA, here, [batch(1), batch(2), batch(4)])
  const whole = await verify(env, gearbox.url)
  expect(whole.output).toMatch(/^workers that are gone .*: 1; stored 20, queued 0, in unsent files 20$/m)
  expect(whole.code, whole.output).toBe(0)

  writeFileSync(join(dir, 'x.jsonl'), 'no batch')
  const unreadable = await verify(env, gearbox.url)
  expect(unreadable.output).toMatch(/unsent file \S+x\.jsonl CAN'T BE READ \(line 1 is not a valid batch/)
  expect(unreadable.code).toBe(1)
})

test('workers that share a port are asked on the METRICS_PORT of each, and the shared port says so', async () => {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  const env = {
    DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
    REDIS_URL: redis.url,
    PORT: String(await freePort()),
  }
  const ports = [await freePort(), await freePort()]
  const consumer = endWithTest(startCommand('consumer', [], env))
  const webs = await Promise.all(ports.map(async (port) =>
    endWithTest(await listening(new Program(process.execPath, ['apps/web/src/main.ts'],
      { ...env, METRICS_PORT: String(port) })))))
  await consumer.printed(/consuming from/)
  const { url } = webs[0]!
  for (let i = 0; i < 30; i++) expect((await post(`${url}/increment?ack=stored`, 'a=1')).status).toBe(204)

  const shared = await verify(env)
  expect(shared.code).toBe(1)
  const [first, second, ...rest] = shared.output.split('\n')
  expect(first).toMatch(/^gearbox: http:\/\/127\.0\.0\.1:\d+\/metrics answers 404: .*METRICS_PORT/)
  expect(second).toMatch(/^Name all of them: npm run verify -- --url /)
  expect(rest).toEqual([''])
  const both = await verify(env, `http://127.0.0.1:${ports[0]}`, `http://127.0.0.1:${ports[1]}/metrics`)
  expect(both.output.match(/^worker [0-9a-f-]{36}: accepted \d+; stored/gm)).toHaveLength(2)
  expect(both.output).toMatch(/all of it adds up\n$/)
  const one = await verify(env, `http://127.0.0.1:${ports[0]}/`)
  expect(one.output)
    .toMatch(/^workers that are gone \(or not named with --url\): 1; stored \d+, queued 0, in unsent files 0$/m)
})
