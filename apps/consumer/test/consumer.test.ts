// The consumer's loop with parts that fail: nothing that was taken is lost, and progress that could not be reported is
// reported again.
import { once } from 'node:events'
import { renameSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { int64Max } from '@gearbox/protocol/int64.ts'
import { EmbeddedConsumerQueue } from '@gearbox/queue/embedded/consumer-queue.ts'
import { EmbeddedProducerQueue } from '@gearbox/queue/embedded/producer-queue.ts'
import { SupersededError } from '@gearbox/protocol/owner.ts'
import type { Progress } from '@gearbox/protocol/progress.ts'
import { QueueUnavailableError } from '@gearbox/queue/queue.ts'
import { element, producerA, type Content } from '@gearbox/test-kit/batches.ts'
import { captureLog, type CapturedLog } from '@gearbox/test-kit/captured-log.ts'
import { Consumer } from '../src/consumer.ts'
import type { Applied } from '../src/store/run.ts'
import { Store } from '../src/store/store.ts'
import { freshPath, totals } from './open-store.ts'

/** A store on a disk that fails now and then. */
class FailingStore extends Store {
  failures = 0
  reopened = 0
  error: Error = new Error('disk I/O error')
  /** Fails after the commit instead of before it. */
  late = false

  override apply (elements: readonly Buffer[]): Applied {
    if (this.failures === 0) return super.apply(elements)
    this.failures--
    if (this.late) super.apply(elements)
    throw this.error
  }

  override reopen (): void {
    this.reopened++
    super.reopen()
  }
}

/** A queue that fails now and then. */
class FailingQueue extends EmbeddedConsumerQueue {
  failures: { [method in 'take' | 'acknowledge' | 'reportProgress' | 'forget']?: number } = {}
  readonly reported: Array<ReadonlyMap<string, Progress>> = []
  supersedes = false

  override async take (): Promise<Buffer[]> {
    this.#fail('take')
    if (this.supersedes) throw new SupersededError('another one')
    return await super.take()
  }

  override async acknowledge (elements: readonly Buffer[]): Promise<void> {
    this.#fail('acknowledge')
    await super.acknowledge(elements)
  }

  override async reportProgress (stored: ReadonlyMap<string, Progress>): Promise<void> {
    this.#fail('reportProgress')
    this.reported.push(stored)
    await super.reportProgress(stored)
  }

  override async forget (producers: readonly string[]): Promise<void> {
    this.#fail('forget')
    await super.forget(producers)
  }

  #fail (method: keyof FailingQueue['failures']): void {
    const left = this.failures[method] ?? 0
    if (left === 0) return
    this.failures[method] = left - 1
    throw new QueueUnavailableError(`${method} failed`)
  }
}

interface Setup {
  readonly consumer: Consumer
  readonly queue: FailingQueue
  readonly producer: EmbeddedProducerQueue
  readonly store: FailingStore
  readonly path: string
  readonly log: CapturedLog
  /** Ends with the batch's commit. */
  push: (...contents: readonly Content[]) => Promise<void>
  start: () => { stop: () => Promise<void>, running: Promise<void> }
}

async function setUp (commitIntervalMs = 0): Promise<Setup> {
  const socket = join(temporaryDir(), 'queue')
  const path = freshPath()
  const log = captureLog()
  const queue = new FailingQueue(socket)
  const producer = new EmbeddedProducerQueue(socket)
  const store = new FailingStore({ path, idempotencyHours: 24, idempotencyRowsMax: 1000 })
  const consumer = new Consumer({ queue, store, logger: log.logger, commitIntervalMs, observeCommit: () => {} })
  const abandon = new AbortController()
  let running = Promise.resolve()
  onTestFinished(async () => {
    abandon.abort()
    await running.catch(() => {})
    await producer.close()
    await queue.close()
    store.close()
  })
  await queue.start()
  const identified = once(producer, 'incarnation')
  await producer.start()
  await identified
  return {
    consumer,
    queue,
    producer,
    store,
    path,
    log,
    push: async (...contents) => {
      await producer.push(contents.map((content) => element(content)),
        producer.incarnation ?? '')
    },
    start: () => {
      const stop = new AbortController()
      running = consumer.run(AbortSignal.any([stop.signal, abandon.signal]), abandon.signal)
      return { running, stop: async () => { stop.abort(); await running } }
    },
  }
}

test('batches are stored, acknowledged and reported', async () => {
  const { consumer, queue, path, push, start } = await setUp()
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } }, { seq: 2, sums: { a: 1 } })
  expect(totals(path)).toEqual({ a: 2n })
  await until('a report', () => queue.reported.at(-1)?.get(producerA)?.high === 2)
  await stop()
  expect(queue.length).toBe(0)
  expect(consumer.counts).toMatchObject({ applied: 2, duplicates: 0, gaps: 0 })
  expect(consumer.lagSeconds).toBe(0)
})

