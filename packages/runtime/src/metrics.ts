// Metrics by prom-client. What is counted on the path of an increment is counted in plain fields, which are read only
// at a scrape, so that a scrape pays for it and not a request.
import promClient, { type Registry } from 'prom-client'
import { logLinesLost } from './log/log-output.ts'
import { everyLine, type Logger } from './log/logger.ts'

export type { Registry } from 'prom-client'

/** Prometheus's text format, as prom-client writes it. */
export const metricsContentType = 'text/plain; version=0.0.4; charset=utf-8'

/** How the values of several processes become one. */
export type Aggregation = 'sum' | 'max' | 'min'

/** A value for each value of one label. */
export type Labelled = ReadonlyMap<string | number, number>

/** A registry with the usual process metrics and those of the log. */
export function createRegistry (): Registry {
  const registry = createLogRegistry()
  promClient.collectDefaultMetrics({ register: registry })
  return registry
}

/** A registry with the metrics of the log alone, for a process whose others would say nothing. */
export function createLogRegistry (): Registry {
  const registry = new promClient.Registry()
  counter(registry, 'gearbox_log_lines_lost_total', 'Log lines that standard output did not take', logLinesLost)
  return registry
}

/** A counter whose value, or whose value for each value of one label, is read at every scrape. */
export function counter (registry: Registry, name: string, help: string, read: () => number, label?: undefined): void
export function counter (registry: Registry, name: string, help: string, read: () => Labelled, label: string): void
export function counter (
  registry: Registry, name: string, help: string, read: () => number | Labelled, label?: string
): void {
  registry.registerMetric(new promClient.Counter({
    name,
    help,
    registers: [],
    labelNames: label === undefined ? [] : [label],
    collect () {
      this.reset()
      const value = read()
      if (typeof value === 'number') this.inc(value)
      else if (label !== undefined) for (const [of, count] of value) this.inc({ [label]: of }, count)
    },
  }))
}

/** A counter with a value for each combination of labels that is read at every scrape. */
export function labelledCounter (
  registry: Registry, name: string, help: string, labels: readonly string[],
  read: () => Iterable<readonly [labels: Readonly<Record<string, string>>, count: number]>
): void {
  registry.registerMetric(new promClient.Counter({
    name,
    help,
    registers: [],
    labelNames: labels,
    collect () {
      this.reset()
      for (const [of, count] of read()) this.inc(of, count)
    },
  }))
}

/** A gauge whose value is read at every scrape; an undefined value is not shown. */
export function gauge (
  registry: Registry, name: string, help: string, aggregator: Aggregation,
  read: () => number | undefined | Promise<number>
): void {
  registry.registerMetric(new promClient.Gauge({
    name,
    help,
    registers: [],
    aggregator,
    async collect () {
      const value = await read()
      if (value === undefined) this.remove()
      else this.set(value)
    },
  }))
}

/** A gauge with a value for each value of one label, read at every scrape; several processes' values are added. */
export function labelledGauge (
  registry: Registry, name: string, help: string, label: string, read: () => Labelled
): void {
  registry.registerMetric(new promClient.Gauge({
    name,
    help,
    registers: [],
    labelNames: [label],
    collect () {
      this.reset()
      for (const [of, value] of read()) this.set({ [label]: of }, value)
    },
  }))
}

/** A histogram of durations, from half a millisecond to ten seconds. @returns a function that takes one, in seconds */
export function durations (registry: Registry, name: string, help: string): (seconds: number) => void {
  const buckets = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]
  const histogram = new promClient.Histogram({ name, help, registers: [registry], buckets })
  return (seconds) => histogram.observe(seconds)
}

/** One process's metrics as data that can travel to its parent. */
export async function snapshot (registry: Registry): Promise<object[]> {
  return await registry.getMetricsAsJSON()
}

/** The metrics of several processes as one registry. */
export function aggregate (snapshots: readonly object[][]): Registry {
  return promClient.AggregatorRegistry.aggregate(snapshots as object[])
}

/** The metrics of an exited process that must not be lost: its counters and histograms, not its gauges. */
export function countsOf (metrics: readonly object[]): object[] {
  return metrics.filter((metric) => 'type' in metric && (metric.type === 'counter' || metric.type === 'histogram'))
}

interface Sample { readonly metricName?: string, readonly value: number }

/** The sum of a metric's samples. */
function total (metrics: readonly object[], name: string, sampleName = name): number {
  const metric = metrics.find((candidate) => 'name' in candidate && candidate.name === name)
  if (metric === undefined || !('values' in metric) || !Array.isArray(metric.values)) return 0
  const samples = (metric.values as Sample[]).filter(({ metricName = name }) => metricName === sampleName)
  return samples.reduce((sum, { value }) => sum + value, 0)
}

