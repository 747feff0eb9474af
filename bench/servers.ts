// What is measured: Gearbox in its modes and everything it is compared with.
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { freePort, type RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  NotMeasuredError, startGearbox, startNginxWith, startNode, startPeer, sumIn, totalAt, type Host, type Server,
  type Start,
} from './host.ts'
import { rqliteVersion } from './machine.ts'
import { ticketServers } from './tickets/servers.ts'

/** One that keeps its sums to itself and tells them when it is asked. */
async function startSumming (host: Host, module: string): Promise<Server> {
  const server = await startNode(host, module)
  return { ...server, total: totalAt(server.port) }
}

async function startNginx (host: Host): Promise<Server> {
  return await startNginxWith(host, 'location / { return 204; }')
}

/** What the two peers that count in Redis have counted; both under the same key, as they are never loaded at once. */
function redisTotal (redis: RedisServer): () => Promise<number> {
  return async () => {
    const client = redis.client()
    return await client.get('foo').then(Number).finally(() => client.disconnect())
  }
}

async function startIncrby (host: Host): Promise<Server> {
  const redis = await host.redis()
  return await startNode(host, 'fastify.ts', ['redis', redis.url], { total: redisTotal(redis), beside: [redis.pid] })
}

async function startWebdis (host: Host): Promise<Server> {
  const redis = await host.redis()
  const port = await freePort()
  const config = join(host.dir, 'webdis.json')
  writeFileSync(config,
    JSON.stringify({
      redis_host: '127.0.0.1',
      redis_port: redis.port,
      http_host: '127.0.0.1',
      http_port: port,
      threads: 1,
      daemonize: false,
      verbosity: 0,
      logfile: join(host.dir, 'webdis.log'),
    }))
  const asks = { path: '/', headers: { 'Content-Type': 'application/x-www-form-urlencoded' }, body: 'INCRBY/foo/1' }
  return await startPeer(host,
    { port, command: ['webdis', config], asks, total: redisTotal(redis), beside: [redis.pid] })
}

async function startSqlite (host: Host): Promise<Server> {
  const path = join(host.dir, 'upserts.db')
  return await startNode(host, 'fastify.ts', ['sqlite', path], { total: async () => sumIn(path) })
}

/** @throws NotMeasuredError */
function go (args: readonly string[]): string {
  if (findProgram('go') === undefined) throw new NotMeasuredError('go is not installed')
  const { status, stdout, stderr, error } = spawnSync('go', args, { encoding: 'utf8', timeout: 300_000 })
  if (status !== 0) {
    throw new NotMeasuredError(`go ${args[0]} failed: ${error?.message ?? stderr.trim().split('\n').at(-1)}`)
  }
  return stdout
}

async function startGo (host: Host): Promise<Server> {
  const port = await freePort()
  const program = join(host.dir, 'peer-go')
  go(['build', '-o', program, join(import.meta.dirname, 'peers/go/main.go')])
  return await startPeer(host,
    { port, command: [program, String(port)], env: { GOMAXPROCS: '1' }, total: totalAt(port) })
}

const rqliteModule = `github.com/rqlite/rqlite/v8@v${rqliteVersion}`

/** rqlited of this machine, or built from its source, which takes minutes the first time. */
function findRqlite (dir: string): string {
  const found = findProgram('rqlited')
  if (found !== undefined) return found
  process.stderr.write(`building ${rqliteModule}\n`)
  const { Dir: source } = JSON.parse(go(['mod', 'download', '-json', rqliteModule])) as { Dir: string }
  const program = join(dir, 'rqlited')
  go(['build', '-C', source, '-o', program, './cmd/rqlited'])
  return program
}

async function startRqlite (host: Host): Promise<Server> {
  const [port, raftPort] = [await freePort(), await freePort()]
  const ask = async (path: string, statement: string): Promise<string> => {
    const response = await fetch(`http://127.0.0.1:${port}/db/${path}`,
      { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify([statement]) })
    return await response.text()
  }
  const upsert =
    ['INSERT INTO numbers(key, value) VALUES(?, ?) ON CONFLICT(key) DO UPDATE SET value = value + excluded.value',
      'foo', 1]
  const server = await startPeer(host, {
    port,
    command: [findRqlite(host.dir), '-http-addr', `127.0.0.1:${port}`, '-raft-addr', `127.0.0.1:${raftPort}`,
      join(host.dir, 'rqlite')],
    env: { GOMAXPROCS: '1' },
    asks: {
      path: '/db/execute?queue',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify([upsert]),
    },
    total: async () =>
      Number(/"values":\[\[(\d+)\]\]/.exec(await ask('query', 'SELECT coalesce(sum(value), 0) FROM numbers'))?.[1]),
  })
  await until('rqlite to take writes',
    async () => (await ask('execute',
      'CREATE TABLE IF NOT EXISTS numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL)')).startsWith('{"results":[{'))
  return server
}

/** All servers of the rows. */
export const servers = {
  memory: (host) => startGearbox(host, { ACK: 'memory' }),
  queued: (host) => startGearbox(host, { ACK: 'queued' }),
  'queued-standard-path': (host) => startGearbox(host, { ACK: 'queued', FAST_LANE: 'off' }),
  'queued-keys': (host) => startGearbox(host, { ACK: 'queued' }),
  stored: (host) => startGearbox(host, { ACK: 'stored' }),
  'memory-embedded': (host) => startGearbox(host, { ACK: 'memory' }, false),
  'stored-embedded': (host) => startGearbox(host, { ACK: 'stored' }, false),
  nginx: startNginx,
  'node-net': (host) => startSumming(host, 'node-net.ts'),
  'node-http': (host) => startSumming(host, 'node-http.ts'),
  fastify: (host) => startSumming(host, 'fastify.ts'),
  express: (host) => startNode(host, 'express.ts'),
  go: startGo,
  webdis: startWebdis,
  'fastify-incrby': startIncrby,
  'fastify-sqlite': startSqlite,
  rqlite: startRqlite,
  ...ticketServers,
} satisfies Record<string, Start>
