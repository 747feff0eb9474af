// The product under chaos: `npm start` with a real Redis behind a bad network, or with the embedded queue.
// Faults reach its processes through this, and the ledger hears of every one that may cost something.
import { createHash } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, renameSync, rmSync } from 'node:fs'
import { request } from 'node:http'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import type { Redis } from 'ioredis'
import {
  listening, listProcesses, Program, root, startCommand, type RunningProcess,
} from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { TcpProxy } from '@gearbox/test-kit/tcp-proxy.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { WrongClock } from '@gearbox/test-kit/wrong-clock.ts'
import type { Ledger } from './ledger.ts'
import { LogPipe } from './log-pipe.ts'

export type Queue = 'redis' | 'embedded'

/** Exit code of a part that leaves to a newer one. */
const refused = 69

const recoverMs = 15_000
const readyAnswers = 4
const askTimeoutMs = 3000

/**
 * PENDING_BYTES_MAX and UNSTORED_BYTES_MAX of a run: little, so that what may be held is little compared to what a
 * process
 * needs anyway.
 */
export const heldBytesMax = 4 * 2 ** 20

/**
 * By this much a process may ever have grown since the first start: twice heldBytesMax as objects, which take about 4
 * times the bytes, and as much again for the garbage between two collections. Runs of two minutes took 16 MiB.
 */
const growthBytesMax = 64 * 2 ** 20

const webModule = 'apps/web/src/main.ts'
const consumerModule = 'apps/consumer/src/main.ts'

/** Something that only one kind of command has in it on its way to Redis. */
export const commands = [...['push', 'take', 'acknowledge'].map((name) => ({
  name, mark: createHash('sha1').update(readFileSync(join(root, `packages/queue/src/redis/${name}.lua`))).digest('hex'),
})), { name: 'tell', mark: 'gearbox:{0}:told' }]

export class System {
  readonly databasePath: string
  readonly openPorts = new Set<number>()
  /** The most one process ever held, in bytes, and by how much the one that grew most did. */
  readonly memory = { most: 0, growth: 0 }
  /** What each kind of part held when it was first started. */
  readonly #firstBytes = new Map<string, number>()
  /** The slowest recovery from a fault, in ms. */
  slowestRecovery = 0
  readonly queue: Queue
  readonly #dir: string
  readonly #env: NodeJS.ProcessEnv
  readonly #redis: RedisServer | undefined
  readonly #proxy: TcpProxy | undefined
  readonly #admin: Redis | undefined
  #product: Program | undefined
  #outputs: Program[] = []
  readonly #logs: LogPipe[] = []
  /** A consumer that took over from the product's own. */
  #otherConsumer: Program | undefined
  #ledger: Ledger | undefined
  readonly #frozen = new Set<number>()
  /** Nothing is started any more. */
  #ended = false
  url = ''

  private constructor (queue: Queue, dir: string, env: NodeJS.ProcessEnv, redis: RedisServer | undefined,
    proxy: TcpProxy | undefined) {
    this.queue = queue
    this.#dir = dir
    this.databasePath = join(dir, 'data', 'numbers.db')
    const tmp = join(dir, 'tmp')
    mkdirSync(tmp)
    this.#env = { ...env, DATABASE_PATH: this.databasePath, TMPDIR: tmp, REDIS_URL: proxy?.url }
    this.#redis = redis
    this.#proxy = proxy
    this.#admin = redis?.client()
    this.#admin?.on('error', () => {})
  }

  /**
   * Redis and the network; the product follows with startProduct.
   * @param dir where it keeps everything; the caller's to remove
   */
  static async make (queue: Queue, dir: string, env: NodeJS.ProcessEnv): Promise<System> {
    const redis = queue === 'redis' ? await RedisServer.start() : undefined
    const proxy = redis === undefined ? undefined : await TcpProxy.start(redis.port)
    return new System(queue, dir, { PORT: String(await freePort()), ...env }, redis, proxy)
  }

  set ledger (ledger: Ledger) {
    this.#ledger = ledger
  }

