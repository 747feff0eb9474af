// The product as its users run it: processes started by the programs of its npm scripts, watched through their output.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { Agent } from 'node:http'
import type { Socket } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { onTestFinished } from 'vitest'
import { ackLevels, type AckLevel } from '@gearbox/protocol/ack-levels.ts'
import { post } from './client.ts'
import { freePort } from './redis.ts'
import { until } from './until.ts'

/** The directory of the repository. */
export const root = join(import.meta.dirname, '../../..')

/** How a program is started. */
export interface ProgramOptions {
  readonly cwd?: string
  /** Makes it the leader of its own process group, as a shell does with what is typed into it. */
  readonly detached?: boolean
  readonly stdin?: 'ignore' | 'pipe'
  /** Where its standard output goes instead of into `output`: a file descriptor, or a socket. */
  readonly stdout?: number | Socket
}

/** A program that runs. It runs until it ends by itself or is ended: `end`, or `endWithTest`. */
export class Program {
  readonly child: ChildProcess
  readonly #detached: boolean
  /** Everything printed so far, stdout and stderr. */
  output = ''
  /** Exit code, or the signal that ended it; known when everything that writes to its output has ended too. */
  readonly exited: Promise<number | NodeJS.Signals>
  /** The same, known as soon as it has ended itself. */
  readonly exitedItself: Promise<number | NodeJS.Signals>

  constructor (command: string, args: readonly string[], env: NodeJS.ProcessEnv, {
    cwd = root,
    detached = false,
    stdin = 'ignore',
    stdout,
  }: ProgramOptions = {}) {
    this.#detached = detached
    this.child = spawn(command, args,
      { cwd, detached, env: { ...cleanEnv(), ...env }, stdio: [stdin, stdout ?? 'pipe', 'pipe'] })
    this.child.stdout?.on('data', (chunk) => { this.output += String(chunk) })
    this.child.stderr?.on('data', (chunk) => { this.output += String(chunk) })
    this.exited = new Promise((resolve) => this.child.once('close', (code, signal) => resolve(signal ?? code ?? 0)))
    this.exitedItself = new Promise((resolve) => this.child.once('exit',
      (code, signal) => resolve(signal ?? code ?? 0)))
  }

  get pid (): number {
    return this.child.pid ?? 0
  }

  kill (signal: NodeJS.Signals): void {
    this.child.kill(signal)
  }

  /** Signals everything in its process group; only where it leads one. */
  killGroup (signal: NodeJS.Signals): void {
    if (!this.#detached) throw new Error('it leads no group')
    process.kill(-this.pid, signal)
  }

  /** What lives in its process group. */
  group (): RunningProcess[] {
    return listProcesses().filter(({ group }) => group === this.pid)
  }

  /** Its child processes that run a module, by the module's path: 'apps/web'. */
  children (module: string): RunningProcess[] {
    return listProcesses().filter(({ parent, command }) => parent === this.pid && command.includes(module))
  }

  /** What it printed, line by line, as far as these are JSON objects. */
  logged (): Array<Record<string, unknown>> {
    return this.output.split('\n').flatMap((line) => {
      try {
        const entry: unknown = JSON.parse(line)
        return typeof entry === 'object' && entry !== null ? [{ ...entry }] : []
      } catch {
        return []
      }
    })
  }

  /** Resolves with what a pattern matched in the output. */
  async printed (pattern: RegExp): Promise<RegExpExecArray> {
    return await until(`${pattern} in the output:\n${this.output}`, () => pattern.exec(this.output) ?? undefined)
      .catch((error: unknown) => {
        throw new Error(`never printed ${pattern}; printed:\n${this.output}`,
          { cause: error })
      })
  }

  /** Stops it if it still runs, by force if it does not. For a test's end. */
  async end (): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      this.kill('SIGTERM')
      const timer = setTimeout(() => this.kill('SIGKILL'), 15_000)
      await this.exited
      clearTimeout(timer)
    }
    if (this.#detached) for (const { pid } of this.group()) killIfThere(pid)
  }
}

function killIfThere (pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has just left by itself.
  }
}

/** A process as `ps` lists it. */
export interface RunningProcess {
  readonly pid: number
  readonly parent: number
  readonly group: number
  readonly command: string
}

/** Everything that runs on this machine; what is dead and only waits to be noticed does not. */
export function listProcesses (): RunningProcess[] {
  const { stdout } = spawnSync('ps', ['-A', '-ww', '-o', 'pid=,ppid=,pgid=,stat=,args='], { encoding: 'utf8' })
  return stdout.split('\n').flatMap((line) => {
    const [, pid, parent, group, state, command] = /^ *(\d+) +(\d+) +(\d+) +(\S+) (.*)$/.exec(line) ?? []
    return state === undefined || state.startsWith('Z')
      ? []
      : [{ pid: Number(pid), parent: Number(parent), group: Number(group), command: command ?? '' }]
  })
}

