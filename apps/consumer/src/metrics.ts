// The consumer's metrics: the name and help of each, and where its value comes from.
import { rejectReasons } from '@gearbox/protocol/progress.ts'
import type { ConsumerQueue } from '@gearbox/queue/queue.ts'
import { counter, gauge, labelledCounter, type Registry } from '@gearbox/runtime/metrics.ts'
import type { Consumer } from './consumer.ts'
import type { KeyCounter } from './store/key-counter.ts'
import type { Store } from './store/store.ts'

/** The parts whose values are read at each scrape. */
export interface MetricsSources {
  readonly consumer: Consumer
  readonly store: Store
  readonly queue: ConsumerQueue
  readonly keyCounter: KeyCounter
}

/** A rate can only be seen where there was a 0 before. */
const noRejections = rejectReasons.map((reason) => [reason, 0] as const)

/** Registers the consumer's metrics; their values are read at each scrape. */
export function registerMetrics (registry: Registry, sources: MetricsSources): void {
  const { consumer, store, queue, keyCounter } = sources
  const { counts } = consumer
  counter(registry, 'gearbox_batches_applied_total', 'Batches committed', () => counts.applied)
  counter(registry, 'gearbox_batches_duplicate_total', 'Batches skipped because they had been applied before',
    () => counts.duplicates)
  counter(registry, 'gearbox_sequence_gaps_total', 'Batches that were found missing: the queue lost them',
    () => counts.gaps)
  counter(registry, 'gearbox_rejected_total', 'Entries that could not be applied',
    () => new Map([...noRejections, ...counts.rejected]), 'reason')
  counter(registry, 'gearbox_set_aside_total', 'Entries that were promised (2xx) and could not be applied',
    () => counts.setAside)
  counter(registry, 'gearbox_rejected_dropped_total',
    'Of those, entries that REJECTED_ROWS_MAX or REJECTED_BYTES_MAX left no room for', () => counts.dropped)
  labelledCounter(registry, 'gearbox_plugin_entries_total', 'Entries of plugins that were handled',
    ['plugin', 'outcome'], () => {
      const none = { applied: 0, refused: 0, failed: 0 }
      const counted = new Map([...store.pluginNames.map((name) => [name, none] as const), ...counts.entries])
      return [...counted].flatMap(([plugin, outcomes]) =>
        Object.entries(outcomes).map(([outcome, count]) => [{ plugin, outcome }, count] as const))
    })
  gauge(registry, 'gearbox_rejected_rows', 'Entries that npm run rejected lists', 'max', () => store.rejectedRows)
  gauge(registry, 'gearbox_queue_length', 'Batches waiting in the queue', 'max', () => queue.length)
  gauge(registry, 'gearbox_queue_durable', '1 if the queue keeps what was pushed through its own death', 'min',
    () => Number(queue.durable))
  gauge(registry, 'gearbox_lag_seconds', 'Age of the oldest increment that is not stored', 'max',
    () => consumer.lagSeconds)
  gauge(registry, 'gearbox_keys', 'Keys in the database, counted at most once a minute', 'max', () => keyCounter.keys)
}
