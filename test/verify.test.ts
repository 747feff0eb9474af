// `npm run verify` on living workers and dead ones: it agrees where nothing is wrong, and finds what was taken away.
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { endWithTest, post, Program, startAll } from './fixtures/gearbox.ts'
import { RedisServer } from './fixtures/redis.ts'
import { temporaryDir } from './fixtures/temporary.ts'
import { until } from './fixtures/until.ts'

const programOf = (name: string): string => `apps/consumer/src/${name}.ts`

async function verify (env: NodeJS.ProcessEnv, url: string): Promise<{ code: number | NodeJS.Signals, output: string }> {
  const program = endWithTest(new Program(process.execPath, [programOf('verify'), '--url', url], env))
  return { code: await program.exited, output: program.output }
}

test.each(['the embedded queue', 'Redis'])('what every worker accepted is found, under load and at rest, with %s', async (queue) => {
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

test('a batch that disappears from the queue is missed, and later its hole', async () => {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  const client = redis.client()
  onTestFinished(() => client.disconnect())
  const env = { DATABASE_PATH: join(temporaryDir(), 'numbers.db'), REDIS_URL: redis.url, WEB_WORKERS: '1' }
  const consumer = endWithTest(new Program(process.execPath, [programOf('main')], env))
  await consumer.printed(/takes from/)
  consumer.kill('SIGTERM')
  await consumer.exited
  const web = endWithTest(new Program(process.execPath, ['apps/web/src/main.ts'], { ...env, PORT: '0' }))
  // The consumer is away: what is pushed stays in the list.
  const [, port] = await web.printed(/"producer":.*listens on http:\/\/[^:]+:(\d+)/)
  const url = `http://127.0.0.1:${port}`
  for (let i = 0; i < 3; i++) expect((await post(url, 'a=1')).status).toBe(204)
  expect((await verify(env, url)).code).toBe(0)
  expect(await client.lpop('gearbox:{0}:batches')).toContain('"a":1')
  const missed = await verify(env, url)
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
