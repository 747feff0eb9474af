// The parent of the child processes of one `npm start`: forks them, starts dead ones again, collects their metrics, and
// stops them in order.
import { fork, type ChildProcess } from 'node:child_process'
import type { Logger } from '../log/logger.ts'
import { aggregate, countsOf, createLogRegistry, snapshot } from '../metrics.ts'
import { exitCode } from './exit-codes.ts'
import type { ToParent, ToChild } from './parent-link.ts'
import { stopDeadlineMs } from './shutdown.ts'

/** Pause before a dead role is started again: doubles while it keeps dying, until it has lived for a while. */
const restartMs = { first: 100, most: 1000, livedFor: 5000 }

/** A child that does not send its metrics in time is shown with its last ones. */
const collectTimeoutMs = 1000

/** A child keeps to the deadline of a stop by itself; past this it is killed. */
const killAfterMs = stopDeadlineMs + 2000

/** What one child process is and how it is started. */
export interface RoleOptions {
  /** As the log calls it: consumer, web 1. */
  readonly name: string
  /** Path of its main module. */
  readonly module: string
  readonly args: readonly string[]
  readonly env: NodeJS.ProcessEnv
}

/** What a parent reports to. */
export interface ParentOptions {
  readonly logger: Logger
  /** Called whenever the set of running processes changes. */
  readonly onChange: (pids: readonly number[]) => void
  /** Called when a role exited for good: its exit code says that starting it again would not help. */
  readonly onRefused: (name: string, code: number) => void
}

/** A child's metrics that are awaited. */
interface Collection {
  readonly child: ChildProcess
  readonly settle: (metrics: object[] | undefined) => void
}

/** One role, and the process that has it at present. */
class Role {
  readonly options: RoleOptions
  child: ChildProcess | undefined
  exited: Promise<number> = Promise.resolve(0)
  startedAt = 0
  restartMs: number = restartMs.first
  restart: NodeJS.Timeout | undefined
  metrics: object[] = []
  /** Whether it ever was: a role that can't start at all is not started again. */
  ready = false
  /** Arguments for its successor, as it sent them. */
  restartArgs: readonly string[] = []
  stopping = false

  constructor (options: RoleOptions) {
    this.options = options
  }
}

/**
 * Runs roles, each a child process, and answers for all of them.
 *
 * A role is starting from its fork until its `ready` message; an exit before that is final. Ready: an exit with refused
 * or config is final and reported to `onRefused`; after any other, it is waiting. Waiting: a timer forks it again, so
 * it is starting. `stop` makes it stopping from any of these: it is asked to stop, and killed if it does not; its exit
 * is final. Only `#fork`, `#ended` and `stop` change a role's state. The counts of a process that exited are kept, so
 * that sums never fall.
 */
export class Parent {
  readonly #options: ParentOptions
  readonly #roles: Role[] = []
  /** What dead processes had counted. */
  readonly #exited: object[] = []
  /** What this process itself counts. */
  readonly #registry = createLogRegistry()
  /** The first message to children that are started later. */
  #announced: ToChild | undefined
  #merging: Promise<void> = Promise.resolve()
  #collectId = 0
  readonly #collecting = new Map<number, Collection>()

  constructor (options: ParentOptions) {
    this.#options = options
  }

  /** Starts a role. @returns undefined once it is ready, or the exit code with which it ended before */
  async start (options: RoleOptions): Promise<number | undefined> {
    const role = new Role(options)
    this.#roles.push(role)
    return await this.#fork(role)
  }

  /** Names of the processes that run. */
  get running (): string[] {
    return this.#roles.filter(({ child }) => child !== undefined).map(({ options }) => options.name)
  }