test('between two runs, a consumer that is behind shows the age of what waits', async () => {
  const hourMs = 3_600_000
  const { consumer, queue, path, push, start } = await setUp(500)
  const at = Date.now() - hourMs
  const more = push(...Array.from({ length: 300 }, (_, i) => ({ seq: i + 1, at, sums: { a: 1 } })))
  await until('all to wait', () => queue.length === 300)
  const { stop } = start()
  await until('the first run to be stored', () => totals(path).a !== undefined)
  await until('it to be acknowledged', () => queue.length === 44)
  expect(consumer.lagSeconds).toBeGreaterThan(3599)
  await more
  await until('no lag', () => consumer.lagSeconds === 0)
  await stop()
})

test('a disk that fails loses nothing, and is logged once', async () => {
  const { queue, store, path, log, push, start } = await setUp()
  store.failures = 4
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } })
  await push({ seq: 2, sums: { a: 1 } })
  expect(totals(path)).toEqual({ a: 2n })
  await stop()
  expect(queue.length).toBe(0)
  expect(store.reopened).toBe(4)
  expect(log.messages(50)).toEqual([expect.stringContaining('disk I/O error')])
  expect(log.messages(30)).toContain('storing batches again')
})

test('what failed after its commit is not counted again', async () => {
  const { consumer, store, path, push, start } = await setUp()
  store.failures = 2
  store.late = true
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } })
  await stop()
  expect(totals(path)).toEqual({ a: 1n })
  expect(consumer.counts.duplicates).toBe(1)
})

test('a busy database is waited for on the same connection', async () => {
  const { store, path, push, start } = await setUp()
  store.failures = 2
  store.error = Object.assign(new Error('database is locked'), { code: 'SQLITE_BUSY' })
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } })
  await stop()
  expect(totals(path)).toEqual({ a: 1n })
  expect(store.reopened).toBe(0)
})

test('a lost acknowledgement makes a duplicate that is skipped and acknowledged', async () => {
  const { consumer, queue, path, push, start } = await setUp()
  queue.failures.acknowledge = 2
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } })
  await stop()
  expect(totals(path)).toEqual({ a: 1n })
  expect(queue.length).toBe(0)
  expect(consumer.counts).toMatchObject({ applied: 1, duplicates: 2 })
})

test('progress that could not be reported is reported again without another batch, with its rejections', async () => {
  const { queue, push, start } = await setUp()
  queue.failures.reportProgress = 3
  const { stop } = start()
  await push({ seq: 1, sums: { full: int64Max } }, { seq: 2, sums: { full: 1 } })
  await until('a report', () => queue.reported.length > 0)
  expect(queue.reported[0]?.get(producerA)).toEqual(
    { high: 2, gaps: [], rejected: [{ seq: 2, key: 'full', reason: 'overflow' }], omittedRejections: [] }
  )
  await stop()
})

test('a rejection stays in the reports of the batches that follow', async () => {
  const { consumer, queue, log, push, start } = await setUp()
  const { stop } = start()
  await push({ seq: 1, sums: { full: int64Max } }, { seq: 2, sums: { full: 1 } })
  for (const seq of [3, 4, 5]) await push({ seq, sums: { a: 1 } })
  await until('the last report', () => queue.reported.at(-1)?.get(producerA)?.high === 5)
  expect(queue.reported.at(-1)?.get(producerA)?.rejected).toEqual([{ seq: 2, key: 'full', reason: 'overflow' }])
  await stop()
  expect(consumer.counts.rejected).toEqual(new Map([['overflow', 1]]))
  expect(log.messages(40)).toEqual([expect.stringContaining('npm run rejected')])
})

test('of very many rejections the newest thousand are reported, and the batches of the rest', async () => {
  const { queue, push, start } = await setUp()
  const { stop } = start()
  const full = Object.fromEntries(Array.from({ length: 700 }, (_, i) => [`key ${i}`, int64Max]))
  await push({ seq: 1, sums: full })
  await push({ seq: 2, sums: full })
  await push({ seq: 3, sums: full })
  await until('the last report', () => queue.reported.at(-1)?.get(producerA)?.high === 3)
  const stored = queue.reported.at(-1)?.get(producerA)
  expect(stored?.rejected).toHaveLength(1000)
  expect(stored?.rejected.filter(({ seq }) => seq === 3)).toHaveLength(700)
  expect(stored?.omittedRejections).toEqual([2])
  await stop()
})

