// One entry that a plugin's route submitted, and the replies that wait for what it comes to.
import { isDeepStrictEqual } from 'node:util'
import { encodeEntry, EntryTooDeepError } from '@gearbox/protocol/batch.ts'
import {
  entryBytesMax, entryLevelsMax, type EntryOutcome, type Json, type PluginEntry,
} from '@gearbox/protocol/plugin-entry.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import type { Submitted } from '@gearbox/runtime/plugin.ts'
import type { PendingEntry } from '../accumulate/pending-entries.ts'

/** Estimated bytes of an entry besides its text: itself, its promises, and its place in a batch. */
const ownBytes = 1024

/** Estimated bytes of the text of an entry that is made when it leaves. */
const madeTextBytes = 1024

/** A reply that waits for an entry. */
export interface Waiter {
  readonly entry: SubmittedEntry
  /** When it began to wait (performance.now, ms). */
  readonly since: number
  /** About the bytes that it takes. */
  readonly bytes: number
  resolve (submitted: Submitted): void
  reject (error: unknown): void
}

/** What an entry is made of. */
export interface EntryParts extends Omit<PluginEntry, 'data'> {
  readonly data: Json | (() => Json | undefined)
  readonly alone: boolean
}

/** How an entry ended: its outcome, why there will be none, or `dropped` if nothing was sent. */
type End = { readonly result: Json } | { readonly failure: unknown } | 'dropped'

/** Whom an entry reports to. */
export interface EntryEvents {
  /** It is entry number `number` of batch `seq`. */
  onBatch (entry: SubmittedEntry, seq: number, number: number): void
  /** It is settled: called once, after its replies were given. */
  onSettled (entry: SubmittedEntry): void
}

/**
 * An entry goes this way:
 *
 * - waiting: at the start, in the accumulator. Left by `encode`.
 * - sent: it is in a batch. Entered by `encode`, if there is anything to send.
 * - settled: entered by `settle` with the outcome, by `encode` if there is nothing to send or it can't be made, and by
 *   `fail`. For good: what comes later changes nothing.
 *
 * `fail` does not keep an entry that waits from being sent.
 */
export class SubmittedEntry implements PendingEntry {
  readonly alone: boolean
  readonly id: string | undefined
  readonly #parts: EntryParts
  readonly #events: EntryEvents
  /** Undefined if it is made when it leaves. */
  #text: string | undefined
  readonly #textBytes: number
  readonly #waiters = new Set<Waiter>()
  #late: PromiseWithResolvers<Json> | undefined
  #end: End | undefined

  /** @throws RequestError if the data is too long (413) or nested too deep (400), TypeError if it is not JSON */
  constructor (parts: EntryParts, events: EntryEvents) {
    this.alone = parts.alone
    this.id = parts.id
    this.#parts = parts
    this.#events = events
    this.#text = typeof parts.data === 'function' ? undefined : encode(parts, parts.data)
    this.#textBytes = this.#text === undefined ? madeTextBytes : 2 * this.#text.length
  }

  /** Bytes that it takes until it is in a batch, besides those that it keeps. */
  get bytes (): number {
    return this.id === undefined ? this.#textBytes : 0
  }

  /** Bytes that it takes until it is settled. One with an id keeps its text, to be compared with that of repeats. */
  get keptBytes (): number {
    return ownBytes + (this.id === undefined ? 0 : this.#textBytes)
  }

  /** Whether it is settled. */
  get isSettled (): boolean {
    return this.#end !== undefined
  }

  /** Whether a repeat can be compared with it. Data that is made only when it leaves can not. */
  get isComparable (): boolean {
    return this.id !== undefined && this.#text !== undefined
  }

  /** Whether another entry has the same data, whatever the order of its fields. */
  hasDataOf (other: SubmittedEntry): boolean {
    return isDeepStrictEqual(dataOf(this.#text), dataOf(other.#text))
  }

  /** Adds a reply that waits. It must not be settled. */
  add (waiter: Waiter): void {
    this.#waiters.add(waiter)
  }

  /** Gives a reply whose time is up. */
  giveLate (waiter: Waiter): void {
    this.#waiters.delete(waiter)
    if (this.#late === undefined) {
      this.#late = Promise.withResolvers()
      // A plugin need not care what became of it.
      this.#late.promise.catch(() => {})
    }
    waiter.resolve({ state: 'pending', late: this.#late.promise })
  }

  encode (): string | undefined {
    const { data } = this.#parts
    if (typeof data !== 'function') {
      const text = this.#text
      if (this.id === undefined) this.#text = undefined
      return text
    }
    try {
      const made = data()
      if (made !== undefined) return encode(this.#parts, made)
      this.#settle('dropped')
    } catch (error) {
      this.fail(error)
    }
    return undefined
  }

  onBatch (seq: number, number: number): void {
    this.#events.onBatch(this, seq, number)
  }

  /** It is stored. */
  settle (outcome: EntryOutcome): void {
    this.#settle('result' in outcome ? outcome : { failure: new RequestError(outcome.error) })
  }

  /** There will be no outcome. */
  fail (failure: unknown): void {
    this.#settle({ failure })
  }

  /** The replies that wait. */
  get waiters (): Iterable<Waiter> {
    return this.#waiters
  }

  #settle (end: End): void {
    if (this.#end !== undefined) return
    this.#end = end
    for (const waiter of this.#waiters) {
      if (end === 'dropped') waiter.resolve({ state: 'dropped' })
      else if ('result' in end) waiter.resolve({ state: 'stored', result: end.result })
      else waiter.reject(end.failure)
    }
    if (end === 'dropped') this.#late?.reject(new RequestError('GBX_INTERNAL', 'nothing was sent'))
    else if ('result' in end) this.#late?.resolve(end.result)
    else this.#late?.reject(end.failure)
    this.#events.onSettled(this)
    this.#waiters.clear()
  }
}

function encode ({ plugin, id, at }: EntryParts, data: Json): string {
  refusePromise(plugin, data)
  let text: string
  try {
    text = encodeEntry({ plugin, data, ...(id === undefined ? {} : { id, at }) })
  } catch (error) {
    if (error instanceof EntryTooDeepError) {
      throw new RequestError('GBX_BAD_REQUEST',
        `what is submitted may be nested ${entryLevelsMax - 1} levels deep at most`)
    }
    if (!(error instanceof RangeError)) throw error
    throw new RequestError('GBX_BODY_TOO_LARGE', `what is submitted may have ${entryBytesMax} bytes of JSON at most`)
  }
  // JSON.stringify leaves out what it can't write.
  if (!text.startsWith(`{"plugin":"${plugin}","data":`)) throw new TypeError(`${plugin} submitted what is not JSON`)
  return text
}

/** As JSON a promise is `{}`, which nobody meant. @throws TypeError */
function refusePromise (plugin: string, data: unknown): void {
  if (!(data instanceof Promise)) return
  // Whether it fails no longer matters, and must not end the process.
  data.catch(() => {})
  throw new TypeError(`${plugin} submitted a promise`)
}

function dataOf (text: string | undefined): unknown {
  return text === undefined ? undefined : Reflect.get(JSON.parse(text), 'data')
}
