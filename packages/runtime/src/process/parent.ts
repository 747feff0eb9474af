// The parent of the parts of one `npm start`: forks them, starts dead ones again, collects their figures, stops them in order.
import { fork, type ChildProcess } from 'node:child_process'
import type { Logger } from '../log/logger.ts'
import { aggregate, countsOf, createLogRegistry, snapshot } from '../metrics.ts'
import { exitCode } from './exit-codes.ts'
import type { ToParent, ToChild } from './parent-link.ts'
import { stopDeadlineMs } from './shutdown.ts'

/** Pause before a dead part is started again: doubles while it keeps dying, and is the first one again once it lived for a while. */
const restartMs = { first: 100, most: 1000, livedFor: 5000 }

/** A part that does not tell its figures in time is shown with its last ones. */
const collectTimeoutMs = 1000

/** A part that is told to stop keeps to its own deadline; past this much more it is killed. */
const killAfterMs = stopDeadlineMs + 2000

export interface RoleOptions {
  readonly name: string
  /** Path of its main module. */
  readonly module: string
  readonly args: readonly string[]
  readonly env: NodeJS.ProcessEnv
}

export interface ParentOptions {
  readonly logger: Logger
  /** Called whenever other processes are at work than before. */
  readonly onChange: (pids: readonly number[]) => void
  /** Called when a part left for good because starting it again would not help. */
  readonly onRefused: (name: string, code: number) => void
}

class Role {
  readonly options: RoleOptions
  child: ChildProcess | undefined
  exited: Promise<number> = Promise.resolve(0)
  startedAt = 0
  restartMs: number = restartMs.first
  restart: NodeJS.Timeout | undefined
  metrics: object[] = []
  /** Whether it was ever: one that can't start at all is not started again. */
  ready = false
  /** What it said its successor needs to know. */
  restartArgs: readonly string[] = []
  stopping = false

  constructor (options: RoleOptions) {
    this.options = options
  }
}

export class Parent {
  readonly #options: ParentOptions
  readonly #roles: Role[] = []
  /** What dead processes had counted. */
  readonly #exited: object[] = []
  /** What this process itself counts. */
  readonly #registry = createLogRegistry()
  /** What parts that are started later have to be told first. */
  #announced: ToChild | undefined
  #merging: Promise<void> = Promise.resolve()
  #collectId = 0
  readonly #collecting = new Map<number, { readonly child: ChildProcess, readonly settle: (metrics: object[] | undefined) => void }>()

  constructor (options: ParentOptions) {
    this.#options = options
  }

  /** Starts a part. @returns undefined once it is ready, or the exit code with which it ended before */
  async start (options: RoleOptions): Promise<number | undefined> {
    const role = new Role(options)
    this.#roles.push(role)
    return await this.#fork(role)
  }

  /** Names of the processes that run. */
  get running (): string[] {
    return this.#roles.filter(({ child }) => child !== undefined).map(({ options }) => options.name)
  }

  /** Tells all parts, and those that are started again later. */
  announce (message: ToChild): void {
    this.#announced = message
    for (const { child } of this.#roles) if (child !== undefined) this.#send(child, message)
  }

  /**
   * Stops parts, all at once, and waits for them.
   * @param drainMs how long they go on before they begin to stop (DRAIN_MS); 0: not at all
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

  /** The figures of all parts, dead ones' counts included. @param scraping whether they are for a scrape, and not for the log */
  async collect (scraping = false): Promise<object[]> {
    await Promise.all(this.#roles.map(async (role) => { await this.#collectFrom(role, scraping) }))
    const own = await snapshot(this.#registry)
    // Read in one go: a part that dies now must be found among the living or among the buried, not in both.
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
    this.#options.logger.warn(`${name} ended (${signal ?? `exit code ${status}`}); it is started again in ${role.restartMs} ms`)
    role.restart = setTimeout(() => { this.#fork(role).catch((error: unknown) => this.#options.logger.error({ err: error }, `${name} can't be started`)) }, role.restartMs)
    role.restartMs = Math.min(role.restartMs * 2, restartMs.most)
    return status
  }

  #retire (role: Role): void {
    this.#exited.push(...countsOf(role.metrics))
    role.metrics = []
    // A part that dies every second must not make this grow.
    this.#merging = this.#merging.then(async () => {
      const merging = this.#exited.length
      this.#exited.splice(0, merging, ...await snapshot(aggregate([this.#exited.slice(0, merging)])))
    }).catch((error: unknown) => this.#options.logger.error({ err: error }, 'the figures of a dead role could not be added up'))
  }

  /** Brings a living part's figures up to date. */
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
    // A process that died meanwhile is among the buried by now.
    if (role.child === child && metrics !== undefined) role.metrics = metrics
  }

  #received (child: ChildProcess, message: ToParent): void {
    if (message.type === 'collected') {
      this.#collecting.get(message.id)?.settle(message.metrics)
    } else if (message.type === 'scrape') {
      this.scrape().then((text) => this.#send(child, { type: 'scraped', id: message.id, text }), (error: unknown) => {
        this.#options.logger.error({ err: error }, 'the figures could not be collected')
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