test('what a consumer committed and never reported is reported by the next one, with its rejections', async () => {
  const { queue, store, log, push, start } = await setUp()
  queue.failures.reportProgress = Number.POSITIVE_INFINITY
  const { stop } = start()
  await push({ seq: 1, sums: { full: int64Max } }, { seq: 2, sums: { full: 1 } })
  await stop()
  expect(queue.reported).toEqual([])
  queue.failures.reportProgress = 0
  const end = new AbortController()
  const next = new Consumer({ queue, store, logger: log.logger, commitIntervalMs: 0, observeCommit: () => {} })
  end.abort()
  await next.run(end.signal, new AbortController().signal)
  expect(queue.reported.at(-1)?.get(producerA))
    .toEqual({ high: 2, gaps: [], rejected: [{ seq: 2, key: 'full', reason: 'overflow' }], omittedRejections: [] })
})

test('a batch that comes again is reported with its rejections again', async () => {
  const { consumer, queue, store, push, start } = await setUp()
  const batch = { seq: 2, sums: { full: 1 } }
  store.apply([element({ seq: 1, sums: { full: int64Max } }), element(batch)])
  const { stop } = start()
  await push(batch)
  await until('a report', () => queue.reported.length > 0)
  expect(queue.reported.at(-1)?.get(producerA)?.rejected).toContainEqual({ seq: 2, key: 'full', reason: 'overflow' })
  await stop()
  expect(consumer.counts.rejected.size).toBe(0)
})

test('a gap is counted, logged, and reported', async () => {
  const { consumer, queue, log, push, start } = await setUp()
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } }, { seq: 4, sums: { a: 1 } })
  await until('a report', () => queue.reported.at(-1)?.get(producerA)?.gaps.length === 1)
  expect(queue.reported.at(-1)?.get(producerA)).toMatchObject({ high: 4, gaps: [[2, 3]] })
  await stop()
  expect(consumer.counts.gaps).toBe(2)
  expect(log.messages(40)).toEqual([expect.stringContaining('sequences 2 to 3')])
})

test('housekeeping that fails does not keep it from its work', async () => {
  const { queue, path, push, start } = await setUp()
  queue.failures.forget = 2
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } })
  expect(totals(path)).toEqual({ a: 1n })
  await stop()
})

test('a stop stores all that waits before it ends', async () => {
  const { queue, path, push, start } = await setUp()
  const pushing = Promise.all(Array.from({ length: 600 }, async (_, i) => await push({ seq: i + 1, sums: { a: 1 } })))
  await until('all of it', () => queue.length === 600)
  const { stop } = start()
  await stop()
  await pushing
  expect(queue.length).toBe(0)
  expect(totals(path)).toEqual({ a: 600n })
  expect(queue.reported.at(-1)?.get(producerA)).toMatchObject({ high: 600, gaps: [] })
})

test('a stop while nothing can be stored leaves what was pushed to whoever pushed it', async () => {
  const { store, queue, path, push, start } = await setUp()
  store.failures = Number.POSITIVE_INFINITY
  const { stop } = start()
  const pushing = push({ seq: 1, sums: { a: 1 } }).then(() => 'committed', () => 'unknown')
  await until('a failure', () => store.reopened > 0)
  await stop()
  expect(totals(path)).toEqual({})
  expect(queue.length).toBe(1)
  await queue.close()
  expect(await pushing).toBe('unknown')
})

test('an idle consumer notices that its database is moved away, says so once, reports it, and goes on when ' +
  'it is back', async () => {
  const { path, log, push, producer, start } = await setUp()
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } })
  renameSync(path, `${path}.away`)
  await until('the report', async () => await producer.check() !== undefined)
  expect(await producer.check()).toContain('not in its place')
  expect(log.messages(50)).toEqual([expect.stringMatching(/not in its place.*put it back.*before stopping/)])
  const pushing = push({ seq: 2, sums: { a: 1 } })
  renameSync(`${path}.away`, path)
  await pushing
  await until('the end of it', async () => await producer.check() === undefined)
  expect(totals(path)).toEqual({ a: 2n })
  expect(log.messages(30)).toContain('storing batches again')
  await stop()
})

test('a superseded consumer ends', async () => {
  const { queue, start } = await setUp()
  const { running } = start()
  queue.supersedes = true
  await expect(running).rejects.toThrow(SupersededError)
})

test('an element that is not a batch does not block those behind it', async () => {
  const { consumer, queue, path, push, start } = await setUp()
  const { stop } = start()
  await push({ seq: 1, sums: { a: 1 } })
  await push({ producer: 'not a producer', seq: 1, sums: { a: 100 } }, { seq: 2, sums: { a: 1 } })
  expect(totals(path)).toEqual({ a: 2n })
  await stop()
  expect(queue.length).toBe(0)
  expect(consumer.counts.rejected).toEqual(new Map([['unreadable', 1]]))
})
