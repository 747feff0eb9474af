// The parent of the parts of one `npm start`: forks them, starts dead ones again, collects their figures, stops them in order.
import { fork, type ChildProcess } from 'node:child_process'
import { exitCode } from '../errors.ts'
import type { Logger } from '../log/logger.ts'
import { aggregate, countsOf, createLogRegistry, snapshot } from '../metrics.ts'
import type { ToParent, ToPart } from './parent-link.ts'
import { stopDeadlineMs } from './shutdown.ts'

/** Pause before a dead part is started again: doubles while it keeps dying, and is the first one again once it lived for a while. */
const restartMs = { first: 100, most: 1000, livedFor: 5000 }

/** A part that does not tell its figures in time is shown with its last ones. */
const collectTimeoutMs = 1000

/** A part that is told to stop keeps to its own deadline; past this much more it is killed. */
const killAfterMs = stopDeadlineMs + 2000

export interface PartOptions {
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

class Part {
  readonly options: PartOptions
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

  constructor (options: PartOptions) {
    this.options = options
  }
}

export class Parent {
  readonly #options: ParentOptions
  readonly #parts: Part[] = []
  /** What dead processes had counted. */
  readonly #buried: object[] = []
  /** What this process itself counts. */
  readonly #registry = createLogRegistry()
  /** What parts that are started later have to be told first. */
  #announced: ToPart | undefined
  #merging: Promise<void> = Promise.resolve()
  #collectId = 0
  readonly #collecting = new Map<number, { readonly child: ChildProcess, readonly settle: (metrics: object[] | undefined) => void }>()

  constructor (options: ParentOptions) {
    this.#options = options
  }

  /** Starts a part. @returns undefined once it is ready, or the exit code with which it ended before */
  async start (options: PartOptions): Promise<number | undefined> {
    const part = new Part(options)
    this.#parts.push(part)
    return await this.#fork(part)
  }

  /** Names of the processes that run. */
  get running (): string[] {
    return this.#parts.filter(({ child }) => child !== undefined).map(({ options }) => options.name)
  }

  /** Tells all parts, and those that are started again later. */
  announce (message: ToPart): void {
    this.#announced = message
    for (const { child } of this.#parts) if (child !== undefined) this.#send(child, message)
  }

  /**
   * Stops parts, all at once, and waits for them.
   * @param drainMs how long they go on before they begin to stop (DRAIN_MS); 0: not at all
   * @returns their highest exit code
   */
  async stop (names: (name: string) => boolean, drainMs = 0): Promise<number> {
    const killMs = drainMs + killAfterMs
    const codes = await Promise.all(this.#parts.filter(({ options }) => names(options.name)).map(async (part) => {
      part.stopping = true
      clearTimeout(part.restart)
      if (part.child === undefined) return 0
      this.#send(part.child, { type: 'stop', atOnce: drainMs === 0 })
      const kill = setTimeout(() => {
        this.#options.logger.error(`${part.options.name} did not stop within ${killMs} ms and is killed`)
        part.child?.kill('SIGKILL')
      }, killMs)
      const code = await part.exited
      clearTimeout(kill)
      return code
    }))
    return Math.max(0, ...codes)
  }

  /** The figures of all parts, dead ones' counts included. @param scraping whether they are for a scrape, and not for the log */
  async collect (scraping = false): Promise<object[]> {
    await Promise.all(this.#parts.map(async (part) => { await this.#collectFrom(part, scraping) }))
    const own = await snapshot(this.#registry)
    // Read in one go: a part that dies now must be found among the living or among the buried, not in both.
    return await snapshot(aggregate([own, this.#buried, ...this.#parts.map(({ metrics }) => metrics)]))
  }

  /** The same as Prometheus text. */
  async scrape (): Promise<string> {
    return await aggregate([await this.collect(true)]).metrics()
  }

  async #fork (part: Part): Promise<number | undefined> {
    const { name, module, args, env } = part.options
    const child = fork(module, [...args, ...part.restartArgs], { env, stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    part.child = child
    part.startedAt = performance.now()
    this.#changed()
    if (this.#announced !== undefined) this.#send(child, this.#announced)
    part.exited = new Promise((resolve) => {
      child.on('exit', (code, signal) => resolve(this.#ended(part, code, signal)))
      child.on('error', (error) => {
        this.#options.logger.error({ err: error }, `${name}: ${error.message}`)
        // One that could not be made (no memory, no process left) does not exit either.
        if (child.pid === undefined) resolve(this.#ended(part, exitCode.failed, null))
      })
    })
    const ready = new Promise<undefined>((resolve) => {
      child.on('message', (message: ToParent) => {
        if (message.type === 'ready') {
          part.ready = true
          part.restartArgs = message.restartArgs
          resolve(undefined)
        } else this.#received(child, message)
      })
    })
    return await Promise.race([ready, part.exited])
  }

  #ended (part: Part, code: number | null, signal: NodeJS.Signals | null): number {
    const { name } = part.options
    for (const { child, settle } of this.#collecting.values()) if (child === part.child) settle(undefined)
    part.child = undefined
    this.#bury(part)
    this.#changed()
    // One that had no time to listen for signals had nothing to lose either.
    if (part.stopping && signal !== null && !part.ready) return 0
    const status = code ?? exitCode.failed
    if (part.stopping) {
      if (signal !== null) this.#options.logger.error(`${name} was killed by ${signal} while it stopped`)
      return status
    }
    if (!part.ready) return status
    if (status === exitCode.refused || status === exitCode.config) {
      this.#options.onRefused(name, status)
      return status
    }
    if (performance.now() - part.startedAt > restartMs.livedFor) part.restartMs = restartMs.first
    this.#options.logger.warn(`${name} ended (${signal ?? `exit code ${status}`}); it is started again in ${part.restartMs} ms`)
    part.restart = setTimeout(() => { this.#fork(part).catch((error: unknown) => this.#options.logger.error({ err: error }, `${name} can't be started`)) }, part.restartMs)
    part.restartMs = Math.min(part.restartMs * 2, restartMs.most)
    return status
  }

  #bury (part: Part): void {
    this.#buried.push(...countsOf(part.metrics))
    part.metrics = []
    // A part that dies every second must not make this grow.
    this.#merging = this.#merging.then(async () => {
      const merging = this.#buried.length
      this.#buried.splice(0, merging, ...await snapshot(aggregate([this.#buried.slice(0, merging)])))
    }).catch((error: unknown) => this.#options.logger.error({ err: error }, 'the figures of a dead part could not be added up'))
  }

  /** Brings a living part's figures up to date. */
  async #collectFrom (part: Part, scraping: boolean): Promise<void> {
    const { child } = part
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
    if (part.child === child && metrics !== undefined) part.metrics = metrics
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
    this.#options.onChange(this.#parts.flatMap(({ child }) => child?.pid ?? []))
  }

  #send (child: ChildProcess, message: ToPart): void {
    // A child that has just died has closed the channel; its 'exit' is on its way.
    if (child.connected) child.send(message, () => {})
  }
}
