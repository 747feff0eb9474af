// `npm start` as a newcomer meets it.
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { readTotals, startAll } from '@gearbox/test-kit/gearbox.ts'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

test.each(['the embedded queue', 'Redis'])('a POST is in the database a moment later, with %s', async (queue) => {
  const databasePath = join(temporaryDir(), 'data', 'numbers.db')
  const redis = queue === 'Redis' ? await RedisServer.start() : undefined
  onTestFinished(async () => { await redis?.stop() })
  const gearbox = await startAll({ DATABASE_PATH: databasePath, REDIS_URL: redis?.url })
  onTestFinished(async () => { await gearbox.end() })

  expect((await post(gearbox.url, 'foo=1&bar=-2&foo=3')).status).toBe(204)
  await until('both totals', () => readTotals(databasePath).size === 2)
  expect(readTotals(databasePath)).toEqual(new Map([['foo', 4n], ['bar', -2n]]))

  gearbox.kill('SIGTERM')
  expect(await gearbox.exited).toBe(0)
})
