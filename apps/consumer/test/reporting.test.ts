// The consumer's loop with entries of plugins: their outcomes reach their workers, whatever is lost on the way; and
// runs that it must not handle at once.
import { once } from 'node:events'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import type { EntryResult, PluginEntry } from '@gearbox/protocol/plugin-entry.ts'
import type { Progress } from '@gearbox/protocol/progress.ts'
import { EmbeddedConsumerQueue } from '@gearbox/queue/embedded/consumer-queue.ts'
import { EmbeddedProducerQueue } from '@gearbox/queue/embedded/producer-queue.ts'
import { QueueUnavailableError } from '@gearbox/queue/queue.ts'
import { createRegistry } from '@gearbox/runtime/metrics.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { element, producerA, producerB, type Content } from '@gearbox/test-kit/batches.ts'
import { captureLog, type CapturedLog } from '@gearbox/test-kit/captured-log.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { Consumer } from '../src/consumer.ts'
import { registerMetrics } from '../src/metrics.ts'
import { KeyCounter } from '../src/store/key-counter.ts'
import { openStore, query, totals } from './open-store.ts'
import { listPlugin } from './plugin-parts.ts'
import type { Store } from '../src/store/store.ts'

const list = (data: string): PluginEntry => ({ plugin: 'list', data })

/** A queue whose reports can fail. */
class FailingQueue extends EmbeddedConsumerQueue {
  failures = 0
  readonly messages: Array<ReadonlyMap<string, Progress>> = []

  override async reportProgress (stored: ReadonlyMap<string, Progress>): Promise<void> {
    if (this.failures > 0) {
      this.failures--
      throw new QueueUnavailableError('lost')
    }
    this.messages.push(stored)
    await super.reportProgress(stored)
  }
}

interface Setup {
  readonly consumer: Consumer
  readonly queue: FailingQueue
  readonly producer: EmbeddedProducerQueue
  readonly store: Store
  readonly path: string
  readonly log: CapturedLog
  /** All results that reached the worker, in their order. */
  readonly received: EntryResult[]
  readonly push: (elements: readonly Buffer[], hurry?: boolean) => Promise<void>
  readonly start: () => Promise<void>
}

async function setUp (
  { commitIntervalMs = 0, plugins = [listPlugin()], path }:
  { commitIntervalMs?: number, plugins?: readonly LoadedPlugin[], path?: string } = {}
): Promise<Setup> {
  const socket = join(temporaryDir(), 'queue')
  const log = captureLog()
  const queue = new FailingQueue(socket)
  const producer = new EmbeddedProducerQueue(socket)
  const { store, path: storePath } = openStore({ plugins, ...(path === undefined ? {} : { path }) })
  const consumer = new Consumer({ queue, store, logger: log.logger, commitIntervalMs, observeCommit: () => {} })
  const abandon = new AbortController()
  let running = Promise.resolve()
  onTestFinished(async () => {
    abandon.abort()
    await running.catch(() => {})
    await producer.close()
    await queue.close()
  })
  await queue.start()
  const identified = once(producer, 'incarnation')
  await producer.start()
  await identified
  const received: EntryResult[] = []
  producer.on('progress', (of, progress) => {
    if (of === producerA) received.push(...progress.results ?? [])
  })
  return {
    consumer,
    queue,
    producer,
    store,
    path: storePath,
    log,
    received,
    push: async (elements, hurry = false) => {
      await producer.push(elements, producer.incarnation ?? '', hurry)
    },
    start: async () => {
      running = consumer.run(abandon.signal, abandon.signal)
      await running
    },
  }
}

function begin ({ start }: Setup): void {
  start().catch(() => {})
}

const batch = (content: Content): Buffer => element(content)

