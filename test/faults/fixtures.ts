// What the fault tests share: a separate place for each, the product in it, and the tools that break things under
// it.
import { spawn, spawnSync } from 'node:child_process'
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { expect, onTestFinished } from 'vitest'
import type { AckLevel } from '@gearbox/protocol/ack-levels.ts'
import {
  endWithTest, listening, Program, readTotals, startAll, startCommand, type Load,
} from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

export const consumerModule = 'apps/consumer/src/main.ts'
export const batchesKey = 'gearbox:{0}:batches'

export type Mode = 'the embedded queue' | 'Redis'
export const modes: readonly Mode[] = ['the embedded queue', 'Redis']

export interface Place {
  readonly dir: string
  readonly databasePath: string
  readonly env: NodeJS.ProcessEnv
}

export async function startRedis (settings: readonly string[] = []): Promise<RedisServer> {
  const redis = await RedisServer.start(settings)
  onTestFinished(async () => { await redis.stop() })
  return redis
}

/** A database that only this test has; without a Redis the queue is embedded. */
export function makePlace (redisUrl: string | undefined, more: NodeJS.ProcessEnv = {}): Place {
  const dir = temporaryDir()
  const tmp = join(dir, 'tmp')
  mkdirSync(tmp)
  const databasePath = more.DATABASE_PATH ?? join(dir, 'data', 'numbers.db')
  return {
    dir,
    databasePath,
    env: {
      DATABASE_PATH: databasePath,
      TMPDIR: tmp,
      REDIS_URL: redisUrl,
      WEB_WORKERS: '2',
      ACK_TIMEOUT_MS: '1000',
      ...more,
    },
  }
}

export async function makePlaceFor (mode: Mode, more: NodeJS.ProcessEnv = {}): Promise<Place> {
  return makePlace(mode === 'Redis' ? (await startRedis()).url : undefined, more)
}

export async function startGearbox ({ env }: Place): Promise<Program & { url: string }> {
  const gearbox = endWithTest(await startAll(env, { detached: true }))
  // On a busy machine a worker may listen before it has reached its queue, and then refuses for a moment. Where a test
  // has taken care that it never is ready, that is what it gets.
  let ready = 0
  await until('every worker to be ready', async () => {
    ready = await readiness(gearbox.url) === 200 ? ready + 1 : 0
    return ready === readyAnswers
  }, 5000).catch(() => {})
  return gearbox
}

/** So many answers in a row, each on another connection: some of every worker. */
const readyAnswers = 8

/** One web worker, started alone. On `port` with others it shares their requests, but not their metrics. */
export async function startWeb ({ env }: Place, more: NodeJS.ProcessEnv = {}): Promise<Program & {
  url: string
  metricsUrl: string
}> {
  const metricsPort = await freePort()
  const ports = { PORT: String(await freePort()), METRICS_PORT: String(metricsPort) }
  const web = endWithTest(await listening(new Program(process.execPath, ['apps/web/src/main.ts'],
    { ...env, ...ports, ...more })))
  return Object.assign(web, { metricsUrl: `http://127.0.0.1:${metricsPort}` })
}

/** A consumer, started alone; resolved at once. @param before a program that runs it, with its arguments */
export function launchConsumer ({ env }: Place, path: string, before: readonly string[] = [],
  more: NodeJS.ProcessEnv = {}): Program {
  const [command, ...args] = [...before, process.execPath, consumerModule, path]
  return endWithTest(new Program(command!, args, { ...env, ...more }))
}

/** A consumer, started alone; resolves once it works. */
export async function startConsumer (place: Place, path = place.databasePath,
  more: NodeJS.ProcessEnv = {}): Promise<Program> {
  const consumer = launchConsumer(place, path, [], more)
  await consumer.printed(/consuming from/)
  return consumer
}

/** Runs one of the consumer's commands to its end. */
export async function runCommand ({ env }: Place, name: 'backup' | 'rebind' | 'rejected',
  args: readonly string[]): Promise<{ code: number | NodeJS.Signals, output: string }> {
  const program = endWithTest(startCommand(name, args, env))
  return { code: await program.exited, output: program.output }
}

/** Stops programs one after the other, each gracefully. */
export async function stop (...programs: readonly Program[]): Promise<void> {
  for (const program of programs) {
    program.kill('SIGTERM')
    expect(await program.exited, program.output).toBe(0)
  }
}

/** Sequences that never arrived, by worker. */
export function gapsIn (path: string): unknown[] {
  return query(path, "SELECT producer, high, gaps FROM producers WHERE gaps <> '[]'")
}

export function query (path: string, sql: string): unknown[] {
  const db = new Database(path, { readonly: true })
  try {
    return db.prepare(sql).all()
  } finally {
    db.close()
  }
}

