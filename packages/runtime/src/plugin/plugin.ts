// The seam of plugins: what a plugin is made of, and what each of its parts is given. A plugin imports this module and
// nothing else of Gearbox but the protocol; the web worker, the consumer and the commands load it and call its parts.
import type { Socket } from 'node:net'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import type { AckLevel } from '@gearbox/protocol/ack-levels.ts'
import type { EntryError, Json } from '@gearbox/protocol/plugin-entry.ts'
import type { Need, Scope } from '../access/api-keys.ts'
import type { Config, PublicPart } from '../config.ts'
import { RequestError } from '../http/errors.ts'
import type { Logger } from '../log/logger.ts'
import type { CommandOf } from '../process/command-parts.ts'
import type { Options } from '../process/options.ts'
import type { Schema, ValuesOf } from '../settings/schema.ts'

export { FatalError } from '../errors.ts'
// A message of a plugin shows what a client sent as all others do, and /docs what its errors look like.
export { echo } from '../http/echo.ts'
export { errorSchema } from '../http/errors.ts'
export type { Json } from '@gearbox/protocol/plugin-entry.ts'
export { integer, list, oneOf, optional, path, printable, type Setting } from '../settings/setting.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a request's API key must be for; by default `admin`, so that a route that forgets it is closed. */
    needs?: Need
    /** Whether it answers under any Host: only for replies that tell a stranger nothing. */
    anyHost?: boolean
    /** Where PUBLIC lists this, the route answers without an API key. */
    public?: PublicPart
  }
}

/** A plugin as its module exports it. */
export interface Plugin<S extends Schema = Schema> {
  /**
   * Lower-case letters, digits and dashes. Its variables are `NAME` and `NAME_…`, its tables `name_…`, its metrics
   * `gearbox_name_…`; a plugin `tickets` may also have `gearbox_ticket_…`.
   */
  readonly name: string
  /** Its settings: rows of the same table as those of Gearbox, each for a variable with the plugin's prefix. */
  readonly settings?: S
  /** A Fastify plugin: its routes, hooks on them, and `onClose`. Runs once in every web worker, before it listens. */
  readonly web?: (app: FastifyInstance, context: WebContext<ValuesOf<S>>) => void | Promise<void>
  /** What it does in the consumer, in the transactions that store batches. */
  readonly consumer?: ConsumerPart<ValuesOf<S>>
  /** Commands that it adds to `npm run gearbox -- NAME`. */
  readonly commands?: ReadonlyArray<PluginCommand<ValuesOf<S>>>
  /** What it adds to `npm run verify`. @returns a line for each thing that it checked */
  readonly verify?: (database: PluginDatabase) => readonly PluginFinding[]
  /**
   * What it does when a database gets a new identity (`npm run rebind`), in the transaction that gives it.
   * @returns lines to print
   */
  readonly rebind?: RebindPart
}

/** A plugin's part of `npm run rebind`: options of its own, and what it does to its tables. */
export interface RebindPart {
  /** Its options, each beginning with the plugin's name, with what --help shows behind it: `N  what it does`. */
  readonly options?: Readonly<Record<string, { readonly type: 'string', readonly usage: string }>>
  /** @param values the options that were given @returns lines to print @throws FatalError for a wrong value */
  run (database: PluginDatabase, values: Readonly<Record<string, string | undefined>>): readonly string[]
}

/** A line of `npm run verify`. */
export interface PluginFinding {
  readonly text: string
  readonly right: boolean
}

/** A plugin that was loaded, with what its settings say. */
export interface LoadedPlugin {
  readonly plugin: Plugin
  readonly settings: ValuesOf<Schema>
}

/** A plugin, with the types of its settings taken from their rows. */
export function definePlugin<const S extends Schema = Record<never, never>> (plugin: Plugin<S>): Plugin<S> {
  return plugin
}

/** A command of a plugin: it is run with its arguments, the settings of Gearbox that it lists, and the plugin's own. */
export type PluginCommand<
  Settings = ValuesOf<Schema>, O extends Options = Options, Name extends keyof Config = keyof Config
> = CommandOf<Settings, O, Name>

/** A command of a plugin, with the types of its arguments and of its config taken from its options and settings. */
export function defineCommand<Settings, const O extends Options, const Name extends keyof Config> (
  command: PluginCommand<Settings, O, Name>
): PluginCommand<Settings, O, Name> {
  return command
}

