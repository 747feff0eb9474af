// More connections than a worker takes, or has file descriptors for: each that is closed on arrival is counted and
// said.
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, listening, Program, startAll } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

/** Opens connections one after the other. @returns those that stay, and how many were closed on arrival */
async function open (url: string, count: number): Promise<{ kept: Socket[], closed: number }> {
  const { hostname, port } = new URL(url)
  const sockets: Socket[] = []
  const kept = new Set<Socket>()
  onTestFinished(() => { for (const socket of sockets) socket.destroy() })
  for (let i = 0; i < count; i++) {
    const socket = connect(Number(port), hostname)
    sockets.push(socket)
    socket.on('error', () => {}).once('close', () => kept.delete(socket))
    await new Promise<void>((resolve) => socket.once('connect', resolve).once('close', () => resolve()))
    kept.add(socket)
    // A reply tells that it was taken; otherwise it is closed.
    socket.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
    await new Promise<void>((resolve) => socket.once('data', () => resolve()).once('close', () => resolve()))
  }
  return { kept: [...kept], closed: count - kept.size }
}

/** Asks for the metrics on a connection that is open. */
async function dropped (metrics: string): Promise<Record<string, number>> {
  const text = await (await fetch(`${metrics}/metrics`, { headers: { connection: 'close' } })).text()
  return Object.fromEntries(Array.from(text.matchAll(/^gearbox_connections_dropped_total\{reason="(\w+)"\} (\d+)$/gm),
    ([, reason, count]) => [reason!, Number(count)]))
}

/** The lines about closed connections. */
function lines (program: Program): Array<Record<string, unknown>> {
  return program.logged().filter(({ msg }) => /^closed \d+ new connection/.test(String(msg)))
}

async function startWeb (env: NodeJS.ProcessEnv,
  command: readonly [string, ...string[]] = [process.execPath]): Promise<{
    web: Program & { url: string }
    metrics: string
  }> {
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  const metricsPort = await freePort()
  const [program, ...args] = command
  const web = endWithTest(await listening(new Program(program, [...args, 'apps/web/src/main.ts'], {
    REDIS_URL: redis.url,
    DATABASE_PATH: join(temporaryDir(),
      'numbers.db'),
    PORT: String(await freePort()),
    METRICS_PORT: String(metricsPort),
    ...env,
  })))
  return { web, metrics: `http://127.0.0.1:${metricsPort}` }
}

test('beyond CONNECTIONS_MAX', async () => {
  const { web, metrics } = await startWeb({ CONNECTIONS_MAX: '5' })
  expect(await dropped(metrics)).toEqual({ limit: 0, descriptors: 0 })
  const { closed } = await open(web.url, 25)
  expect(closed).toBe(20)
  expect(await dropped(metrics)).toEqual({ limit: 20, descriptors: 0 })
  await until('a line', () => lines(web).length > 0)
  const said = lines(web).reduce((sum, { count }) => sum + Number(count), 0)
  expect(said).toBeGreaterThan(0)
  expect(said).toBeLessThanOrEqual(20)
  expect(lines(web)).toHaveLength(1)
  expect(lines(web)[0]).toMatchObject({
    level: 40,
    reason: 'limit',
    msg: expect.stringContaining('CONNECTIONS_MAX (5)'),
  })
})

test('under npm start, in the metrics of all', async () => {
  const gearbox =
    endWithTest(await startAll({
      DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
      WEB_WORKERS: '1',
      CONNECTIONS_MAX: '5',
    }))
  const { kept, closed } = await open(gearbox.url, 25)
  expect(closed).toBe(20)
  for (const socket of kept) socket.destroy()
  await until('a place', async () => (await dropped(gearbox.url)).limit! >= 20)
})

const prlimit = findProgram('prlimit')

test.skipIf(prlimit === undefined)('without file descriptors for ' +
  `more${prlimit === undefined ? ' (skipped: there is no prlimit)' : ''}`, async () => {
  const { web, metrics } = await startWeb({}, ['prlimit', '--nofile=120', process.execPath])
  const [, room] =
    await web.printed(/no more than (\d+) connections, as this process may have 120 file descriptors: .*LimitNOFILE/)
  const { closed } = await open(web.url, 200)
  expect(closed).toBe(200 - Number(room))
  // What else the worker opens still has its place.
  expect(await dropped(metrics)).toEqual({ limit: 0, descriptors: closed })
  await until('a line', () => lines(web).length > 0)
  expect(lines(web)[0]).toMatchObject({ level: 40, reason: 'descriptors', msg: expect.stringMatching(/LimitNOFILE/) })

  // The limit is raised while it runs, where this user may do so.
  if (await new Program('prlimit', ['--pid', String(web.pid), '--nofile=240'], {}).exited !== 0) return
  await until('room', async () => {
    const { kept } = await open(web.url, 1)
    return kept.length === 1
  })
  expect((await post(web.url, 'foo=1')).status).toBe(204)
})
