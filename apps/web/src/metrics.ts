// The metrics of one worker. Each is read from a plain field when it is scraped, so that a scrape pays for it and not a
// request.
import type { Server } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import { counter, gauge, labelledGauge, type Registry } from '@gearbox/runtime/metrics.ts'
import type { Flusher } from './deliver/flusher.ts'
import type { ConnectionLimit } from './http/connection-limit.ts'

/** A queue that hangs must not keep all other metrics from a parent that waits a second for them. */
const lengthTimeoutMs = 300

/** Registers what a worker counts of its requests and batches. @param requests replies by status */
export function registerWorker (
  registry: Registry, flusher: Flusher, queue: ProducerQueue, requests: ReadonlyMap<number, number>
): void {
  const count = (name: string, help: string, read: () => number): void => counter(registry, name, help, read)
  counter(registry, 'gearbox_requests_total', 'Replies by status', () => requests, 'status')
  count('gearbox_increments_total', 'Increments accepted', () => flusher.counts.increments)
  count('gearbox_answered_requests_total', 'Requests to count that were answered with 2xx',
    () => flusher.answered.requests)
  count('gearbox_answered_increments_total', 'Increments in requests that were answered with 2xx',
    () => flusher.answered.increments)
  count('gearbox_batches_pushed_total', 'Batches that the queue took, replays included', () => flusher.counts.pushed)
  count('gearbox_push_retries_total', 'Attempts to push that failed', () => flusher.counts.retries)
  count('gearbox_window_trimmed_total', 'Batches that only the queue keeps, as too much waits to be stored',
    () => flusher.counts.trimmed)
  count('gearbox_window_replays_total', 'Times that all unstored batches were pushed again',
    () => flusher.counts.replays)
  count('gearbox_window_refills_total', 'Batches that the queue lost and that were pushed again',
    () => flusher.counts.refilled)
  count('gearbox_set_aside_total', 'Entries that were promised (2xx) and could not be applied',
    () => flusher.counts.setAside)
  gauge(registry, 'gearbox_pending_keys', 'Keys that are in no batch yet', 'sum', () => flusher.pendingKeys)
  gauge(registry, 'gearbox_unstored_batches', 'Batches that are not known to be stored', 'sum',
    () => flusher.unstoredBatches)
  gauge(registry, 'gearbox_queue_length', 'Batches waiting in the queue', 'max', lengthOf(queue))
  gauge(registry, 'gearbox_queue_durable', '1 if the queue keeps what was pushed through its own death', 'min',
    () => Number(queue.durable))
  gauge(registry, 'gearbox_lag_seconds', 'Age of the oldest increment that is not stored', 'max',
    () => flusher.lagSeconds)
}

/** The queue's length; while the queue does not answer, the last known one. */
function lengthOf (queue: ProducerQueue): () => Promise<number> {
  let length = 0
  return async () => {
    const found = queue.length().then((newest) => { length = newest })
    await Promise.race([found, delay(lengthTimeoutMs, undefined, { ref: false })]).catch(() => {})
    return length
  }
}

/** Registers what `npm run verify` compares with queue and database. */
export function registerProducer (registry: Registry, flusher: Flusher, producer: string): void {
  const measure = (name: string, help: string, read: () => number): void => {
    labelledGauge(registry, name, help, 'producer', () => new Map([[producer, read()]]))
  }
  measure('gearbox_producer_increments', 'Increments that a living worker has accepted',
    () => flusher.counts.increments)
  measure('gearbox_producer_pending_increments', 'Of those, in no batch yet', () => flusher.undelivered.pending)
  measure('gearbox_producer_window_increments', 'Of those, in batches that are not known to be in the queue',
    () => flusher.undelivered.window)
}

/**
 * Registers the connections of all listeners. A stop waits for the open ones first: those without a request are closed
 * by then.
 */
export function registerConnections (registry: Registry, listeners: readonly Server[], limit: ConnectionLimit): void {
  counter(registry, 'gearbox_connections_dropped_total', 'Connections closed on arrival, as there were too many',
    () => limit.dropped, 'reason')
  gauge(registry, 'gearbox_connections', 'Open connections', 'sum', async () => {
    const counts = await Promise.all(listeners.map((server) => promisify(server.getConnections.bind(server))()))
    return counts.reduce((sum, count) => sum + count, 0)
  })
}
