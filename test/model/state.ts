// One state of the whole system as plain immutable values: workers, Redis, consumers, the database, and commands that
// dead connections left behind. What the protocol never reads (bytes, sums, times) is left out: a batch is the set
// of increments in it, and the database keeps how often it counted each, so that losing one can't hide doubling
// another.
import { none, type Sequences } from '@gearbox/protocol/sequences.ts'

export interface Element {
  readonly producer: number
  readonly seq: number
  readonly increments: readonly number[]
}

/** What the queue remembers, as `incarnation` in packages/queue/src/queue.ts names it. */
export interface Incarnation {
  readonly runId: number
  readonly generation: number
}

/** The keys of packages/queue/src/redis/connection.ts. 0 stands for a missing generation or owner. */
export interface Dataset {
  readonly batches: readonly Element[]
  readonly generation: number
  /** The epoch only: there is one database. */
  readonly owner: number
  /** By producer. */
  readonly stored: readonly Sequences[]
}

export interface Redis {
  /** Of the server process that answers. */
  readonly runId: number
  /** Changes with every primary. */
  readonly replicationId: number
  readonly data: Dataset
  /** What its disk or its replica has: a restart or a failover may go back to it. */
  readonly saved: Dataset
  /** Generations are random in the code and counted here. */
  readonly generations: number
}

export interface Unstored {
  readonly element: Element
  readonly pushed: boolean
  /** It was pushed, and the queue has lost it since. */
  readonly lost: boolean
  /** It was pushed again because it was lost. */
  readonly refilled: boolean
}

/** The outcome of a batch's entry. */
export interface Outcome {
  readonly producer: number
  readonly seq: number
  /** Which of all entries it was. */
  readonly number: number
}

/** A worker's message about outcomes, as the consumer has it. */
export interface Request {
  readonly producer: number
  readonly received: readonly number[]
  readonly missing: readonly number[]
}

/** A push on its way. */
export interface Push {
  readonly elements: readonly Element[]
  readonly generation: number
  /** Whether it is of batches that the queue lost. */
  readonly refills: boolean
  readonly reply: 'pushed' | 'moved' | undefined
}

export interface Worker {
  readonly alive: boolean
  /** Increments that clients have yet to send. */
  readonly coming: readonly number[]
  readonly accumulator: readonly number[]
  /** The rest of a drain, in no batch yet; undefined while no flush is under way. */
  readonly drain: readonly number[] | undefined
  /** Increments whose `queued` replies wait for the flush. */
  readonly group: readonly number[]
  readonly seq: number
  readonly window: readonly Unstored[]
  /** The sequence of the batch that `deliver` is about. */
  readonly delivering: number | undefined
  /** What the queue was when the window's batches were pushed to it. */
  readonly incarnation: Incarnation | undefined
  /** Sequences that a replay has yet to push, and to which incarnation. */
  readonly replay: { readonly to: Incarnation, readonly rest: readonly number[] } | undefined
  /** What its connection is known to lead to; runId 0 while there is none. */
  readonly queue: Incarnation
  readonly push: Push | undefined
  /** A published report of what is stored that has not arrived yet. */
  readonly report: Sequences | undefined
  /** Outcomes that came with reports and were not received yet. */
  readonly news: readonly Outcome[]
  /** Sequences of its batches whose outcomes it waits for; none where batches have no entries. */
  readonly awaited: readonly number[]
  /** The outcomes that it has, and the sequences of those that it has not confirmed. */
  readonly received: readonly Outcome[]
  readonly unconfirmed: readonly number[]
  /** The unsent file that it left when it stopped, and what the queue was when a later worker pushed it. */
  readonly unsent: readonly Element[]
  readonly unsentTo: Incarnation | undefined
}

export interface Database {
  readonly epoch: number
  /** How often each increment is counted. */
  readonly counts: readonly number[]
  /** By producer: what was applied. */
  readonly producers: readonly Sequences[]
  /** Every entry that was applied, in order. */
  readonly entries: readonly Outcome[]
  /** Outcomes that are kept for their workers. */
  readonly outcomes: readonly Outcome[]
}

export type Phase = 'down' | 'identity read' | 'checked' | 'raised' | 'running' | 'taken' | 'applied' | 'committed' |
  'acknowledged'

export interface Consumer {
  readonly phase: Phase
  readonly epoch: number
  /** The queue's owner as it was read at the start. */
  readonly found: number
  /** What the database had when the identity was read, or (a broken rule) at the take. */
  readonly read: Database | undefined
  readonly taken: readonly Element[]
  /** The open transaction's outcome. */
  readonly transaction: Database | undefined
  /** By producer. */
  readonly unreported: ReadonlyArray<Sequences | undefined>
  /** Outcomes for the next report. */
  readonly news: readonly Outcome[]
  readonly requests: readonly Request[]
}

