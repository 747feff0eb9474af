// One run of elements in one transaction, apart from how sums are added: skips what was applied before, sets aside what
// can't be applied, and records what is applied now. apply-run.ts drives it.
import { createHash } from 'node:crypto'
import { readEntries, readHeader, withoutEntries, type Header } from '@gearbox/protocol/batch.ts'
import type { PluginEntry } from '@gearbox/protocol/plugin-entry.ts'
import type { Rejection, RejectReason } from '@gearbox/protocol/progress.ts'
import { has, include, type Sequences } from '@gearbox/protocol/sequences.ts'
import type { Connection } from './connection.ts'
import type { RunChanges } from './plugins/consumer-plugins.ts'
import { PluginTally, type HandledEntry } from './plugins/tally.ts'
import type { NewRejected } from './rejections.ts'
import { reportOf, type Report } from './reports.ts'
import type { StoredResult } from './results.ts'
import { sequencesOf } from './statements.ts'

/** What one run of elements did to the database. */
export interface Applied {
  readonly batches: number
  readonly duplicates: number
  /** What is stored of each producer that had an element in the run. */
  readonly stored: ReadonlyMap<string, Sequences>
  /** What was not applied. `filed: false`: nobody was promised it, and it is kept nowhere. */
  readonly rejections: ReadonlyArray<Rejection & { readonly producer: string | undefined }>
  /** Reports of elements that had been handled before. */
  readonly repeated: ReadonlyArray<Report & { readonly producer: string }>
  /** What should have been kept in `rejected` and for which there was no room. */
  readonly dropped: readonly Dropped[]
  /** Rows of `rejected` that made room for others. */
  readonly evicted: number
  /** Sequences that were found missing. */
  readonly gaps: ReadonlyArray<{ readonly producer: string, readonly from: number, readonly to: number }>
  /** What became of each entry of a plugin, now or when its batch was handled before. */
  readonly results: readonly StoredResult[]
  /** The entries of plugins that were handled now. */
  readonly entries: readonly HandledEntry[]
  /** What plugins that follow commits are told; undefined if there is none. */
  readonly changes: RunChanges | undefined
}

/** An entry that was promised and is kept nowhere. */
export interface Dropped {
  readonly reason: RejectReason
  readonly key: string | undefined
  readonly value: bigint | undefined
  readonly once: string | undefined
}

/** A batch that was not applied before. */
export interface FreshBatch {
  readonly header: Header
  /** Without its entries of plugins. */
  readonly json: string
  /** Its entries of plugins; undefined if it has none. */
  readonly entries: readonly PluginEntry[] | undefined
}

/** What could not be applied of a batch: an entry of its sums, an idempotent request, or the whole batch. */
export interface Refused extends NewRejected {
  /** When it was accepted by its worker's clock, Unix ms; `at` is never in the future. */
  readonly acceptedAt: number
  /** How long its replies wait if nothing of it was promised. */
  readonly storedWithinMs: number | undefined
}

/**
 * The bookkeeping of one attempt at a run. Use it within one transaction: `skipApplied`, any number of `reject`,
 * `record`.
 */
export class Run {
  readonly #connection: Connection
  readonly #queuedMs: number
  /** Unix ms. */
  readonly now = Date.now()
  /** What the run does for plugins. */
  readonly ofPlugins: PluginTally
  readonly #stored = new Map<string, Sequences>()
  readonly #tallies = new Map<string, { requests: number, increments: number }>()
  readonly #gaps: Array<{ producer: string, from: number, to: number }> = []
  readonly #rejections: Array<Rejection & { producer: string | undefined }> = []
  readonly #repeated: Array<Report & { producer: string }> = []
  readonly #dropped: Dropped[] = []
  #duplicates = 0
  #evicted = 0

  /** @param queuedMs the longest that any of the elements can have waited in the queue */
  constructor (connection: Connection, queuedMs: number) {
    this.#connection = connection
    this.#queuedMs = queuedMs
    this.ofPlugins = new PluginTally(connection.plugins)
  }

