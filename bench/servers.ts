// What is measured: Gearbox in its modes and everything it is compared with. Each is started once, pinned, and stays up
// for all rounds.
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { listening, Program } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { pin, pinned, rqliteVersion, tree, type Cores } from './machine.ts'

/** Something that this machine lacks; its row says so. */
export class NotMeasuredError extends Error {}

export interface Server {
  readonly port: number
  /** What it is asked, where that is not `POST /increment` with a form. */
  readonly asks?: { readonly path: string, readonly contentType: string, readonly body: string }
  /** Its processes. */
  readonly pids: readonly number[]
  /** What works next to it, on the load's core. */
  readonly beside: readonly number[]
  /** The sum of all totals, where it can be asked. */
  readonly total?: () => Promise<number>
  /** What Gearbox says itself: increments accepted, and requests that were answered 202. */
  readonly counted?: () => Promise<{ readonly increments: number, readonly in202: number }>
  readonly databasePath?: string
  readonly stop: () => Promise<void>
}

/** Where servers are started. */
export class Host {
  readonly cores: Cores
  /** For everything that they write. The caller's to remove, once all are stopped. */
  readonly dir: string
  readonly #started = new Map<string, Promise<Server>>()
  #redis: Promise<RedisServer> | undefined
  #stopping = false

  constructor (cores: Cores, dir: string) {
    this.cores = cores
    this.dir = dir
  }

  /** A server by its name, started when it is first asked for. @throws NotMeasuredError if it can't be had here */
  async get (name: ServerName): Promise<Server> {
    if (this.#stopping) throw new Error('the bench stops')
    const started = this.#started.get(name) ?? servers[name](this)
    this.#started.set(name, started)
    return await started
  }

  /** The Redis that all share, syncing its file at every write. */
  async redis (): Promise<RedisServer> {
    this.#redis ??= RedisServer.start().then((redis) => {
      pin(redis.pid, this.cores.load)
      return redis
    })
    return await this.#redis
  }

  /** Stops all, those that are just starting too. */
  async stop (): Promise<void> {
    this.#stopping = true
    await Promise.all(Array.from(this.#started.values(),
      async (started) => await started.then(async (server) => { await server.stop() }, () => {})))
    await (await this.#redis)?.stop()
  }
}

/** Gearbox as `npm start` runs it, with one web worker on the server's core and all else on the load's. */
export async function startGearbox (host: Host, env: NodeJS.ProcessEnv, withRedis = true): Promise<Server> {
  const databasePath = join(mkdtempSync(join(host.dir, 'gearbox-')), 'numbers.db')
  const redis = withRedis ? await host.redis() : undefined
  const port = await freePort()
  const [command, ...args] = pinned(host.cores.load, [process.execPath, ...process.execArgv, 'bin/start.ts'])
  // The queue has its own name, as several share the Redis.
  const common = {
    PORT: String(port),
    DATABASE_PATH: databasePath,
    WEB_WORKERS: '1',
    QUEUE_NAME: `bench-${port}`,
    REDIS_URL: redis?.url,
    STATS_INTERVAL_MS: '86400000',
  }
  const program = await listening(new Program(command, args, { ...common, ...env }))
  const [pids, consumers] = ['apps/web',
    'apps/consumer'].map((app) => program.children(`${app}/src/main.ts`).map(({ pid }) => pid))
  if (pids?.length !== 1 || consumers?.length !== 1) {
    throw new Error(`not one worker and one consumer:\n${program.output}`)
  }
  pin(pids[0]!, host.cores.server)
  return {
    port,
    pids,
    beside: [program.pid, ...consumers, ...redis === undefined ? [] : [redis.pid]],
    total: async () => sumIn(databasePath),
    counted: async () => {
      const figures = await readFigures(port)
      return { increments: figures('gearbox_increments_total'), in202: figures('gearbox_requests_total{status="202"}') }
    },
    databasePath,
    stop: async () => { await program.end() },
  }
}