/**
 * Logs one line per interval with traffic: what came in, and both gear ratios.
 * @param collect the metrics of all processes that the line is about
 * @returns a function that ends it
 */
export function logStats (logger: Logger, intervalMs: number, collect: () => Promise<readonly object[]>): () => void {
  let before = { requests: 0, increments: 0, pushed: 0, applied: 0, commits: 0 }
  const log = async (): Promise<void> => {
    const metrics = await collect()
    const now = {
      // Both of the same replies: a refused request may have been accepted, and a preflight is a 204 as well.
      requests: total(metrics, 'gearbox_answered_requests_total'),
      increments: total(metrics, 'gearbox_answered_increments_total'),
      pushed: total(metrics, 'gearbox_batches_pushed_total'),
      applied: total(metrics, 'gearbox_batches_applied_total'),
      commits: total(metrics, 'gearbox_commit_duration_seconds', 'gearbox_commit_duration_seconds_count'),
    }
    const since = (name: keyof typeof now): number => now[name] - before[name]
    const ratio = (many: number, few: number): number | null => few === 0 ? null : Math.round(many / few * 10) / 10
    if (since('requests') > 0 || since('applied') > 0) {
      const line = {
        requests: since('requests'),
        increments: since('increments'),
        requestsPerBatch: ratio(since('requests'), since('pushed')),
        batchesPerCommit: ratio(since('applied'), since('commits')),
        pendingKeys: total(metrics, 'gearbox_pending_keys'),
        queueLength: total(metrics, 'gearbox_queue_length'),
        lagMs: Math.round(total(metrics, 'gearbox_lag_seconds') * 1000),
      }
      logger.info({ ...line, [everyLine]: true }, `${line.requests} requests, ${line.increments} increments; ` +
        `gears: ${line.requestsPerBatch ?? '–'} requests per batch, ` +
        `${line.batchesPerCommit ?? '–'} batches per commit; ` +
        `${line.pendingKeys} keys pending, ${line.queueLength} batches queued, lag ${line.lagMs} ms`)
    }
    before = now
  }
  const timer = setInterval(() => {
    log().catch((error: unknown) => logger.warn({ err: error }, 'the metrics could not be collected'))
  }, intervalMs)
  timer.unref()
  return () => clearInterval(timer)
}

/** `2 batches to be stored`; undefined for none. */
function many (count: number, one: string, rest: string): string | undefined {
  return count === 0 ? undefined : `${count} ${one}${count === 1 ? rest.replace(/^e?s/, '') : rest}`
}

/** A stop that takes longer than this says what it waits for, and again after each pause. */
const waitingMs = { first: 500, pause: 2000 }

/** What else a stop's log lines tell. */
export interface StopOptions {
  /** How long all goes on before the stop begins. */
  readonly drainMs?: number
  /** Names of the processes that still run. */
  readonly running?: () => readonly string[]
}

/**
 * Logs that a stop was asked for and, while it takes time, what it waits for.
 * @param collect the metrics of all processes that are to stop
 * @returns a function that logs its end
 */
export function logStop (
  logger: Logger, signal: string, collect: () => Promise<readonly object[]>,
  { drainMs = 0, running = () => [] }: StopOptions = {}
): () => void {
  logger.info(drainMs === 0
    ? `stopping (${signal})`
    : `stopping (${signal}) in ${drainMs} ms (DRAIN_MS): until then /readyz answers 503, and requests are served`)
  let timer: NodeJS.Timeout | undefined
  const log = async (): Promise<void> => {
    const metrics = await collect()
    if (timer === undefined) return
    const waiting = {
      connections: total(metrics, 'gearbox_connections'),
      keys: total(metrics, 'gearbox_pending_keys'),
      batches: Math.max(total(metrics, 'gearbox_unstored_batches'), total(metrics, 'gearbox_queue_length')),
    }
    const parts = [
      many(waiting.connections, 'connection', 's with requests in progress'),
      many(waiting.keys, 'key', 's to be pushed'),
      many(waiting.batches, 'batch', 'es to be stored'),
    ].filter((part) => part !== undefined)
    const left = running()
    const subject = left.length === 0 ? '' : ` (${left.join(', ')} still running)`
    logger.info(waiting, `waiting for ${parts.join(', ') || 'the last writes'}${subject}`)
  }
  const logAfter = (ms: number): void => {
    timer = setTimeout(() => {
      log().catch(() => {}).finally(() => { if (timer !== undefined) logAfter(waitingMs.pause) })
    }, ms)
    timer.unref()
  }
  logAfter(drainMs + waitingMs.first)
  return () => {
    clearTimeout(timer)
    timer = undefined
    logger.info('stopped')
  }
}
