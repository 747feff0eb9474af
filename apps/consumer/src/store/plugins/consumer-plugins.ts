// The consumer parts of the plugins that are loaded, on one connection: calls them, and notices what they did to the
// transaction. The correction of totals is one of them.
import type Database from 'better-sqlite3'
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import type {
  AppliedEntry, AppliedSums, Changes, ConsumerContext, ConsumerPart, Correction, LoadedPlugin,
  PluginDatabase,
} from '@gearbox/runtime/plugin.ts'
import { correctTotal, correctionsName, type Corrected } from './corrections.ts'
import { isOfConnection, TransactionDatabase } from './plugin-database.ts'

/** What of plugins the store works with. */
export interface PluginOptions {
  readonly loaded: readonly LoadedPlugin[]
  readonly logger: Logger
}

/**
 * The transaction of a run is gone, or can't be trusted any more: nothing but ROLLBACK may be executed on its
 * connection, which is to be made again.
 */
export class RunAbandonedError extends Error {
  override name = 'RunAbandonedError'
}

/** A plugin fails at what it must do for every run: nothing can be stored until it is fixed, or no longer loaded. */
export class PluginFailedError extends RunAbandonedError {}

/** What a commit changed, for `afterCommit`. */
export interface RunChanges {
  readonly sums: readonly AppliedSums[]
  readonly corrected: readonly string[]
  /** By plugin, the results of its entries. */
  readonly results: ReadonlyMap<string, readonly Json[]>
}

type Settings = LoadedPlugin['settings']

interface Part {
  readonly name: string
  readonly consumer: ConsumerPart<Settings>
  readonly settings: Settings
  readonly logger: Logger
  readonly database: PluginDatabase
}

/** The consumer parts of all plugins. Its methods but `afterCommit` are called within the transaction of a run. */
export class ConsumerPlugins {
  readonly #db: Database.Database
  readonly #database: TransactionDatabase
  readonly #parts: readonly Part[]
  readonly #byName: ReadonlyMap<string, Part>
  /** Whether any plugin follows what runs add. Otherwise nobody needs to find out. */
  readonly followSums: boolean
  /** Whether any plugin follows commits. */
  readonly followCommits: boolean