/** What the web part of a plugin works with. */
export interface WebContext<Settings> {
  readonly settings: Settings
  /** The core's settings that a route may need to know. */
  readonly core: Pick<Config, 'ackTimeoutMs' | 'basePath' | 'databasePath'>
  readonly logger: Logger
  /**
   * Adds to totals. It is the same promise as a POST: when it resolves the level is reached, or the increment is in
   * memory and on its way ('accepted': asked for, or the level was not reached in time).
   * @throws RequestError nothing was counted
   */
  increment (pairs: Pairs, options?: IncrementOptions): Promise<'reached' | 'accepted'>
  /**
   * Sends an entry to the consumer, where `apply` of this plugin runs in a transaction, exactly once.
   * @param data JSON of at most 64 KiB with its wrapping, and 99 levels; or a function that is called once, when the
   * entry leaves this worker, so that what comes until then can travel in it: it returns the data, or undefined if
   * nothing is left to do
   * @throws RequestError if a limit is reached or the queue is out of reach: nothing was sent
   */
  submit (data: Json | (() => Json | undefined), options?: SubmitOptions): Promise<Submitted>
  /**
   * Counts a reply that waits on somebody else's entry in this worker's limits, as `submit` does for its own.
   * @param bytes about what is kept for it
   * @returns to be called once, when it no longer waits
   * @throws RequestError (503) as `submit`
   */
  holdReply (bytes: number): () => void
  /** What a request's Idempotency-Key makes of `submit` and `increment`: pass it on. @throws RequestError (400) */
  idempotency (request: FastifyRequest): { readonly idempotencyKey?: string, readonly caller?: string }
  /**
   * Takes a request's bare socket, for a reply that goes on for long: Node's response object and parser are freed. The
   * handler must return nothing; whoever takes it writes the head as well, ends the socket, and does so when `stopping`
   * aborts. It still counts in CONNECTIONS_MAX.
   * @returns a socket whose input is dropped until you listen for it; an error on it closes it, and needs no listener
   * @throws Error if the connection is gone, or has another reply to write first
   */
  detach (request: FastifyRequest): Socket
  /**
   * Answers the plainest requests for one of the plugin's own routes, `POST {prefix}:name`, without Node's parser and
   * Fastify, which cost several times what the rest does: those for one unreserved name (A–Z a–z 0–9 - . _ ~, at most
   * 256), without a query, a body, an Idempotency-Key, an Origin, or an Accept that prefers anything to JSON. The
   * checks that come before a route are made as for it. The handler must answer as the route would, with the same
   * status, headers in the same order, and body; whichever of them gets a request must not matter. With FAST_LANE=off,
   * and for whatever is not as plain, it is the route.
   * @param prefix with a slash at its beginning and its end, such as `/tickets/`; to be called in the plugin's `web`
   */
  fastPost (prefix: string, handler: FastPostHandler): void
  /** Whether a request's API key has a scope; always true where API_KEYS is unset. */
  isAllowed (request: FastifyRequest, scope: Scope): boolean
  /** Whether API_KEYS is set. */
  readonly hasApiKeys: boolean
  /** Reads from the database, in short read transactions. */
  readonly database: PluginReader
  readonly metrics: PluginMetrics
  /** Aborts when this worker begins to stop. */
  readonly stopping: AbortSignal
  /** The producer of this worker's batches. */
  readonly producer: string
}

/**
 * Answers one request for `fastPost`, at once or later, but exactly once: further answers are ignored. If it throws,
 * that is the answer, as by `fail`.
 */
export type FastPostHandler = (name: string, reply: FastReply) => void

/** The reply to one request of `fastPost`. Replies on one connection leave in the order of their requests. */
export interface FastReply {
  /** Whether the client has closed its connection, or ended its side of it. */
  isGone (): boolean
  /**
   * @param statusCode of a reply that has a body
   * @param headers by lower-case names, without those of the body and the connection
   * @param json the body
   */
  send (statusCode: number, headers: Readonly<Record<string, string>>, json: string): void
  /** Answers with the error that Fastify's `reply.send(error)` would give. @param headers as for `send` */
  fail (error: unknown, headers?: Readonly<Record<string, string>>): void
}

/** Sums by key: an object or a Map of key to an integer within 64 bits. */
export type Pairs = Readonly<Record<string, number | bigint>> | ReadonlyMap<string, number | bigint>

/** How an increment is to be counted. */
export interface IncrementOptions {
  /** Default: ACK. */
  readonly ack?: AckLevel
  /** Within IDEMPOTENCY_HOURS the same key counts once. 1 to 255 visible ASCII characters. */
  readonly idempotencyKey?: string
  /** Whose key it is, where several callers may choose the same. */
  readonly caller?: string
}

/** How an entry is to be sent. */
export interface SubmitOptions {
  /** Within IDEMPOTENCY_HOURS the same key is applied once and has the same result. */
  readonly idempotencyKey?: string
  readonly caller?: string
  /** What the key is for, such as the route and the name in it: the same key means something else for each. */
  readonly scope?: string
  /** About the bytes of a reply that waits for it. */
  readonly replyBytes?: number
}

/** What became of an entry within ACK_TIMEOUT_MS. */
export type Submitted = {
  /** It is stored, and this is what `apply` returned. If it threw, `submit` throws instead. */
  readonly state: 'stored'
  readonly result: Json
} | {
  /** Not known yet; it is still on its way. */
  readonly state: 'pending'
  /** Resolves once it is stored. Rejects as `submit` would have; or if this worker stops first. */
  readonly late: Promise<Json>
} | {
  /** The function that makes the data returned undefined: nothing was sent. */
  readonly state: 'dropped'
}

/** What the consumer part of a plugin is given at each call. */
export interface ConsumerContext<Settings> {
  readonly settings: Settings
  readonly logger: Logger
  /** The database, in the transaction of the run. */
  readonly database: PluginDatabase
  /** Unix ms; the same for all of a run. */
  readonly now: number
}