/** This process's environment without anything that would configure the product or npm. */
function cleanEnv (): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env)
    .filter(([name]) => !/^(npm_|VITEST|NODE_|TEST|CI$|DEV$|PROD$|MODE$|SSR$|BASE_URL$)/.test(name)))
}

/** One of the commands of bin/gearbox.ts, on the same Node as the tests. */
export function startCommand (
  name: string, args: readonly string[], env: NodeJS.ProcessEnv, options: ProgramOptions = {}
): Program {
  return new Program(process.execPath, ['bin/gearbox.ts', name, ...args], env, options)
}

/** `npm start` (its program itself) on a free port; resolves once it listens. `url` is where. */
export async function startAll (env: NodeJS.ProcessEnv,
  options: ProgramOptions = {}): Promise<Program & { url: string }> {
  return await listening(startCommand('start', [],
    { PORT: String(await freePort()), WEB_WORKERS: '2', ...env }, options))
}

/** Resolves once a program says that it listens. `url` is where. */
export async function listening (program: Program): Promise<Program & { url: string }> {
  const [, url] = await program.printed(/listens on (http:\/\/[^ ,]+)/).catch(async (error: unknown) => {
    await program.end()
    throw error
  })
  return Object.assign(program, { url: url! })
}

/** Ends a program together with the test that started it. */
export function endWithTest<T extends Program> (program: T): T {
  onTestFinished(async () => { await program.end() })
  return program
}

/** All totals in a database, as they are. */
export function readTotals (path: string): Map<string, bigint> {
  const db = new Database(path, { readonly: true })
  try {
    const rows = db.prepare<[], { key: string, value: bigint }>('SELECT key, value FROM numbers').safeIntegers().all()
    return new Map(rows.map(({ key, value }) => [key, value]))
  } finally {
    db.close()
  }
}

interface Tally {
  readonly key: string
  readonly level: AckLevel
  /** Answered with the level that was asked for. */
  reached: bigint
  /** Answered with 202 though more was asked for. */
  late: bigint
  /** Whether these were counted nobody can know. */
  unanswered: bigint
}

/**
 * Clients that count one at a time, each on its own connection and key, at all ack levels in turn, until they
 * are told to stop.
 */
export class Load {
  /** How many requests were answered, by status. */
  readonly statuses = new Map<number, number>()
  readonly #tallies: Tally[]
  readonly #running: Promise<unknown>
  #stopped = false

  constructor (url: string, name = 'load', clients = 9) {
    this.#tallies = Array.from({ length: clients },
      (_, i) => ({
        key: `${name} ${i}`,
        level: ackLevels[i % ackLevels.length]!,
        reached: 0n,
        late: 0n,
        unanswered: 0n,
      }))
    this.#running = Promise.all(this.#tallies.map(async (tally) => { await this.#count(url, tally) }))
  }

  get answered (): number {
    return [...this.statuses.values()].reduce((sum, count) => sum + count, 0)
  }

  /** Resolves once so many more requests were answered. */
  async more (answers: number): Promise<void> {
    const before = this.answered
    await until(`${answers} more answers under load`, () => this.answered >= before + answers)
  }

  async stop (): Promise<void> {
    this.#stopped = true
    await this.#running
  }

  /**
   * Holds totals against what the clients were told.
   * @param mayLose levels whose answers the totals may lack: of workers that were killed
   * @returns what is wrong
   */
  problems (totals: ReadonlyMap<string, bigint>, mayLose: ReadonlyArray<AckLevel> = []): string[] {
    return this.#tallies.flatMap(({ key, level, reached, late, unanswered }) => {
      const total = totals.get(key) ?? 0n
      const least = (mayLose.includes(level) ? 0n : reached) + (mayLose.includes('memory') ? 0n : late)
      const most = reached + late + unanswered
      return total < least || total > most ? [`${key} (${level}): ${total} is not from ${least} to ${most}`] : []
    })
  }

  async #count (url: string, tally: Tally): Promise<void> {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    while (!this.#stopped) {
      try {
        const body = `${encodeURIComponent(tally.key)}=1`
        const { status } = await post(`${url}/increment?ack=${tally.level}`, body, {}, agent)
        this.statuses.set(status, (this.statuses.get(status) ?? 0) + 1)
        if (status === 204 || (status === 202 && tally.level === 'memory')) tally.reached++
        else if (status === 202) tally.late++
      } catch (error) {
        const refused = error instanceof Error && 'code' in error && error.code === 'ECONNREFUSED'
        if (!refused) tally.unanswered++
        // Whoever is refused asks again, but not in every event-loop iteration.
        else await new Promise((resolve) => setTimeout(resolve, 5))
      }
    }
    agent.destroy()
  }
}
