// What an operator sees of a running Gearbox: /metrics and the metrics in its log.
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, Load, Program, startAll } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

const names = [
  'gearbox_requests_total', 'gearbox_increments_total', 'gearbox_pending_keys', 'gearbox_unstored_batches',
  'gearbox_flush_duration_seconds',
  'gearbox_batches_pushed_total', 'gearbox_push_retries_total', 'gearbox_window_replays_total', 'gearbox_queue_length',
  'gearbox_queue_durable',
  'gearbox_batches_applied_total', 'gearbox_batches_duplicate_total', 'gearbox_sequence_gaps_total',
  'gearbox_rejected_total',
  'gearbox_commit_duration_seconds', 'gearbox_lag_seconds', 'gearbox_connections_dropped_total', 'gearbox_keys',
  'gearbox_log_lines_lost_total',
  'gearbox_set_aside_total', 'gearbox_rejected_rows',
  'process_cpu_seconds_total', 'process_resident_memory_bytes', 'nodejs_eventloop_lag_seconds',
]

interface Scrape {
  /** Metric → its type. */
  readonly types: ReadonlyMap<string, string>
  /** Sample, labels included → value. */
  readonly samples: ReadonlyMap<string, number>
}

/** Any worker's view; on its own connection, as the one before may have died with its worker. */
async function scrape (url: string): Promise<Scrape> {
  const response = await until('a scrape',
    async () => await fetch(`${url}/metrics`, { headers: { connection: 'close' } }))
  expect(response.status).toBe(200)
  expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/)
  const text = await response.text()
  const types = new Map(Array.from(text.matchAll(/^# TYPE (\S+) (\S+)$/gm), ([, name, type]) => [name!, type!]))
  const samples = new Map(Array.from(text.matchAll(/^(?!#)(\S+(?:\{.*\})?) (\S+)$/gm),
    ([, sample, value]) => [sample!, Number(value)]))
  return { types, samples }
}

/** Everything that only ever counts up: counters and histograms, labels included. */
function sums ({ types, samples }: Scrape): Map<string, number> {
  return new Map([...samples].filter(([sample]) => {
    const name = sample.replace(/\{.*/, '')
    return types.get(name) === 'counter' || types.get(name.replace(/_(bucket|count|sum)$/, '')) === 'histogram'
  }))
}

/** Sums of `before` that are lower in `after`. Floating point rounds sums again at every scrape. */
function fallen (before: Scrape, after: Scrape): string[] {
  const now = sums(after)
  return [...sums(before)].filter(([sample, value]) => (now.get(sample) ?? 0) < value - 1e-9)
    .map(([sample, value]) => `${sample}: ${value} → ${now.get(sample)}`)
}

async function start (queue: string, env: NodeJS.ProcessEnv = {}): Promise<Program & { url: string }> {
  const redis = queue === 'Redis' ? await RedisServer.start() : undefined
  onTestFinished(async () => { await redis?.stop() })
  return endWithTest(await startAll({
    DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
    REDIS_URL: redis?.url,
    ...env,
  }, { detached: true }))
}

test.each(['the embedded queue', 'Redis'])('one scrape shows every worker and the consumer, with %s', async (queue) => {
  const gearbox = await start(queue, { WEB_WORKERS: '3' })
  const posts = 45
  const statuses = await Promise.all(Array.from({ length: posts },
    async (_, i) => (await post(`${gearbox.url}/increment?ack=stored`, `foo=1&bar=2&key${i}=3`)).status))
  expect(statuses).toEqual(Array(posts).fill(204))
  expect((await post(`${gearbox.url}/increment`, 'foo=x')).status).toBe(400)

  const { types, samples } = await scrape(gearbox.url)
  expect(names.filter((name) => !types.has(name))).toEqual([])
  expect(samples.get('gearbox_requests_total{status="204"}')).toBe(posts)
  expect(samples.get('gearbox_requests_total{status="400"}')).toBe(1)
  expect(samples.get('gearbox_increments_total')).toBe(3 * posts)
  const pushed = samples.get('gearbox_batches_pushed_total')!
  expect(pushed).toBeGreaterThanOrEqual(2)
  expect(samples.get('gearbox_batches_applied_total')).toBe(pushed)
  expect(samples.get('gearbox_flush_duration_seconds_count')).toBeGreaterThan(0)
  expect(samples.get('gearbox_commit_duration_seconds_count')).toBeGreaterThan(0)
  for (const name of ['gearbox_batches_duplicate_total', 'gearbox_sequence_gaps_total', 'gearbox_push_retries_total',
    'gearbox_window_replays_total', 'gearbox_pending_keys']) {
    expect(samples.get(name), name).toBe(0)
  }
  expect(samples.get('gearbox_queue_durable'), 'the lowest of all').toBe(1)
  await until('no lag at rest', async () => {
    const { samples } = await scrape(gearbox.url)
    return ['gearbox_lag_seconds', 'gearbox_queue_length',
      'gearbox_unstored_batches'].every((name) => samples.get(name) === 0)
  })
})

test('under npm start, METRICS_PORT shows the same as the workers\' port', async () => {
  const port = await freePort()
  const gearbox = await start('the embedded queue', { METRICS_PORT: String(port) })
  for (let i = 0; i < 10; i++) {
    expect((await post(`${gearbox.url}/increment?ack=stored`, `foo=1&key${i}=3`)).status).toBe(204)
  }
  await until('the keys to be counted', async () => (await scrape(gearbox.url)).samples.get('gearbox_keys') === 11)
  const [own, shared] = [await scrape(`http://127.0.0.1:${port}`), await scrape(gearbox.url)]
  expect([...own.types]).toEqual([...shared.types])
  for (const { samples } of [own, shared]) {
    expect(samples.get('gearbox_increments_total')).toBe(20)
    expect(samples.get('gearbox_keys')).toBe(11)
  }
  gearbox.kill('SIGTERM')
  expect(await gearbox.exited).toBe(0)
})

test.each(['the embedded queue',
  'Redis'])('no sum falls when a worker or the consumer is killed, with %s', async (queue) => {
  const gearbox = await start(queue)
  const load = new Load(gearbox.url)
  await load.more(200)
  let before = await scrape(gearbox.url)
  for (const module of ['apps/web', 'apps/consumer', 'apps/web']) {
    const victim = gearbox.children(module)[0]!
    process.kill(victim.pid, 'SIGKILL')
    await until('another part in its place', async () => {
      const after = await scrape(gearbox.url)
      expect(fallen(before, after)).toEqual([])
      before = after
      return gearbox.children(module).filter(({ pid }) => pid !== victim.pid).length === (module === 'apps/web' ? 2 : 1)
    })
    await load.more(100)
    const after = await scrape(gearbox.url)
    expect(fallen(before, after)).toEqual([])
    expect(after.samples.get('gearbox_increments_total'))
      .toBeGreaterThan(before.samples.get('gearbox_increments_total')!)
    before = after
  }
  await load.stop()
  await until('no lag at rest', async () => (await scrape(gearbox.url)).samples.get('gearbox_lag_seconds') === 0)
})

test('lag grows while nothing can be stored, and is gone afterwards', async () => {
  const gearbox = await start('the embedded queue')
  const [consumer] = gearbox.children('apps/consumer')
  process.kill(consumer!.pid, 'SIGSTOP')
  onTestFinished(() => { if (gearbox.children('apps/consumer').length > 0) process.kill(consumer!.pid, 'SIGCONT') })
  expect((await post(`${gearbox.url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
  await until('half a second of lag', async () => (await scrape(gearbox.url)).samples.get('gearbox_lag_seconds')! > 0.5)
  process.kill(consumer!.pid, 'SIGCONT')
  await until('no lag', async () => (await scrape(gearbox.url)).samples.get('gearbox_lag_seconds') === 0)
})

test('the log has one line of metrics per interval while there is traffic, and none without', async () => {
  const intervalMs = 100
  const gearbox = await start('Redis', { STATS_INTERVAL_MS: String(intervalMs) })
  const metricsLines = (): Array<Record<string, unknown>> =>
    gearbox.logged().filter((entry) => 'requestsPerBatch' in entry)
  const intervals = async (count: number): Promise<void> => {
    const due = performance.now() + count * intervalMs
    await until(`${count} intervals to pass`, () => performance.now() > due)
  }
  await intervals(5)
  expect(metricsLines()).toEqual([])

  const load = new Load(gearbox.url)
  // A batch may be counted in another interval than its requests: not every line has both ratios.
  await until('a line with both ratios',
    () => metricsLines().some(({ requestsPerBatch, batchesPerCommit }) =>
      Number(requestsPerBatch) > 0 && Number(batchesPerCommit) > 0))
  await load.stop()
  expect([...load.statuses.keys()].sort()).toEqual([202, 204])
  const count = (name: string): number => metricsLines().reduce((sum, line) => sum + Number(line[name]), 0)
  await until('all of it in the log',
    () => count('requests') === load.answered && count('increments') === load.answered)
  for (const line of metricsLines()) {
    expect(line).toMatchObject({
      level: 30,
      part: 'gearbox',
      pendingKeys: expect.any(Number),
      queueLength: expect.any(Number),
      lagMs: expect.any(
        Number
      ),
      msg: expect.stringMatching(/requests.*increments.*requests per batch.*batches per commit.*pending.*queued.*lag/),
    })
    for (const ratio of [line.requestsPerBatch, line.batchesPerCommit]) {
      expect(ratio === null || Number(ratio) > 0, String(ratio)).toBe(true)
    }
  }
  await intervals(2)
  const lines = metricsLines().length
  await intervals(5)
  expect(metricsLines()).toHaveLength(lines)
})

test('the line of metrics counts requests and increments of the same replies', async () => {
  const gearbox = await start('the embedded queue',
    { STATS_INTERVAL_MS: '100', CORS_ORIGINS: 'https://friend.example', COMMIT_INTERVAL_MS: '200' })
  const count = (name: string): number =>
    gearbox.logged().filter((entry) => 'requestsPerBatch' in entry).reduce((sum, line) => sum + Number(line[name]), 0)
  const url = `${gearbox.url}/increment?ack=stored`
  const statuses: number[] = []
  for (let i = 0; i < 10; i++) statuses.push((await post(url, 'a=1&b=2&c=3')).status)
  statuses.push((await post(`${gearbox.url}/increment?ack=memory`, 'a=1&b=2')).status)
  statuses.push((await post(url, `big=${2n ** 63n - 1n}`)).status)
  expect(statuses).toEqual([...Array<number>(10).fill(204), 202, 204])
  // Repeats of one that waits add nothing, but have their replies.
  expect(await Promise.all(Array.from({ length: 4 },
    async () => (await post(url, 'k=1&l=1', { 'idempotency-key': 'same' })).status))).toEqual(Array(4).fill(204))
  // None of these is a reply that promises anything: what was accepted and then refused, what was not accepted, what
  // counts nothing.
  expect((await post(url, 'big=1&other=1')).status).toBe(422)
  expect((await post(url, 'a=x')).status).toBe(400)
  const preflight = await fetch(url,
    { method: 'OPTIONS', headers: { origin: 'https://friend.example', 'access-control-request-method': 'POST' } })
  expect(preflight.status).toBe(204)
  await until('all in the log', () => count('requests') >= 16 && count('increments') >= 41)
  // What comes later is in a later line.
  expect((await post(url, 'last=1')).status).toBe(204)
  await until('the last one too', () => count('requests') >= 17)
  expect([count('requests'), count('increments')]).toEqual([17, 42])
})