  get ledger (): Ledger {
    if (this.#ledger === undefined) throw new Error('nobody writes down')
    return this.#ledger
  }

  get redis (): RedisServer {
    if (this.#redis === undefined) throw new Error('there is no Redis')
    return this.#redis
  }

  get proxy (): TcpProxy {
    if (this.#proxy === undefined) throw new Error('there is no network')
    return this.#proxy
  }

  get admin (): Redis {
    if (this.#admin === undefined) throw new Error('there is no Redis')
    return this.#admin
  }

  get product (): Program {
    if (this.#product === undefined) throw new Error('it does not run')
    return this.#product
  }

  get output (): string {
    return this.#outputs.map(({ output }) => output).join('\n')
  }

  /** @throws Error with the product's last line if it does not start */
  async startProduct (): Promise<void> {
    this.#mustGoOn()
    const log = new LogPipe(join(this.#dir, `log-${this.#logs.length}`), (text) => { product.output += text })
    this.#logs.push(log)
    const product = new Program(process.execPath, ['bin/start.ts'], this.#env, { detached: true, stdout: log.fd })
    this.#product = product
    this.#outputs.push(product)
    const failed = product.exited.then((code) => {
      throw new Error(`npm start ended with ${code}: ${product.output.trim().split('\n').at(-1) ?? ''}`)
    })
    this.url = (await Promise.race([listening(product), failed])).url
    // It has its own consumer again, and that is the newest.
    if (this.#otherConsumer !== undefined) await this.#expectSuperseded(this.#otherConsumer)
    this.#otherConsumer = undefined
    this.#watchMemory()
  }

  /** SIGTERM to all of it. */
  async stopProduct (): Promise<void> {
    const code = await this.#stopped(this.product)
    this.ledger.workerLeft()
    if (code !== 0) this.ledger.problems.push(`npm start ended with ${code} after SIGTERM`)
  }

  async #stopped (program: Program): Promise<number | string> {
    program.kill('SIGTERM')
    return await Promise.race([program.exited, delay(25_000, 'no end within 25 s', { ref: false })])
  }

  /** Every process of it dies at once, as when the power fails. */
  async killProduct (): Promise<void> {
    const processes = this.product.group()
    for (const { pid } of processes) this.#signal(pid, 'SIGSTOP')
    this.ledger.sweep()
    this.ledger.workerKilled(undefined, this.openPorts)
    this.product.killGroup('SIGKILL')
    await this.product.exited
  }

  /** Only the parent dies: its parts are to flush and leave by themselves. */
  async killParent (): Promise<void> {
    this.product.kill('SIGKILL')
    await until('the orphans to leave', () => this.product.group().length === 0, 25_000)
    this.ledger.workerLeft()
  }

  workers (): RunningProcess[] {
    return this.product.children(webModule).sort((one, other) => one.pid - other.pid)
  }

  async worker (which: number): Promise<number> {
    return await until('a worker to run', () => {
      const workers = this.workers()
      return workers[which % Math.max(1, workers.length)]?.pid
    })
  }

  async consumer (): Promise<number> {
    return this.#otherConsumer?.pid ?? await until('a consumer to run',
      () => this.product.children(consumerModule)[0]?.pid)
  }

  async killWorker (pid: number): Promise<void> {
    // Standing still, it can neither push nor answer while it is looked at what it has.
    if (!this.#signal(pid, 'SIGSTOP')) return
    this.ledger.sweep()
    this.ledger.workerKilled(clientPorts(pid, this.url), this.openPorts)
    this.#signal(pid, 'SIGKILL')
    await gone(pid)
  }

  async stopWorker (pid: number): Promise<void> {
    if (!this.#signal(pid, 'SIGTERM')) return
    await gone(pid)
    this.ledger.sweep()
    this.ledger.workerLeft()
  }

  async killConsumer (): Promise<void> {
    const pid = await this.consumer()
    this.#signal(pid, 'SIGKILL')
    await gone(pid)
    if (this.#otherConsumer === undefined) return
    this.#otherConsumer = undefined
    await this.startOtherConsumer()
  }

  /** A newer consumer of the same database: the one before it leaves. */
  async startOtherConsumer (): Promise<void> {
    this.#mustGoOn()
    const { REDIS_URL, TMPDIR } = this.#env
    const before = this.#otherConsumer
    const own = before === undefined ? this.product.children(consumerModule)[0]?.pid : undefined
    const program = new Program(process.execPath, [consumerModule, this.databasePath], { REDIS_URL, TMPDIR })
    this.#outputs.push(program)
    this.#otherConsumer = program
    await program.printed(/consuming from/)
    if (before !== undefined) await this.#expectSuperseded(before)
    if (own !== undefined) await gone(own)
  }

  /** Another worker on the product's port, which gets a part of its connections, with its own clock. */
  async runOtherWorker (hoursAhead: number, ms: number): Promise<void> {
    this.#mustGoOn()
    const dir = join(this.#dir, `clock-${this.#outputs.length}`)
    mkdirSync(dir)
    const clock = new WrongClock(dir)
    clock.set(hoursAhead)
    const program = new Program(process.execPath, [webModule], { ...this.#env, ...clock.env })
    this.#outputs.push(program)
    await listening(program)
    await delay(ms)
    const code = await this.#stopped(program)
    this.ledger.sweep()
    this.ledger.workerLeft()
    if (code !== 0) this.ledger.problems.push(`a worker with a wrong clock ended with ${code} after SIGTERM`)
  }

  async #expectSuperseded (consumer: Program): Promise<void> {
    const code = await Promise.race([consumer.exited, delay(recoverMs, 'no end', { ref: false })])
    if (code !== refused && code !== 'SIGKILL') {
      this.ledger.problems.push(`an older consumer ended with ${code}, not ${refused}, when a newer took over`)
    }
  }

  /** Makes a process stand still. @returns what lets it go on */
  freeze (pid: number): () => void {
    this.#signal(pid, 'SIGSTOP')
    this.#frozen.add(pid)
    return () => {
      this.#signal(pid, 'SIGCONT')
      this.#frozen.delete(pid)
    }
  }

  async freezeFor (pid: number, ms: number): Promise<void> {
    const thaw = this.freeze(pid)
    await delay(ms)
    thaw()
  }

  /** Nobody takes the product's log for a while: the pipe is full, or its reader has left. */
  async neglectLog (how: 'full' | 'broken', ms: number): Promise<void> {
    const log = this.#logs.at(-1)
    if (how === 'full') log?.stopReading()
    else log?.leave()
    await delay(ms)
    log?.readOn()
  }

  async restartRedis (downMs: number, loseData: boolean): Promise<void> {
    if (loseData) this.ledger.sweep()
    await this.redis.kill()
    if (loseData) rmSync(this.#redisFiles, { recursive: true })
    await this.#startRedisAgain(downMs)
    if (loseData) this.ledger.dataLost()
  }

  /** Redis dies, and comes back with what its disk had a while before. */
  async rollBackRedis (ageMs: number, downMs: number): Promise<void> {
    const copy = join(this.#dir, 'older')
    cpSync(this.#redisFiles, copy, { recursive: true })
    await delay(ageMs)
    this.ledger.sweep()
    await this.redis.kill()
    rmSync(this.#redisFiles, { recursive: true })
    cpSync(copy, this.#redisFiles, { recursive: true })
    rmSync(copy, { recursive: true })
    await this.#startRedisAgain(downMs)
    this.ledger.dataLost()
  }

  /** Redis is dead for as long as something takes. */
  async withoutRedis (action: () => Promise<void>): Promise<void> {
    await this.redis.kill()
    await action().finally(async () => { await this.#startRedisAgain(0) })
  }

  /** Redis takes on what a copy had a while before, without closing a connection. */
  async swapRedis (ageMs: number): Promise<void> {
    const copy = await RedisServer.start()
    const client = copy.client()
    try {
      await follow(client, this.redis)
      await client.replicaof('NO', 'ONE')
      await delay(ageMs)
      this.ledger.sweep()
      await follow(this.admin, copy)
      await this.admin.replicaof('NO', 'ONE')
      this.ledger.dataLost()
    } finally {
      client.disconnect()
      await copy.stop()
    }
  }

  get #redisFiles (): string {
    return join(this.redis.dir, 'appendonlydir')
  }

  async #startRedisAgain (downMs: number): Promise<void> {
    await delay(downMs)
    this.#mustGoOn()
    await this.redis.startAgain()
  }

  async flushRedis (): Promise<void> {
    this.ledger.sweep()
    await this.admin.flushall()
    this.ledger.dataLost()
  }

  /** Another process's write transaction on the database. */
  async holdDatabase (ms: number): Promise<void> {
    // A consumer that stands still within its transaction has the lock, and goes on only if this process is free to let
    // it.
    const db = new Database(this.databasePath, { timeout: 0 })
    try {
      await until("the database's lock", () => db.exec('BEGIN IMMEDIATE').inTransaction)
      await delay(ms)
      db.exec('ROLLBACK')
    } finally {
      db.close()
    }
  }

  /** Somebody moves the database's file away, perhaps with its -wal and -shm, and puts it back. */
  async moveDatabase (ms: number, whole: boolean): Promise<void> {
    const away = `${this.databasePath}.away`
    const suffixes = whole ? ['', '-wal', '-shm'] : ['']
    const move = (from: string, to: string): void => {
      for (const suffix of suffixes) {
        if (existsSync(`${from}${suffix}`)) renameSync(`${from}${suffix}`, `${to}${suffix}`)
      }
    }
    move(this.databasePath, away)
    await delay(ms)
    if (existsSync(this.databasePath)) {
      this.ledger.problems.push('a database was made in the place of the one that was moved away')
    }
    move(away, this.databasePath)
  }

  /** Resolves once it answers as it should again. */
  async recovered (): Promise<void> {
    const startedAt = performance.now()
    let ready = 0
    await until('readyz to answer 200 after a fault', async () => {
      ready = await this.#isReady() ? ready + 1 : 0
      return ready === readyAnswers
    }, recoverMs)
    this.slowestRecovery = Math.max(this.slowestRecovery, performance.now() - startedAt)
    this.#watchMemory()
  }

  async #isReady (): Promise<boolean> {
    const { status, text } = await readiness(this.url)
    return status === 200 || (this.#otherConsumer !== undefined && isOnlySuperseded(text))
  }

  /** A figure of all parts together. */
  async figures (name: string): Promise<Array<{ labels: string, value: number }>> {
    const response = await fetch(`${this.url}/metrics`,
      { headers: { connection: 'close' }, signal: AbortSignal.timeout(askTimeoutMs) })
    const text = await response.text()
    return Array.from(text.matchAll(new RegExp(`^${name}(?:\\{(.*)\\})? (\\S+)$`, 'gm')),
      ([, labels = '', value]) => ({ labels, value: Number(value) }))
  }

  /** Batches that windows have let go, so far and by living products' workers. */
  async trimmed (): Promise<number> {
    return (await this.figures('gearbox_window_trimmed_total')).reduce((sum, { value }) => sum + value, 0)
  }

  unsentFiles (): string[] {
    const dir = join(this.#dir, 'data', 'unsent')
    return existsSync(dir) ? readdirSync(dir).filter((name) => name.endsWith('.jsonl')) : []
  }

  async queueLength (): Promise<number> {
    return await this.#admin?.llen('gearbox:{0}:batches') ?? 0
  }

  /** Runs `npm run verify` as an operator would. */
  async verify (): Promise<{ code: number | NodeJS.Signals, output: string }> {
    const { REDIS_URL, TMPDIR } = this.#env
    const program = startCommand('verify', ['--url', this.url],
      { REDIS_URL, TMPDIR, DATABASE_PATH: this.databasePath })
    const code = await program.exited
    const wrong = program.output.split('\n').filter((line) => /DOES NOT ADD UP|MISSING|NOT READY/.test(line))
    const onlySuperseded = this.#otherConsumer !== undefined && wrong.length > 0 && wrong.every(isOnlySuperseded)
    return { code: onlySuperseded ? 0 : code, output: program.output }
  }

  /** Ends its own consumer, once it has emptied the queue. */
  async stopOtherConsumer (): Promise<void> {
    if (this.#otherConsumer === undefined) return
    const code = await this.#stopped(this.#otherConsumer)
    if (code !== 0) this.ledger.problems.push(`the consumer ended with ${code} after SIGTERM`)
    this.#otherConsumer = undefined
  }

  /** Undoes whatever a fault that failed itself has left. */
  heal (): void {
    this.#proxy?.heal()
    this.#proxy?.release()
    this.#logs.at(-1)?.readOn()
    for (const pid of this.#frozen) this.#signal(pid, 'SIGCONT')
  }

  /** Kills whatever runs, and keeps Redis's files with all others if `keep` says so. */
  async end (keep: boolean): Promise<void> {
    this.#ended = true
    this.heal()
    this.#admin?.disconnect()
    const own = new Set(this.#outputs.map(({ pid }) => pid))
    for (const { pid, group } of listProcesses()) if (own.has(pid) || own.has(group)) this.#signal(pid, 'SIGKILL')
    for (const log of this.#logs) log.close()
    await this.#proxy?.close()
    await this.#redis?.kill()
    if (keep && this.#redis !== undefined) cpSync(this.#redis.dir, join(this.#dir, 'redis'), { recursive: true })
    await this.#redis?.stop()
  }

  /** What goes on in the background when all is over must not start anything again. */
  #mustGoOn (): void {
    if (this.#ended) throw new Error('it has ended')
  }

  /** @returns false if it is gone already */
  #signal (pid: number, signal: NodeJS.Signals): boolean {
    try {
      process.kill(pid, signal)
      return true
    } catch {
      return false
    }
  }

  #watchMemory (): void {
    const { memory } = this
    for (const module of [webModule, consumerModule]) {
      for (const { pid } of this.product.children(module)) {
        const bytes = mostBytes(pid)
        const first = this.#firstBytes.get(module) ?? bytes
        this.#firstBytes.set(module, first)
        memory.most = Math.max(memory.most, bytes)
        memory.growth = Math.max(memory.growth, bytes - first)
        if (bytes - first > growthBytesMax) {
          this.ledger.problems.push(`${module} has grown from ${Math.round(first / 2 ** 20)} to ` +
            `${Math.round(bytes / 2 ** 20)} MiB`)
        }
      }
    }
  }
}

/** Makes a Redis a replica, and waits until it has all that its primary has. */
async function follow (client: Redis, { port }: RedisServer): Promise<void> {
  await client.replicaof('127.0.0.1', port)
  await until('a replica', async () => (await client.info('replication')).includes('master_link_status:up'))
}

/** Resolves when a process is dead; as a zombie it is, too. */
async function gone (pid: number): Promise<void> {
  await until(`process ${pid} to be gone`, () => {
    try {
      process.kill(pid, 0)
      return /^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
    } catch {
      return true
    }
  })
}

/** The most that a process ever held. @returns 0 where the system does not tell */
function mostBytes (pid: number): number {
  try {
    return Number(/^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024
  } catch {
    return 0
  }
}

/** The other ends' ports of a process's accepted connections; undefined where the system does not tell. */
function clientPorts (pid: number, url: string): Set<number> | undefined {
  try {
    const inodes = new Set(readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1] ?? []
      } catch {
        return []
      }
    }))
    const ports = new Set<number>()
    for (const line of readFileSync(`/proc/${pid}/net/tcp`, 'utf8').split('\n')) {
      const [, local, remote, , , , , , , inode] = line.trim().split(/\s+/)
      if (inode !== undefined && inodes.has(inode) && portOf(local) === Number(new URL(url).port)) {
        ports.add(portOf(remote))
      }
    }
    return ports
  } catch {
    return undefined
  }
}

function portOf (address = ''): number {
  return parseInt(address.split(':')[1] ?? '0', 16)
}

/** Whether nothing is wrong but that the product's own consumer has left to a newer one. */
function isOnlySuperseded (text: string): boolean {
  return text.includes('consumer exited and will not be restarted')
}

/** Asked over a separate connection: any of the workers may get it. @returns status 0: no answer */
async function readiness (url: string): Promise<{ status: number, text: string }> {
  return await new Promise((resolve) => {
    let text = ''
    const none = (): void => resolve({ status: 0, text })
    const outgoing = request(`${url}/readyz`, { agent: false, timeout: askTimeoutMs }, (response) => {
      response.setEncoding('utf8')
      response.on('data', (chunk) => { text += String(chunk) })
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }))
    })
    outgoing.on('timeout', () => outgoing.destroy())
    outgoing.on('error', none)
    outgoing.on('close', none)
    outgoing.end()
  })
}