/**
 * What a plugin does in the consumer. All of it is synchronous and does no I/O but with its database: the consumer is
 * one thread, and everything waits for it.
 */
export interface ConsumerPart<Settings> {
  /**
   * SQL scripts that make and change the plugin's tables, one per version. Each runs once per database, in its own
   * transaction, in this order; one that was released is never changed.
   */
  readonly migrations?: readonly string[]
  /**
   * Applies one entry that `submit` sent. It is called once per entry, whatever is repeated on the way.
   * @returns its result: JSON of at most 4 KiB
   * @throws refuse(…) for an entry that can't be applied: nothing of it is kept, and its client gets that error
   */
  readonly apply?: (entry: AppliedEntry, context: ConsumerContext<Settings>) => Json
  /**
   * Called after the sums of a run were added, in the same transaction, with exactly what was added. If it throws,
   * nothing of the run is stored, and it is tried again until it does not throw.
   */
  readonly afterSums?: (run: AppliedRun, context: ConsumerContext<Settings>) => void
  /**
   * Called after a total was corrected, in the same transaction. If it throws, the correction is not made.
   */
  readonly afterCorrection?: (correction: Correction, context: ConsumerContext<Settings>) => void
  /** Called after a commit, outside of it, at most once per commit: a hint, which a crash can swallow. */
  readonly afterCommit?: (changes: Changes, context: Omit<ConsumerContext<Settings>, 'database' | 'now'>) => void
}

/** An entry as `apply` gets it. `producer`, `seq` and `entry` together are unique to it. */
export interface AppliedEntry {
  readonly data: Json
  readonly producer: string
  readonly seq: number
  /** Its number in its batch, from 0. */
  readonly entry: number
  /** When its batch was accepted, by its worker's clock but not in the future; Unix ms. */
  readonly at: number
}

/** Sums that were added. */
export interface AppliedSums {
  /** When the oldest of them was accepted, Unix ms, not in the future. */
  readonly at: number
  /** JSON object of key to sum, for SQLite's json_each: integers of all 64 bits. */
  readonly json: string
}

/** What a run added, in its order; an idempotent request is sums of its own. */
export interface AppliedRun {
  readonly sums: readonly AppliedSums[]
}

/** A total that was set or removed; undefined: there is no row. */
export interface Correction {
  readonly key: string
  readonly before: bigint | undefined
  readonly after: bigint | undefined
}

/** What a commit changed. */
export interface Changes {
  readonly sums: readonly AppliedSums[]
  /** Keys whose totals were set or removed. */
  readonly corrected: readonly string[]
  /** The results of this plugin's entries. */
  readonly results: readonly Json[]
}

/** A value that SQLite takes; integers past 2^53 are bigints. */
export type SqlValue = string | number | bigint | Buffer | null

/** Reads from the database. Statements are prepared once per text. Integers past 2^53 are bigints, others numbers. */
export interface PluginReader {
  /** @throws RequestError (503 GBX_NO_DATABASE) where this host has no readable database, or one without its tables */
  get<Row> (sql: string, ...values: SqlValue[]): Row | undefined
  /** Rows at most 10,000 at a time: ask for the next ones by key. @throws as `get` */
  all<Row> (sql: string, ...values: SqlValue[]): Row[]
}

/** The database as a plugin may use it: one SELECT, INSERT, UPDATE or DELETE at a time, within the transaction. */
export interface PluginDatabase {
  /** Integers of the row are numbers. @throws any SQLite error */
  get<Row> (sql: string, ...values: SqlValue[]): Row | undefined
  all<Row> (sql: string, ...values: SqlValue[]): Row[]
  /** @returns how many rows were changed */
  run (sql: string, ...values: SqlValue[]): number
}

/** Metrics of a plugin. Their names begin with `gearbox_NAME_`; the last `s` of a plural may be left out. */
export interface PluginMetrics {
  counter (name: string, help: string, read: () => number): void
  gauge (name: string, help: string, aggregator: 'sum' | 'max' | 'min', read: () => number | undefined): void
  /** @returns to be called with the seconds that each took */
  durations (name: string, help: string): (seconds: number) => void
}

/** An entry that is refused: nothing of it is kept, and its client gets this error. */
export class EntryRefusedError extends Error {
  readonly entryError: EntryError

  constructor (entryError: EntryError) {
    super(entryError.message)
    this.name = 'EntryRefusedError'
    this.entryError = entryError
  }
}

/** The error for `apply` to throw where an entry can't be applied by the plugin's own rules. */
export function refuse (
  statusCode: number, code: string, message: string, details?: { readonly [name: string]: Json }
): EntryRefusedError {
  return new EntryRefusedError({ statusCode, code, message, ...(details === undefined ? {} : { details }) })
}

/** An error reply of a plugin's route, as `refuse` makes it for an entry. */
export function replyError (
  statusCode: number, code: string, message: string, details?: { readonly [name: string]: Json }
): RequestError {
  return new RequestError({ statusCode, code, message, ...(details === undefined ? {} : { details }) })
}