test('outcomes come with the progress of their batch, once, and their rows go when they were received', async () => {
  const setup = await setUp()
  const { push, received, producer, store, path, queue } = setup
  begin(setup)
  await push([batch({ seq: 1, entries: [list('one'), list('two')] }), batch({ seq: 2, entries: [list('three')] })])
  await until('the outcomes', () => received.length === 3)
  expect(received).toEqual([
    { seq: 1, entry: 0, outcome: { result: 1 } },
    { seq: 1, entry: 1, outcome: { result: 2 } },
    { seq: 2, entry: 0, outcome: { result: 3 } },
  ])
  await push([batch({ seq: 3, sums: { a: 1 } })])
  await until('its progress', () => queue.messages.at(-1)?.get(producerA)?.high === 3)
  expect(received).toHaveLength(3)
  await producer.requestResults({ producer: producerA, received: [1, 2], missing: [] })
  await until('the rows to go', async () => {
    await push([batch({ producer: producerB, seq: query(path, 'SELECT 1 FROM producers').length, sums: { a: 1 } })])
    return query(path, 'SELECT * FROM results').length === 0
  })
  expect(store.results.read(producerA, 1)).toEqual([])
})

test('outcomes that were lost are asked for, and come from the database, also from the next consumer', async () => {
  const first = await setUp()
  first.store.apply([batch({ seq: 1, entries: [list('one')] }), batch({ seq: 2, entries: [list('two')] })])
  first.store.close()
  const setup = await setUp({ path: first.path })
  begin(setup)
  await setup.producer.requestResults({ producer: producerA, received: [], missing: [2, 1, 77] })
  await until('the outcomes', () => setup.received.length === 2)
  expect(setup.received).toMatchObject([{ seq: 2, outcome: { result: 2 } }, { seq: 1, outcome: { result: 1 } }])
  expect(setup.queue.messages.at(-1)?.get(producerA)).toMatchObject({ high: 2, gaps: [] })
})

test('a batch that is pushed again brings its outcomes again', async () => {
  const setup = await setUp()
  begin(setup)
  const same = batch({ seq: 1, entries: [list('one')] })
  await setup.push([same])
  await setup.push([same])
  await until('both', () => setup.received.length === 2)
  expect(setup.received[1]).toEqual(setup.received[0])
  expect(query(setup.path, 'SELECT count(*) FROM list_items').flat()).toEqual([1n])
})

test('more outcomes than one message may have come in several, and what could not be sent comes later', async () => {
  const setup = await setUp({ plugins: [listPlugin({ apply: ({ data }) => String(data).repeat(4000) })] })
  setup.queue.failures = 2
  begin(setup)
  const entries = Array.from({ length: 200 }, (_, i) => list(String.fromCharCode(97 + i % 26)))
  await setup.push([batch({ seq: 1, entries })])
  await until('all of them', () => setup.received.length === 200)
  expect(setup.received.map(({ entry }) => entry)).toEqual(entries.map((_entry, i) => i))
  const bytes = setup.queue.messages.map((message) => JSON.stringify([...message.values()]).length)
  expect(bytes.length).toBeGreaterThanOrEqual(3)
  expect(Math.max(...bytes)).toBeLessThan(280 * 1024)
})

test('a batch in a hurry does not wait for the commit interval', async () => {
  const setup = await setUp({ commitIntervalMs: 600_000 })
  begin(setup)
  await setup.push([batch({ seq: 1, sums: { a: 1 } })])
  const ordinary = setup.push([batch({ seq: 2, sums: { a: 1 } })])
  await setup.push([batch({ seq: 3, entries: [list('one')] })], true)
  await ordinary
  expect(totals(setup.path)).toEqual({ a: 2n })
})

test('a correction is handled alone: behind all before it, and before all behind it', async () => {
  const setup = await setUp({ commitIntervalMs: 600_000 })
  const correction = { plugin: 'totals', data: { key: 'a', total: '10' } }
  const pushed = setup.push([
    batch({ seq: 1, sums: { a: 5 } }),
    batch({ seq: 2, sums: { a: 1 } }),
    batch({ seq: 3, entries: [correction] }),
    batch({ seq: 4, entries: [correction] }),
    batch({ seq: 5, sums: { a: 3 }, entries: [{ plugin: 'list', data: '"plugin":"totals"' }] }),
  ])
  begin(setup)
  await pushed
  expect(totals(setup.path)).toEqual({ a: 13n })
  await until('the outcomes', () => setup.received.length === 3)
  expect(setup.received).toMatchObject([
    { seq: 3, outcome: { result: { key: 'a', before: '6', after: '10' } } },
    { seq: 4, outcome: { result: { key: 'a', before: '10', after: '10' } } },
    { seq: 5, outcome: { result: 1 } },
  ])
})