/** A command of a dead connection that Redis may still carry out. */
export type Late =
  | { readonly name: 'push', readonly elements: readonly Element[], readonly generation: number }
  | { readonly name: 'acknowledge', readonly elements: readonly Element[], readonly owner: number }
  | { readonly name: 'bind', readonly expected: number, readonly owner: number }
  | {
    readonly name: 'report progress'
    readonly stored: ReadonlyArray<Sequences | undefined>
    readonly news: readonly Outcome[]
  }

/** How many faults of each kind may still happen. */
export interface Faults {
  /** A request or its reply is lost and the connection with it, or a published report. */
  readonly timeouts: number
  /** A request outlives its connection and is carried out later. */
  readonly late: number
  readonly consumerCrashes: number
  readonly workerCrashes: number
  /** Another consumer is started while one runs. */
  readonly secondConsumers: number
  /** Redis restarts with what it has, with what its disk has, or with nothing. */
  readonly restarts: number
  /** Its disk or replica has now what its memory has. */
  readonly saves: number
  /** Its replica becomes the primary, with what it has, and the other one its replica. */
  readonly failovers: number
  /** FLUSHALL: all is gone and no connection is closed. */
  readonly flushes: number
  /** Somebody takes batches out of the list: the first, the last, or all. No connection is closed. */
  readonly removals: number
  /** Redis becomes a replica of an older copy and a primary again. No connection is closed. */
  readonly swaps: number
  /**
   * A worker finds the queue empty at two polls before a batch that is stored is reported: the consumer is dead, or
   * slow.
   */
  readonly slowReports: number
  /** A worker is stopped, and another one finds its file. */
  readonly stops: number
}

export interface State {
  readonly workers: readonly Worker[]
  readonly redis: Redis
  readonly consumers: readonly Consumer[]
  readonly database: Database
  readonly late: readonly Late[]
  readonly faults: Faults
  /** By increment: was it answered as `queued`? */
  readonly acknowledged: readonly boolean[]
  /** By increment: did Redis lose an element that had it? */
  readonly lostByRedis: readonly boolean[]
  /** Whether a consumer was refused the one database that there is. */
  readonly refused: boolean
  /** Whether every batch has an entry. */
  readonly hasEntries: boolean
}

export const noFaults: Faults = {
  timeouts: 0,
  late: 0,
  consumerCrashes: 0,
  workerCrashes: 0,
  secondConsumers: 0,
  restarts: 0,
  saves: 0,
  failovers: 0,
  flushes: 0,
  removals: 0,
  swaps: 0,
  slowReports: 0,
  stops: 0,
}

export interface Size {
  /** Increments that come to each worker. */
  readonly increments: readonly number[]
  readonly consumers: number
  /** Whether every batch has an entry. */
  readonly entries?: boolean
  readonly faults: Partial<Faults>
}

export const idle: Consumer = {
  phase: 'down',
  epoch: 0,
  found: 0,
  read: undefined,
  taken: [],
  transaction: undefined,
  unreported: [],
  news: [],
  requests: [],
}

export const lostWorker: Worker = {
  alive: false,
  coming: [],
  accumulator: [],
  drain: undefined,
  group: [],
  seq: 0,
  window: [],
  delivering: undefined,
  incarnation: undefined,
  replay: undefined,
  queue: { runId: 0, generation: 0 },
  push: undefined,
  report: undefined,
  news: [],
  awaited: [],
  received: [],
  unconfirmed: [],
  unsent: [],
  unsentTo: undefined,
}

/** Nothing was counted and nothing is connected yet. */
export function initialState ({ increments, consumers, faults, entries = false }: Size): State {
  let next = 0
  const workers =
    increments.map((count) => ({ ...lostWorker, alive: true, coming: Array.from({ length: count }, () => next++) }))
  const producers = workers.map(() => none)
  const data: Dataset = { batches: [], generation: 0, owner: 0, stored: producers }
  const each = Array.from({ length: next }, () => false)
  return {
    workers,
    redis: { runId: 1, replicationId: 1, data, saved: data, generations: 0 },
    consumers: Array.from({ length: consumers }, () => ({ ...idle, unreported: workers.map(() => undefined) })),
    database: { epoch: 0, counts: each.map(() => 0), producers, entries: [], outcomes: [] },
    late: [],
    faults: { ...noFaults, ...faults },
    acknowledged: each,
    lostByRedis: each,
    refused: false,
    hasEntries: entries,
  }
}

/** `list` with one place changed. */
export function set<T> (list: readonly T[], index: number, value: T): T[] {
  const copy = [...list]
  copy[index] = value
  return copy
}

export function at<T> (list: readonly T[], index: number): T {
  const value = list[index]
  if (value === undefined) throw new Error(`nothing at ${index}`)
  return value
}

export function same (a: Incarnation | undefined, b: Incarnation | undefined): boolean {
  return a !== undefined && b !== undefined && a.runId === b.runId && a.generation === b.generation
}

export function sameElement (a: Element, b: Element): boolean {
  return a.producer === b.producer && a.seq === b.seq && a.increments.length === b.increments.length &&
    a.increments.every((increment, i) => increment === b.increments[i])
}