/** A look at `/metrics`. @returns the figure of a name with its labels; 0 if there is none */
export async function readFigures (port: number): Promise<(name: string) => number> {
  const text = await (await fetch(`http://127.0.0.1:${port}/metrics`)).text()
  return (name) => Number(text.split('\n').find((line) => line.startsWith(`${name} `))?.slice(name.length) ?? 0)
}

function sumIn (databasePath: string): number {
  const db = new Database(databasePath, { readonly: true, timeout: 5000 })
  try {
    return db.prepare<[], number>('SELECT coalesce(sum(value), 0) FROM numbers').pluck().get() ?? 0
  } finally {
    db.close()
  }
}

interface Peer extends Partial<Pick<Server, 'asks' | 'total' | 'beside'>> {
  readonly command: readonly [string, ...string[]]
  readonly port: number
  readonly env?: NodeJS.ProcessEnv
}

/**
 * Starts a program on the server's core; resolves once its port can be reached.
 * @throws NotMeasuredError with its last line if it ends instead
 */
async function startPeer ({ cores }: Host, { command, port, env = {}, ...rest }: Peer): Promise<Server> {
  if (findProgram(command[0]) === undefined && !command[0].includes('/')) {
    throw new NotMeasuredError(`${command[0]} is not installed`)
  }
  const [first, ...args] = pinned(cores.server, command)
  const program = new Program(first, args, env)
  const ended = program.exited.then(() => { throw new NotMeasuredError(program.output.trim().split('\n').at(-1)) })
  await Promise.race([ended, until(`${command[0]} to listen`, async () => {
    const socket = connect(port, '127.0.0.1')
    await once(socket, 'connect').finally(() => socket.destroy())
    return true
  })]).catch(async (error: unknown) => {
    await program.end()
    throw error
  })
  return { beside: [], ...rest, port, pids: tree(program.pid), stop: async () => { await program.end() } }
}

/** A peer in JavaScript: its port is its first argument. */
async function startNode (host: Host, module: string, args: readonly string[] = [],
  rest: Partial<Server> = {}): Promise<Server> {
  const port = await freePort()
  return await startPeer(host,
    { ...rest, port, command: [process.execPath, join(import.meta.dirname, 'peers', module), String(port), ...args] })
}

/** One that keeps its sums to itself and tells them when it is asked. */
async function startSumming (host: Host, module: string): Promise<Server> {
  const server = await startNode(host, module)
  return { ...server, total: totalAt(server.port) }
}

function totalAt (port: number): () => Promise<number> {
  return async () => Number(await (await fetch(`http://127.0.0.1:${port}/total`)).text())
}

async function startNginx (host: Host): Promise<Server> {
  const port = await freePort()
  const dir = mkdtempSync(join(host.dir, 'nginx-'))
  mkdirSync(join(dir, 'logs'))
  const names = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
  const paths = names.map((name) => `${name}_temp_path ${dir}/${name};`).join(' ')
  writeFileSync(join(dir, 'nginx.conf'), `daemon off; worker_processes 1; pid ${dir}/pid; error_log ${dir}/error.log;
events { worker_connections 15000; }
http {
  access_log off; keepalive_requests 1000000000; ${paths}
  server { listen 127.0.0.1:${port} backlog=65535; location / { return 204; } }
}
`)
  return await startPeer(host, { port, command: ['nginx', '-p', dir, '-c', join(dir, 'nginx.conf')] })
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
  const asks = { path: '/', contentType: 'application/x-www-form-urlencoded', body: 'INCRBY/foo/1' }
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
    asks: { path: '/db/execute?queue', contentType: 'application/json', body: JSON.stringify([upsert]) },
    total: async () =>
      Number(/"values":\[\[(\d+)\]\]/.exec(await ask('query', 'SELECT coalesce(sum(value), 0) FROM numbers'))?.[1]),
  })
  await until('rqlite to take writes',
    async () => (await ask('execute',
      'CREATE TABLE IF NOT EXISTS numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL)')).startsWith('{"results":[{'))
  return server
}

const servers = {
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
} as const satisfies Record<string, (host: Host) => Promise<Server>>

export type ServerName = keyof typeof servers