/** What must be so whenever all programs have stopped: totals within what was answered, and no sequence missing. */
export function expectExact (path: string, load: Load, mayLose: ReadonlyArray<AckLevel> = []): void {
  expect(load.problems(readTotals(path), mayLose)).toEqual([])
  expect([...load.statuses.keys()].filter((status) => ![202, 204, 503].includes(status))).toEqual([])
  if (mayLose.length === 0) expect(gapsIn(path)).toEqual([])
  expect(query(path, 'PRAGMA integrity_check')).toEqual([{ integrity_check: 'ok' }])
}

/** The same after a load and all of Gearbox were stopped. */
export async function stopAndExpectExact (gearbox: Program, { databasePath }: Place, load: Load,
  mayLose: ReadonlyArray<AckLevel> = []): Promise<void> {
  await load.stop()
  await stop(gearbox)
  expectExact(databasePath, load, mayLose)
}

export async function readiness (url: string): Promise<number> {
  return (await fetch(`${url}/readyz`, { headers: { connection: 'close' } })).status
}

/** A process of `npm start`, by its module. */
export async function childOf (gearbox: Program, module: string): Promise<number> {
  return (await until(`a process of ${module}`, () => gearbox.children(module)[0])).pid
}

/** Stops a process in its tracks; it goes on at the latest when the test is over, for else nothing could end it. */
export function freeze (pid: number): () => void {
  const thaw = (): void => {
    try {
      process.kill(pid, 'SIGCONT')
    } catch {
      // It was killed meanwhile.
    }
  }
  process.kill(pid, 'SIGSTOP')
  onTestFinished(thaw)
  return thaw
}

/** Why strace can't be used here; undefined where it can. */
export const noStrace = findProgram('strace') === undefined
  ? 'strace is not installed'
  : spawnSync('strace',
    ['-f', '-o', '/dev/null', '-e', 'trace=fdatasync', '-e', 'inject=fdatasync:error=EIO:when=1', 'true']).status === 0
    ? undefined
    : 'strace may not trace here'

/**
 * Arguments that run a program with a fault in its system calls. The program stays our own child, so that signals reach
 * it.
 */
export function tracing (calls: string, fault: string): string[] {
  return ['strace', '-D', '-f', '-qq', '-o', '/dev/null', '-e', `trace=${calls}`, '-e', `inject=${calls}:${fault}`]
}

/**
 * Puts a fault into the system calls of a process that runs. Resolves once it is in place, with what takes it out
 * again.
 */
export async function trace (pid: number, calls: string, fault: string): Promise<() => Promise<void>> {
  const tracer = spawn('strace',
    ['-f', '-o', '/dev/null', '-e', `trace=${calls}`, '-e', `inject=${calls}:${fault}`, '-p', String(pid)],
    { stdio: ['ignore', 'ignore', 'pipe'] })
  let said = ''
  tracer.stderr.on('data', (chunk) => { said += String(chunk) })
  const gone = new Promise((resolve) => tracer.once('exit', resolve))
  const end = async (): Promise<void> => {
    tracer.kill('SIGTERM')
    await gone
  }
  onTestFinished(end)
  await until('strace to attach', () => said.includes('attached'))
  return end
}

/** Why no file system can be mounted here; undefined where one can. */
export const noTmpfs = process.platform !== 'linux' || process.getuid?.() !== 0
  ? 'only root mounts a file system'
  : spawnSync('unshare', ['-m', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']).status === 0
    ? undefined
    : 'no file system may be mounted here'

/** A small file system of the test's own. */
export class SmallDisk {
  readonly path: string

  constructor (megabytes: number) {
    this.path = temporaryDir()
    const { status, stderr } = spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${megabytes}m`, 'tmpfs', this.path],
      { encoding: 'utf8' })
    if (status !== 0) throw new Error(`no tmpfs: ${stderr}`)
    onTestFinished(() => { spawnSync('umount', ['-l', this.path]) })
  }

  get #filler (): string {
    return join(this.path, 'filler')
  }

  /** Leaves no room at all, whoever else writes meanwhile. */
  fill (): void {
    const filler = openSync(this.#filler, 'a')
    try {
      for (const bytes of [2 ** 20, 2 ** 12]) {
        const block = Buffer.alloc(bytes)
        try {
          for (;;) writeSync(filler, block)
        } catch (error) {
          if (!(error instanceof Error && 'code' in error && error.code === 'ENOSPC')) throw error
        }
      }
    } finally {
      closeSync(filler)
    }
  }

  makeRoom (): void {
    rmSync(this.#filler, { force: true })
  }
}