  constructor (db: Database.Database, options: PluginOptions | undefined) {
    this.#db = db
    this.#database = new TransactionDatabase(db)
    this.#parts = (options?.loaded ?? []).flatMap(({ plugin: { name, consumer }, settings }) =>
      consumer === undefined || options === undefined
        ? []
        : [{
            name,
            consumer,
            settings,
            logger: options.logger.child({ plugin: name }),
            database: this.#database.ofPlugin(name),
          }])
    this.#byName = new Map(this.#parts.map((part) => [part.name, part]))
    this.followCommits = this.#parts.some(({ consumer }) => consumer.afterCommit !== undefined)
    this.followSums = this.followCommits || this.#parts.some(({ consumer }) => consumer.afterSums !== undefined)
  }

  /** Names of those whose entries can be applied. */
  get names (): string[] {
    const names = this.#parts.filter(({ consumer }) => consumer.apply !== undefined).map(({ name }) => name)
    return [...names, correctionsName]
  }

  /** Whether entries of that name can be applied. */
  has (name: string): boolean {
    return name === correctionsName || this.#byName.get(name)?.consumer.apply !== undefined
  }

  /**
   * Applies one entry. What it did must be undone if this throws, or `endCall` does.
   * @returns what it came to, which may be anything
   * @throws whatever the plugin throws
   */
  apply (name: string, entry: AppliedEntry, now: number): unknown {
    if (name === correctionsName) {
      return correctTotal(entry.data, this.#database, now, (correction) => this.#afterCorrection(correction, now))
    }
    const part = this.#byName.get(name)
    return part?.consumer.apply?.(entry, this.#contextOf(part, now))
  }

  /**
   * Corrects a total by itself, and not as an entry.
   * @throws EntryRefusedError; RunAbandonedError; whatever a plugin throws that follows corrections
   */
  correct (correction: Json, now: number): Corrected {
    const corrected = correctTotal(correction, this.#database, now, (done) => this.#afterCorrection(done, now))
    if (!this.endCall()) throw new RunAbandonedError('a plugin has ended the transaction')
    return corrected
  }

  /**
   * To be called after every call of a plugin, thrown or not.
   * @returns whether the transaction is still open; if not, what was executed in it has ended it
   * @throws RunAbandonedError if the disk or the connection failed meanwhile, whether or not the plugin let it pass
   */
  endCall (): boolean {
    const failure = this.#database.takeFailure()
    if (failure !== undefined) throw new RunAbandonedError(reasonOf(failure), { cause: failure })
    return this.#db.inTransaction
  }

  /**
   * Passes on what was added by a run.
   * @throws RunAbandonedError if a plugin fails: nothing of the run is stored then
   */
  afterSums (sums: readonly AppliedSums[], now: number): void {
    for (const part of this.#parts) {
      if (part.consumer.afterSums === undefined) continue
      this.#orAbandon(part, 'afterSums', () => part.consumer.afterSums?.({ sums }, this.#contextOf(part, now)))
    }
  }

  /**
   * Runs something else that plugins do in a transaction.
   * @param run gets the database as a plugin of a name may use it
   * @throws whatever it throws; RunAbandonedError if the transaction is lost
   */
  runOther (run: (databaseOf: (plugin: string) => PluginDatabase) => void): void {
    run((plugin) => this.#database.ofPlugin(plugin))
    if (!this.endCall()) throw new RunAbandonedError('a plugin has ended the transaction')
  }

  /** Passes on what was committed. It is a hint: a plugin that fails is logged. */
  afterCommit ({ sums, corrected, results }: RunChanges): void {
    if (sums.length === 0 && corrected.length === 0 && results.size === 0) return
    for (const { name, consumer, settings, logger } of this.#parts) {
      if (consumer.afterCommit === undefined) continue
      const changes: Changes = { sums, corrected, results: results.get(name) ?? [] }
      const failed = (error: unknown): void => { logger.error({ err: error }, `plugin ${name} failed in afterCommit`) }
      try {
        const result: unknown = consumer.afterCommit(changes, { settings, logger })
        // It should not be one; an unhandled rejection would end the process.
        if (isPromise(result)) result.then(undefined, failed)
      } catch (error) {
        failed(error)
      }
    }
  }

  #afterCorrection (correction: Correction, now: number): void {
    for (const part of this.#parts) {
      const result: unknown = part.consumer.afterCorrection?.(correction, this.#contextOf(part, now))
      refusePromise(result)
    }
  }

  #orAbandon (part: Part, what: string, call: () => unknown): void {
    const abandoned = (cause: unknown): RunAbandonedError => {
      if (isOfConnection(cause)) return new RunAbandonedError(reasonOf(cause), { cause })
      return new PluginFailedError(`plugin ${part.name} failed in ${what}: ${reasonOf(cause)}`, { cause })
    }
    try {
      refusePromise(call())
    } catch (error) {
      throw abandoned(error)
    }
    if (!this.endCall()) throw abandoned(new Error('it ended the transaction'))
  }

  #contextOf ({ settings, logger, database }: Part, now: number): ConsumerContext<Settings> {
    return { settings, logger, database, now }
  }
}

/** Whether a plugin returned a promise: what it does after it is not in the transaction. */
export function isPromise (value: unknown): value is PromiseLike<unknown> {
  return typeof value === 'object' && value !== null && 'then' in value && typeof value.then === 'function'
}

/** @throws Error if a plugin returned a promise */
export function refusePromise (value: unknown): void {
  if (!isPromise(value)) return
  // Whether it fails no longer matters, and must not end the process.
  value.then(undefined, () => {})
  throw new TypeError('it returned a promise: what a plugin does in the consumer is synchronous')
}
