// The product as its users run it: processes started by the programs of its npm scripts, watched through their output.
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { Agent, request as requestHttp } from 'node:http'
import { request as requestHttps, type RequestOptions as HttpsOptions } from 'node:https'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { onTestFinished } from 'vitest'
import { ackLevels, type AckLevel } from '@gearbox/protocol/ack-levels.ts'
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

/** POST /increment with a form body. Resolves with status and text. */
export async function post (url: string, body: string, headers: Record<string, string> = {}): Promise<{
  status: number
  text: string
  headers: Headers
}> {
  const path = url.includes('/increment') ? url : `${url}/increment`
  const response = await fetch(path,
    { method: 'POST', body, headers: { 'content-type': 'application/x-www-form-urlencoded', ...headers } })
  return { status: response.status, text: await response.text(), headers: response.headers }
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
        const status = await postWith(agent, `${url}/increment?ack=${tally.level}`,
          `${encodeURIComponent(tally.key)}=1`)
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

/** POST of a form over an agent's connections. Resolves with the status. */
export async function postWith (agent: Agent | false, url: string, body: string | Buffer,
  headers: Record<string, string> = {}): Promise<number> {
  return (await replyTo(agent, url, body, headers)).status
}

/** The same, with the reply's text. */
export async function replyTo (agent: Agent | false, url: string, body: string | Buffer,
  headers: Record<string, string> = {}): Promise<{ status: number, text: string }> {
  return await send(url, { agent, method: 'POST', headers: { ...formHeaders(body), ...headers } }, body)
}

/** What says that a body is a form, and how long it is. */
export function formHeaders (body: string | Buffer): Record<string, string> {
  return {
    'content-type': 'application/x-www-form-urlencoded',
    'content-length': String(Buffer.byteLength(body)),
  }
}

/** One request over HTTP or HTTPS, with every option of Node's client. Rejects if there is no whole reply. */
export async function send (url: string, options: HttpsOptions, body: string | Buffer = ''): Promise<{
  status: number
  text: string
}> {
  return await new Promise((resolve, reject) => {
    const request = url.startsWith('https:') ? requestHttps : requestHttp
    const outgoing = request(url, options, (response) => {
      let text = ''
      response.setEncoding('utf8')
      response.on('data', (chunk) => { text += String(chunk) })
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }))
      response.on('error', reject)
    })
    outgoing.on('error', reject)
    outgoing.end(body)
  })
}

/** A request whose body comes in two parts, the second when the test says so. */
export class SlowRequest {
  readonly #socket: Socket
  readonly #rest: string
  /** The whole reply as it came, empty if the connection was closed without one. */
  readonly reply: Promise<string>

  private constructor (socket: Socket, rest: string) {
    this.#socket = socket
    this.#rest = rest
    let text = ''
    socket.on('data', (chunk) => { text += String(chunk) })
    socket.on('error', () => {})
    this.reply = new Promise((resolve) => socket.once('close', () => resolve(text)))
  }

  /** Resolves when a worker reads the request: it has asked for the body. */
  static async start (url: string, first: string, rest: string): Promise<SlowRequest> {
    const { hostname, port } = new URL(url)
    const socket = connect(Number(port), hostname)
    socket.write(`POST /increment HTTP/1.1\r\nHost: ${hostname}\r\nConnection: close\r\nExpect: 100-continue\r\n` +
      `Content-Type: application/x-www-form-urlencoded\r\nContent-Length: ${first.length + rest.length}\r\n\r\n`)
    const slow = new SlowRequest(socket, rest)
    await new Promise((resolve, reject) => {
      socket.once('data', resolve)
      socket.once('close', () => reject(new Error('the connection was closed')))
    })
    socket.write(first)
    return slow
  }

  finish (): void {
    this.#socket.write(this.#rest)
  }

  abort (): void {
    this.#socket.destroy()
  }
}
