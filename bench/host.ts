// Where servers are started: Gearbox, and programs and modules that it is compared with. Each is started once, pinned,
// and stays up for all rounds.
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { listening, Program } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { pin, pinned, tree, type Cores } from './machine.ts'

/** Something that this machine lacks; its row says so. */
export class NotMeasuredError extends Error {}

/** What Gearbox says in its metrics: increments accepted, where these are the total, and requests answered 202. */
export interface Counted {
  readonly increments: number | undefined
  readonly in202: number
}

/** A request, always a POST. */
export interface Asks {
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string
}

/** One that runs. */
export interface Server {
  readonly port: number
  /** What it is asked, where that is not `POST /increment` with a form. */
  readonly asks?: Asks
  /** Its processes. */
  readonly pids: readonly number[]
  /** What works next to it, on the load's core. */
  readonly beside: readonly number[]
  /** The sum of all totals, where it can be asked. */
  readonly total?: () => Promise<number>
  /** What Gearbox says itself. */
  readonly counted?: () => Promise<Counted>
  readonly databasePath?: string
  /** How it was set up, where that was searched for. */
  readonly note?: string
  readonly stop: () => Promise<void>
}

/** Starts a server. @throws NotMeasuredError if it can't be had here */
export type Start = (host: Host) => Promise<Server>

/** What a host is made of. */
export interface HostOptions {
  readonly cores: Cores
  /** For everything that servers write. The caller's to remove, once all are stopped. */
  readonly dir: string
  /** All servers by name. */
  readonly catalog: Readonly<Record<string, Start>>
  /** How long each setting gets the load where the best one is searched for; 0: the first one is taken. */
  readonly searchSeconds: number
}

/** Where servers are started. */
export class Host {
  readonly cores: Cores
  readonly dir: string
  readonly searchSeconds: number
  readonly #catalog: Readonly<Record<string, Start>>
  readonly #started = new Map<string, Promise<Server>>()
  #redis: Promise<RedisServer> | undefined
  #stopping = false

  constructor ({ cores, dir, catalog, searchSeconds }: HostOptions) {
    this.cores = cores
    this.dir = dir
    this.searchSeconds = searchSeconds
    this.#catalog = catalog
  }

  /** A server by its name, started when it is first asked for. @throws NotMeasuredError if it can't be had here */
  async get (name: string): Promise<Server> {
    if (this.#stopping) throw new Error('the bench stops')
    const start = this.#catalog[name]
    if (start === undefined) throw new Error(`there is no server ${name}`)
    const started = this.#started.get(name) ?? start(this)
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

/** The sum of all totals in a database of Gearbox's. */
export function sumIn (databasePath: string): number {
  const db = new Database(databasePath, { readonly: true, timeout: 5000 })
  try {
    return db.prepare<[], number>('SELECT coalesce(sum(value), 0) FROM numbers').pluck().get() ?? 0
  } finally {
    db.close()
  }
}

/** Starts a program, pinned to a core or not. Whoever starts it ends it. */
export function startProgram (command: readonly [string, ...string[]], core: number | undefined): Program {
  const [first, ...args] = pinned(core, command)
  return new Program(first, args, {})
}

/** How a program is started. */
export interface Peer extends Partial<Pick<Server, 'asks' | 'total' | 'beside'>> {
  readonly command: readonly [string, ...string[]]
  readonly port: number
  readonly env?: NodeJS.ProcessEnv
}

/**
 * Starts a program on the server's core; resolves once its port can be reached.
 * @throws NotMeasuredError with its last line if it ends instead
 */
export async function startPeer ({ cores }: Host, { command, port, env = {}, ...rest }: Peer): Promise<Server> {
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
export async function startNode (host: Host, module: string, args: readonly string[] = [],
  rest: Partial<Server> = {}): Promise<Server> {
  const port = await freePort()
  return await startPeer(host,
    { ...rest, port, command: [process.execPath, join(import.meta.dirname, 'peers', module), String(port), ...args] })
}

/** nginx with one worker and one `location` or more. */
export async function startNginxWith (host: Host, locations: string): Promise<Server> {
  const port = await freePort()
  const dir = mkdtempSync(join(host.dir, 'nginx-'))
  mkdirSync(join(dir, 'logs'))
  const names = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
  const paths = names.map((name) => `${name}_temp_path ${dir}/${name};`).join(' ')
  // Who connects to Unix sockets of ours is the worker: it must be the one whose they are.
  const user = process.getuid?.() === 0 ? 'user root;' : ''
  writeFileSync(join(dir, 'nginx.conf'), `daemon off; worker_processes 1; ${user} pid ${dir}/pid;
error_log ${dir}/error.log;
events { worker_connections 15000; }
http {
  access_log off; keepalive_requests 1000000000; ${paths}
  server { listen 127.0.0.1:${port} backlog=65535; ${locations} }
}
`)
  return await startPeer(host, { port, command: ['nginx', '-p', dir, '-c', join(dir, 'nginx.conf')] })
}

/** Reads what a peer counted, at its `GET /total`. */
export function totalAt (port: number): () => Promise<number> {
  return async () => Number(await (await fetch(`http://127.0.0.1:${port}/total`)).text())
}