  /**
   * Notes the sequences of all elements.
   * @param isReadable says of a fresh batch's JSON whether it can be applied; what can't is set aside whole
   * @returns the batches to apply, in their order
   */
  skipApplied (elements: readonly Buffer[], isReadable: (json: string) => boolean): FreshBatch[] {
    const fresh: FreshBatch[] = []
    for (const element of elements) {
      const header = readHeader(element)
      if (typeof header === 'string') {
        this.reject(undefined, 0, [this.#unreadable(element, undefined)])
      } else if (this.#isFresh(header)) {
        const json = header.entries ? withoutEntries(element) : element.toString()
        const entries = header.entries ? readEntries(element) : undefined
        if (typeof entries !== 'string' && isReadable(json)) fresh.push({ header, json, entries })
        else this.reject(header.producer, header.seq, [this.#unreadable(element, header)])
      }
    }
    return fresh
  }

  /** Notes the sequence of a batch. @returns false if it was applied before */
  #isFresh ({ producer, seq, requests, increments, entries }: Header): boolean {
    const { statements, reports, results } = this.#connection
    const before = this.#stored.get(producer) ?? sequencesOf(statements.readProducer.get(producer))
    this.#stored.set(producer, before)
    if (has(before, seq)) {
      this.#duplicates++
      // Its producer may have no report of it: this process, or the one before it, died in between.
      const report = reports.read(producer, seq)
      if (report !== undefined) this.#repeated.push({ ...report, producer })
      if (entries) for (const result of results.read(producer, seq)) this.ofPlugins.results.push(result)
      return false
    }
    this.#stored.set(producer, include(before, seq))
    if (seq > before.high + 1) this.#gaps.push({ producer, from: before.high + 1, to: seq - 1 })
    const tally = this.#tallies.get(producer) ?? { requests: 0, increments: 0 }
    this.#tallies.set(producer, { requests: tally.requests + requests, increments: tally.increments + increments })
    return true
  }

  #unreadable (element: Buffer, header: Header | undefined): Refused {
    const acceptedAt = header?.at ?? this.now
    return {
      producer: header?.producer,
      seq: header?.seq,
      batch: element,
      hash: createHash('sha256').update(element).digest('hex'),
      reason: 'unreadable',
      at: Math.min(acceptedAt, this.now),
      acceptedAt,
      storedWithinMs: undefined,
    }
  }

  /**
   * Notes what could not be applied of one batch, or of an element that is not a batch. What was promised is filed in
   * `rejected`; the rest is only reported, so that it can be refused to its client.
   * @param parts all of that batch, in one call
   */
  reject (producer: string | undefined, seq: number, parts: readonly Refused[]): void {
    if (parts.length === 0) return
    // Of a flush that is summed, all that is rejected is refused, or none of it: a reply may wait for several of its
    // keys.
    const areSumsRefusable = parts.filter(({ once }) => once === undefined).every((part) => this.#isRefusable(part))
    const reported = parts.flatMap((part): Rejection[] => {
      const isFiled = !(part.once === undefined ? areSumsRefusable : this.#isRefusable(part))
      if (isFiled && !this.#file(part)) return []
      if (!isFiled && part.once !== undefined && part.sums !== undefined) {
        this.#connection.rejected.deleteOnce(part.once, part.sums)
      }
      return [rejectionOf(part, seq, isFiled)]
    })
    for (const rejection of reported) this.#rejections.push({ ...rejection, producer })
    if (producer === undefined || reported.length === 0) return
    this.#connection.reports.write(producer, reportOf(seq, reported), this.#connection.clock.now())
  }

  /** @returns false if it is a whole batch that was filed before */
  #file (part: Refused): boolean {
    const { reason, key, value, once, batch } = part
    const { outcome, evicted } = this.#connection.rejected.file(part)
    this.#evicted += evicted
    if (outcome === 'known' && batch !== undefined) return false
    if (outcome === 'dropped') this.#dropped.push({ reason, key, value, once })
    return true
  }

  /**
   * Whether the replies to a part of a batch should wait still, so that it can be refused to them. Where its worker's
   * clock is another than ours, in either direction, it counts how long the batch can have been in the queue.
   */
  #isRefusable ({ reason, storedWithinMs, acceptedAt }: Refused): boolean {
    if (reason === 'trigger' || reason === 'unreadable' || storedWithinMs === undefined) return false
    return Math.min(Math.abs(this.now - acceptedAt), this.#queuedMs) < storedWithinMs / 2
  }

  /** Writes what is stored of each producer now. @param batches how many were applied @returns what the run did */
  record (batches: number): Applied {
    const { statements, clock, reports, results } = this.#connection
    const seenAt = Date.now()
    for (const [producer, { high, gaps }] of this.#stored) {
      const tally = this.#tallies.get(producer)
      if (tally === undefined) continue
      statements.writeProducer.run({ producer, high, gaps: JSON.stringify(gaps), ...tally, seenAt })
    }
    statements.writeMeta.run({ name: 'elapsed_ms', value: clock.now() })
    if (this.#rejections.length > 0) reports.pruneIfDue(clock.now())
    results.pruneIfDue(clock.now())
    return {
      batches,
      duplicates: this.#duplicates,
      stored: this.#stored,
      rejections: this.#rejections,
      repeated: this.#repeated,
      dropped: this.#dropped,
      evicted: this.#evicted,
      gaps: this.#gaps,
      results: this.ofPlugins.results,
      entries: this.ofPlugins.entries,
      changes: this.ofPlugins.changes,
    }
  }
}

/**
 * As its worker is to know it. A sum that is kept nowhere goes back to its worker, which may have promised it
 * meanwhile.
 */
function rejectionOf ({ key, once, reason, value }: Refused, seq: number, isFiled: boolean): Rejection {
  const returned = isFiled || once !== undefined || value === undefined ? {} : { value: String(value) }
  return {
    seq,
    reason,
    ...(key === undefined ? {} : { key }),
    ...(once === undefined ? {} : { once }),
    ...(isFiled ? {} : { filed: false }),
    ...returned,
  }
}