test('a batch of a newer version stops the consumer with one line, and nothing of it is touched', async () => {
  const setup = await setUp()
  const newer = Buffer.from(batch({ seq: 2, sums: { a: 10 } }).toString().replace('"v":1', '"v":3,"new":[]'))
  setup.push([batch({ seq: 1, sums: { a: 1 } }), newer, batch({ seq: 3, sums: { a: 100 } })]).catch(() => {})
  await until('the push', () => setup.queue.length === 3)
  await expect(setup.start()).rejects.toMatchObject({
    name: 'FatalError', exitCode: 69, message: expect.stringMatching(/^the embedded queue has a batch of version 3.*$/),
  })
  expect(totals(setup.path)).toEqual({ a: 1n })
  expect(setup.queue.messages.at(-1)?.get(producerA)).toMatchObject({ high: 1 })
  expect(setup.queue.length).toBe(2)
  expect(query(setup.path, 'SELECT * FROM rejected')).toEqual([])
})

test('metrics count entries by plugin and outcome, and the log says why one failed', async () => {
  const setup = await setUp({
    plugins: [listPlugin({
      apply: ({ data }) => {
        if (data === 'bad') throw new Error('a bug')
        return data
      },
    })],
  })
  begin(setup)
  await setup.push([batch({
    seq: 1, entries: [list('one'), list('bad'), { plugin: 'other', data: 1 }, { plugin: 'totals', data: 1 }],
  })])
  await until('the outcomes', () => setup.received.length === 4)
  const keyCounter = new KeyCounter(setup.path, setup.log.logger)
  onTestFinished(async () => await keyCounter.close())
  const registry = createRegistry()
  registerMetrics(registry, { ...setup, keyCounter })
  const lines = (await registry.metrics()).split('\n').filter((line) => line.startsWith('gearbox_plugin_entries_total'))
  expect(lines.sort()).toEqual([
    'gearbox_plugin_entries_total{plugin="(not loaded)",outcome="applied"} 0',
    'gearbox_plugin_entries_total{plugin="(not loaded)",outcome="failed"} 1',
    'gearbox_plugin_entries_total{plugin="(not loaded)",outcome="refused"} 0',
    'gearbox_plugin_entries_total{plugin="list",outcome="applied"} 1',
    'gearbox_plugin_entries_total{plugin="list",outcome="failed"} 1',
    'gearbox_plugin_entries_total{plugin="list",outcome="refused"} 0',
    'gearbox_plugin_entries_total{plugin="totals",outcome="applied"} 0',
    'gearbox_plugin_entries_total{plugin="totals",outcome="failed"} 0',
    'gearbox_plugin_entries_total{plugin="totals",outcome="refused"} 1',
  ])
  expect(setup.log.messages(50)).toEqual([
    'plugin list failed at an entry, which was refused to its client: a bug',
    'an entry was refused to its client: no plugin other is loaded here (PLUGINS)',
  ])
})

test('a plugin that stops every run is named in the log with what to do, and all is stored once it works', async () => {
  let isBroken = true
  const setup = await setUp({
    plugins: [listPlugin({ afterSums: () => { if (isBroken) throw new Error('a bug') } })],
  })
  begin(setup)
  const pushed = setup.push([batch({ seq: 1, sums: { a: 1 } })])
  await until('a line', () => setup.log.messages(50).length > 0)
  expect(setup.log.messages(50)[0]).toMatch(
    /^nothing can be stored \(plugin list failed in afterSums: a bug\): .*fix it, or start without it \(PLUGINS\)/)
  isBroken = false
  await pushed
  expect(totals(setup.path)).toEqual({ a: 1n })
})