  /** Sends a message to all children, and to those that are started later. */
  announce (message: ToChild): void {
    this.#announced = message
    for (const { child } of this.#roles) if (child !== undefined) this.#send(child, message)
  }

  /**
   * Stops roles, all at once, and waits for them.
   * @param drainMs how long they go on before they begin to stop (DRAIN_MS)
   * @returns their highest exit code
   */
  async stop (names: (name: string) => boolean, drainMs = 0): Promise<number> {
    const killMs = drainMs + killAfterMs
    const codes = await Promise.all(this.#roles.filter(({ options }) => names(options.name)).map(async (role) => {
      role.stopping = true
      clearTimeout(role.restart)
      if (role.child === undefined) return 0
      this.#send(role.child, { type: 'stop', atOnce: drainMs === 0 })
      const kill = setTimeout(() => {
        this.#options.logger.error(`${role.options.name} did not stop within ${killMs} ms and is killed`)
        role.child?.kill('SIGKILL')
      }, killMs)
      const code = await role.exited
      clearTimeout(kill)
      return code
    }))
    return Math.max(0, ...codes)
  }

  /**
   * The metrics of all roles, with the counts of processes that exited.
   * @param scraping whether they are for a scrape, and not for the log
   */
  async collect (scraping = false): Promise<object[]> {
    await Promise.all(this.#roles.map(async (role) => { await this.#collectFrom(role, scraping) }))
    const own = await snapshot(this.#registry)
    // In one event-loop iteration: a child that dies now must be found among the running or the exited, not in both.
    return await snapshot(aggregate([own, this.#exited, ...this.#roles.map(({ metrics }) => metrics)]))
  }

  /** The same as Prometheus text. */
  async scrape (): Promise<string> {
    return await aggregate([await this.collect(true)]).metrics()
  }

  async #fork (role: Role): Promise<number | undefined> {
    const { name, module, args, env } = role.options
    const child = fork(module, [...args, ...role.restartArgs], { env, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    role.child = child
    role.startedAt = performance.now()
    this.#changed()
    if (this.#announced !== undefined) this.#send(child, this.#announced)
    role.exited = new Promise((resolve) => {
      child.on('exit', (code, signal) => resolve(this.#ended(role, code, signal)))
      child.on('error', (error) => {
        this.#options.logger.error({ err: error }, `${name}: ${error.message}`)
        // One that could not be made (no memory, no process left) does not exit either.
        if (child.pid === undefined) resolve(this.#ended(role, exitCode.failed, null))
      })
    })
    const ready = new Promise<undefined>((resolve) => {
      child.on('message', (message: ToParent) => {
        if (message.type === 'ready') {
          role.ready = true
          role.restartArgs = message.restartArgs
          resolve(undefined)
        } else this.#received(child, message)
      })
    })
    return await Promise.race([ready, role.exited])
  }

  #ended (role: Role, code: number | null, signal: NodeJS.Signals | null): number {
    const { name } = role.options
    for (const { child, settle } of this.#collecting.values()) if (child === role.child) settle(undefined)
    role.child = undefined
    this.#retire(role)
    this.#changed()
    // One that had no time to listen for signals had nothing to lose either.
    if (role.stopping && signal !== null && !role.ready) return 0
    const status = code ?? exitCode.failed
    if (role.stopping) {
      if (signal !== null) this.#options.logger.error(`${name} was killed by ${signal} while it stopped`)
      return status
    }
    if (!role.ready) return status
    if (status === exitCode.refused || status === exitCode.config) {
      this.#options.onRefused(name, status)
      return status
    }
    if (performance.now() - role.startedAt > restartMs.livedFor) role.restartMs = restartMs.first
    this.#restart(role, signal ?? `exit code ${status}`)
    return status
  }

  #restart (role: Role, ending: string): void {
    const { options: { name }, restartMs: pauseMs } = role
    this.#options.logger.warn(`${name} ended (${ending}); it is started again in ${pauseMs} ms`)
    role.restart = setTimeout(() => {
      this.#fork(role).catch((error: unknown) => {
        this.#options.logger.error({ err: error }, `${name} can't be started`)
      })
    }, pauseMs)
    role.restartMs = Math.min(pauseMs * 2, restartMs.most)
  }

  /** Keeps the counts of a process that exited. */
  #retire (role: Role): void {
    this.#exited.push(...countsOf(role.metrics))
    role.metrics = []
    // A role that dies every second must not make this grow.
    this.#merging = this.#merging.then(async () => {
      const merging = this.#exited.length
      this.#exited.splice(0, merging, ...await snapshot(aggregate([this.#exited.slice(0, merging)])))
    }).catch((error: unknown) => {
      this.#options.logger.error({ err: error }, 'the metrics of an exited process could not be added up')
    })
  }

  /** Brings the metrics of a running role up to date. */
  async #collectFrom (role: Role, scraping: boolean): Promise<void> {
    const { child } = role
    if (child === undefined) return
    const id = ++this.#collectId
    const metrics = await new Promise<object[] | undefined>((resolve) => {
      const timer = setTimeout(() => resolve(undefined), collectTimeoutMs)
      const settle = (metrics: object[] | undefined): void => {
        clearTimeout(timer)
        resolve(metrics)
      }
      this.#collecting.set(id, { child, settle })
      this.#send(child, { type: 'collect', id, scraping })
    })
    this.#collecting.delete(id)
    // A process that died meanwhile is among the exited by now.
    if (role.child === child && metrics !== undefined) role.metrics = metrics
  }

  #received (child: ChildProcess, message: ToParent): void {
    if (message.type === 'collected') {
      this.#collecting.get(message.id)?.settle(message.metrics)
    } else if (message.type === 'scrape') {
      this.scrape().then((text) => this.#send(child, { type: 'scraped', id: message.id, text }), (error: unknown) => {
        this.#options.logger.error({ err: error }, 'the metrics could not be collected')
        this.#send(child, { type: 'scraped', id: message.id, text: '' })
      })
    }
  }

  #changed (): void {
    this.#options.onChange(this.#roles.flatMap(({ child }) => child?.pid ?? []))
  }

  #send (child: ChildProcess, message: ToChild): void {
    // A child that has just died has closed the channel; its 'exit' is on its way.
    if (child.connected) child.send(message, () => {})
  }
}
