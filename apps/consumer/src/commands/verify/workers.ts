// What living workers say over HTTP: their metrics, and why they can't store. Part of what `npm run verify` gathers.
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'

/** Increments of a living worker, by where they are; each increment is in one place at most. */
export interface LivingWorker {
  /** All that it has accepted since it was started. */
  readonly accepted: number
  /** Those that are not in a batch yet. */
  readonly pending: number
  /** Those in batches that wait to be pushed or stored, and are in its memory. */
  readonly window: number
}

/**
 * The living workers behind some addresses, by producer.
 * @param urls with or without /metrics at their end
 * @param apiKey one that may read, if any is needed
 * @throws FatalError that says what to name instead
 */
export async function readWorkers (
  urls: readonly string[], apiKey: string | undefined
): Promise<Map<string, LivingWorker>> {
  const workers = new Map<string, LivingWorker>()
  for (const url of urls) {
    const text = await scrape(url, apiKey)
    const pending = valuesOf(text, 'gearbox_producer_pending_increments')
    const window = valuesOf(text, 'gearbox_producer_window_increments')
    for (const [producer, accepted] of valuesOf(text, 'gearbox_producer_increments')) {
      workers.set(producer, { accepted, pending: pending.get(producer) ?? 0, window: window.get(producer) ?? 0 })
    }
  }
  return workers
}

/**
 * Why workers are not ready, in their own words, by address; those that are ready, or have no /readyz, are left out.
 */
export async function readTroubles (urls: readonly string[]): Promise<Map<string, string>> {
  const troubles = new Map<string, string>()
  for (const url of urls) {
    const response = await fetch(`${baseOf(url)}/readyz`, { headers: { connection: 'close' } }).catch(() => undefined)
    // A process that serves its metrics alone has no /readyz.
    if (response?.status === 503) troubles.set(url, messageOf(await response.text()))
  }
  return troubles
}

async function scrape (url: string, apiKey: string | undefined): Promise<string> {
  const address = `${baseOf(url)}/metrics`
  const authorization = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }
  const response = await fetch(address, { headers: { connection: 'close', ...authorization } })
    .catch((error: unknown): never => {
      const why = reasonOf(error instanceof Error ? error.cause ?? error : error)
      throw new FatalError(`no worker answers at ${url} (${why}); name where they have /metrics with --url`)
    })
  const text = await response.text()
  if (response.ok) return text
  if (response.status === 401) {
    throw new FatalError(`${address} answers 401; API_KEYS must have one of its keys that may read`)
  }
  const advice = response.status === 404
    ? '\nName all of them: npm run verify -- --url http://HOST:METRICS_PORT --url http://HOST:ANOTHER_METRICS_PORT'
    : ''
  throw new FatalError(`${address} answers ${response.status}: ${messageOf(text)}${advice}`)
}

function baseOf (url: string): string {
  return url.replace(/\/(metrics\/?)?$/, '')
}

/** The message of an error of ours, or the beginning of whatever else was answered. */
function messageOf (text: string): string {
  try {
    const error: unknown = JSON.parse(text)
    if (typeof error === 'object' && error !== null && 'message' in error) return String(error.message)
  } catch {
    // The answer of another program.
  }
  return JSON.stringify(text.slice(0, 64))
}

/** The values of a metric in Prometheus's text format, by producer. */
function valuesOf (text: string, name: string): Map<string, number> {
  const lines = text.matchAll(new RegExp(`^${name}\\{producer="([^"]+)"\\} (\\d+)$`, 'gm'))
  return new Map(Array.from(lines, ([, producer, value]) => [producer!, Number(value)]))
}
