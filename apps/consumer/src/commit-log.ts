// Counts what the consumer's commits did, for its metrics, and logs what a person should know of them: lost batches,
// and entries that could not be applied.
import type { Rejection, RejectReason } from '@gearbox/protocol/progress.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import type { HandledEntry } from './store/plugins/tally.ts'
import type { Applied } from './store/run.ts'

/** Rejections of one commit that are logged one by one. */
const loggedMax = 10

const limits = '"npm run rejected" lists as much as it may (REJECTED_ROWS_MAX, REJECTED_BYTES_MAX)'

/** In metrics, all plugins that are not loaded: what comes from the queue can have any name. */
const notLoaded = '(not loaded)'

/** What commits have done since the process was started. */
export class CommitLog {
  readonly #logger: Logger
  /** Batches that were applied. */
  applied = 0
  /** Batches that were skipped, as they had been applied before. */
  duplicates = 0
  /** Sequences that were found missing. */
  gaps = 0
  /** Entries that could not be applied, by reason. */
  readonly rejected = new Map<RejectReason, number>()
  /** Entries that were promised and are in `rejected` now, or were not kept. */
  setAside = 0
  /** Entries that were promised and are kept nowhere, for want of room. */
  dropped = 0
  /** Entries of plugins that were handled, by plugin and outcome. */
  readonly entries = new Map<string, Record<HandledEntry['outcome'], number>>()

  constructor (logger: Logger) {
    this.#logger = logger
  }

  /** Counts and logs what one commit did. */
  add ({ batches, duplicates, gaps, rejections, dropped, evicted, entries }: Applied): void {
    this.applied += batches
    this.duplicates += duplicates
    this.#addGaps(gaps)
    this.#addRejections(rejections)
    this.#addDropped(dropped, evicted)
    if (entries.length > 0) this.#addEntries(entries)
  }

  #addEntries (entries: readonly HandledEntry[]): void {
    for (const { plugin, isLoaded, outcome } of entries) {
      const name = isLoaded ? plugin : notLoaded
      const counts = this.entries.get(name) ?? { applied: 0, refused: 0, failed: 0 }
      counts[outcome]++
      this.entries.set(name, counts)
    }
    const failed = entries.filter(({ outcome }) => outcome === 'failed')
    for (const { plugin, isLoaded, producer, seq, entry, failure } of failed.slice(0, loggedMax)) {
      this.#logger.error({ plugin, producer, seq, entry, reason: failure }, isLoaded
        ? `plugin ${plugin} failed at an entry, which was refused to its client: ${failure}`
        : `an entry was refused to its client: no plugin ${plugin} is loaded here (PLUGINS)`)
    }
    const more = failed.length - loggedMax
    if (more > 0) this.#logger.error(`${more} more entries of plugins failed in the same commit`)
  }

  #addGaps (gaps: Applied['gaps']): void {
    for (const { producer, from, to } of gaps) {
      this.gaps += to - from + 1
      this.#logger.warn({ producer, from, to }, `sequences ${from} to ${to} of worker ${producer} did not arrive: ` +
        'the queue lost them. If the worker lives it sends them again')
    }
  }

  #addRejections (rejections: Applied['rejections']): void {
    for (const { filed = true, reason } of rejections) {
      this.rejected.set(reason, (this.rejected.get(reason) ?? 0) + 1)
      if (filed && reason !== 'unreadable') this.setAside++
    }
    for (const rejection of rejections.slice(0, loggedMax)) {
      const what = describe(rejection)
      this.#logger.warn(rejection, rejection.filed === false
        ? `an entry was refused to its clients: ${what}`
        : `an entry could not be applied: ${what}. "npm run rejected" lists it and can try it again`)
    }
    const more = rejections.length - loggedMax
    if (more > 0) this.#logger.warn(`${more} more could not be applied or were refused in the same commit`)
  }

  /** Of what was promised and is kept nowhere, the log is the only trace. */
  #addDropped (dropped: Applied['dropped'], evicted: number): void {
    this.dropped += dropped.length + evicted
    for (const { value, ...entry } of dropped.slice(0, loggedMax)) {
      const details = { ...entry, ...(value === undefined ? {} : { value: String(value) }) }
      this.#logger.error(details, `an entry was not kept: ${describe(entry)}, and ${limits}`)
    }
    const more = dropped.length - loggedMax
    if (more > 0) this.#logger.error(`${more} more were not kept in the same commit`)
    if (evicted === 0) return
    this.#logger.error({ evicted }, `${evicted} of the oldest entries made room for others, as ${limits}`)
  }
}

function describe ({ reason, key }: Pick<Rejection, 'reason'> & { readonly key?: string | undefined }): string {
  switch (reason) {
    case 'overflow': return `the total of ${JSON.stringify(key)} would leave 64 bits`
    case 'other body': return 'an Idempotency-Key came again with another body'
    case 'too late': return 'an Idempotency-Key came so late that it may be a repeat'
    case 'trigger': {
      const what = key === undefined ? 'a request with an Idempotency-Key' : JSON.stringify(key)
      return `a trigger or an index of the database refuses ${what}`
    }
    case 'unreadable': return 'a batch that can not be read'
  }
}
