// DRAIN_MS: for that long after a signal a load balancer can see at /readyz that a stop is coming, and all else goes on
// as before.
import { Agent } from 'node:http'
import { join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { drain } from '@gearbox/runtime/process/shutdown.ts'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, listening, Program, readTotals, startAll } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

interface Ready {
  readonly status: number
  readonly text: string
}

async function readyz (url: string): Promise<Ready> {
  const response = await fetch(`${url}/readyz`, { headers: { connection: 'close' } })
  return { status: response.status, text: await response.text() }
}

async function refusesConnections (url: string): Promise<void> {
  await until('connections to be refused',
    async () => await fetch(`${url}/healthz`, { headers: { connection: 'close' } }).then(() => false, () => true),
    30_000)
}

/** Resolves once a worker shows that a stop is coming. */
async function draining (url: string): Promise<void> {
  const { text } = await until('/readyz to be 503', async () => {
    const ready = await readyz(url)
    return ready.status === 503 ? ready : undefined
  })
  expect(JSON.parse(text)).toMatchObject({
    statusCode: 503,
    code: 'GBX_STOPPING',
    message: expect.stringMatching(/DRAIN_MS/),
  })
}

async function startWeb (env: NodeJS.ProcessEnv): Promise<Program & { url: string }> {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  const place = {
    REDIS_URL: redis.url,
    DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
    PORT: String(await freePort()),
  }
  return endWithTest(await listening(new Program(process.execPath, ['apps/web/src/main.ts'], { ...place, ...env })))
}

// Longer than a part may take to stop once it has begun to: the parent must wait for both.
test('under npm start all goes on for DRAIN_MS, but /readyz is 503, and then it stops',
  { timeout: 60_000 }, async () => {
    const drainMs = 12_500
    const databasePath = join(temporaryDir(), 'numbers.db')
    const gearbox = endWithTest(await startAll({ DATABASE_PATH: databasePath, DRAIN_MS: String(drainMs) }))
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    onTestFinished(() => agent.destroy())
    expect((await post(`${gearbox.url}/increment`, 'foo=1', {}, agent)).status).toBe(204)
    expect((await readyz(gearbox.url)).status).toBe(200)
    const stoppedAt = performance.now()
    gearbox.kill('SIGTERM')
    await draining(gearbox.url)
    let counted = 1n
    while (performance.now() < stoppedAt + drainMs - 2500) {
      const kept = await post(`${gearbox.url}/increment?ack=stored`, 'foo=1', {}, agent)
      expect(kept.status, 'on a kept connection').toBe(204)
      expect((await post(gearbox.url, 'foo=1', { connection: 'close' })).status, 'on a new connection').toBe(204)
      counted += 2n
      expect((await readyz(gearbox.url)).status).toBe(503)
      expect((await fetch(`${gearbox.url}/healthz`)).status).toBe(200)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
    await refusesConnections(gearbox.url)
    expect(performance.now() - stoppedAt).toBeGreaterThan(drainMs)
    expect(await gearbox.exited, gearbox.output).toBe(0)
    expect(gearbox.output).not.toMatch(/did not stop/)
    expect(readTotals(databasePath)).toEqual(new Map([['foo', counted]]))
  })

test('a web worker that runs alone does the same, and a second signal that is no echo ends the wait', async () => {
  const web = await startWeb({ DRAIN_MS: '60000' })
  web.kill('SIGTERM')
  const stoppedAt = performance.now()
  await draining(web.url)
  web.kill('SIGTERM')
  await until('a second', () => performance.now() > stoppedAt + 1200)
  expect((await post(`${web.url}/increment`, 'foo=1', { connection: 'close' })).status,
    'an echo ends nothing').toBe(204)
  web.kill('SIGTERM')
  expect(await web.exited, web.output).toBe(0)
  expect(performance.now() - stoppedAt).toBeLessThan(15_000)
})

describe('under npm start', () => {
  test('a second signal that is no echo ends the parent, and its workers wait no longer', async () => {
    const databasePath = join(temporaryDir(), 'numbers.db')
    const gearbox = endWithTest(await startAll({ DATABASE_PATH: databasePath, DRAIN_MS: '60000' }, { detached: true }))
    gearbox.kill('SIGTERM')
    const stoppedAt = performance.now()
    await draining(gearbox.url)
    expect((await post(`${gearbox.url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
    await until('a second', () => performance.now() > stoppedAt + 1200)
    gearbox.kill('SIGTERM')
    expect(await gearbox.exitedItself).toBe(143)
    await until('all parts to have left', () => gearbox.group().length === 0)
    expect(readTotals(databasePath)).toEqual(new Map([['foo', 1n]]))
  })

  test('workers whose parent is killed do not wait, nor go on waiting', async () => {
    for (const first of ['SIGTERM', 'SIGKILL'] as const) {
      const databasePath = join(temporaryDir(), 'numbers.db')
      const gearbox = endWithTest(await startAll({ DATABASE_PATH: databasePath, DRAIN_MS: '60000' },
        { detached: true }))
      expect((await post(`${gearbox.url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
      gearbox.kill(first)
      if (first === 'SIGTERM') await draining(gearbox.url)
      gearbox.kill('SIGKILL')
      await until('all parts to have left', () => gearbox.group().length === 0)
      expect(readTotals(databasePath)).toEqual(new Map([['foo', 1n]]))
    }
  })
})

test('nobody waits where a stop comes of a failure', async () => {
  const startedAt = performance.now()
  await drain(60_000, 'failure', undefined)
  expect(performance.now() - startedAt).toBeLessThan(1000)
})
