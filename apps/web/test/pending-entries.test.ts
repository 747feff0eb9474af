// Entries of plugins on their way from the accumulator into batches.
import { batchBytesMax, encodeEntry, readEntries, readHeader } from '@gearbox/protocol/batch.ts'
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { expect, onTestFinished, test } from 'vitest'
import { Accumulator } from '../src/accumulate/accumulator.ts'
import type { PendingEntry } from '../src/accumulate/pending-entries.ts'
import { BatchEncoder } from '../src/deliver/batch-encoder.ts'
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import { incrementsOf } from './fixtures/columns.ts'
import { setUp, parse } from './fixtures/flusher.ts'
import { producerA } from '@gearbox/test-kit/batches.ts'

interface Recorded extends PendingEntry {
  /** Where it was put; empty as long as it was not. */
  readonly places: string[]
}

function entry (data: Json | undefined, { alone = false, bytes = 100 } = {}): Recorded {
  const places: string[] = []
  return {
    bytes,
    alone,
    places,
    encode: () => data === undefined ? undefined : encodeEntry({ plugin: 'tickets', data }),
    onBatch: (seq, number) => { places.push(`${seq}.${number}`) },
  }
}

const once = (id: string): IdempotentRequest => ({ id: id.repeat(64), at: 1, sums: new Map([['k', 1]]) })

function encodeAll (accumulator: Accumulator): Buffer[] {
  const encoder = new BatchEncoder({ producer: producerA, ackTimeoutMs: 1000 })
  return encoder.encodeAll(accumulator.drain()).map(({ element }) => element)
}

function dataOf (element: Buffer): Json[] {
  const entries = readEntries(element)
  if (typeof entries === 'string') throw new Error(entries)
  return entries.map(({ data }) => data)
}

test('entries are in a batch behind its sums and idempotent requests, and learn where', () => {
  const accumulator = new Accumulator()
  const entries = [entry('a'), entry({ b: 2 })]
  accumulator.addEntry(entries[0]!, 17)
  accumulator.add(incrementsOf({ key: 'foo', delta: 1 }), 18, true)
  accumulator.addIdempotent(once('a'), 1, 19)
  accumulator.addEntry(entries[1]!, 20)
  expect(accumulator.pendingKeys).toBe(4)
  expect(accumulator.isEmpty).toBe(false)
  expect(accumulator.oldestAt).toBe(17)
  expect(accumulator.refusable).toBe(true)
  const [element, ...others] = encodeAll(accumulator)
  expect(others).toEqual([])
  expect(readHeader(element!)).toMatchObject({ seq: 1, at: 17, requests: 2, increments: 2, once: true, entries: true })
  expect(Object.keys(JSON.parse(element!.toString())))
    .toEqual(['v', 'producer', 'seq', 'at', 'requests', 'increments', 'sums', 'once', 'plugins'])
  expect(dataOf(element!)).toEqual(['a', { b: 2 }])
  expect(entries.map(({ places }) => places)).toEqual([['1.0'], ['1.1']])
  expect(accumulator.isEmpty).toBe(true)
  expect(accumulator.pendingBytes).toBe(0)
})

test('entries count until they are read, sent or not', () => {
  const accumulator = new Accumulator()
  const dropped = entry(undefined, { bytes: 30 })
  accumulator.addEntry(dropped, 1)
  accumulator.addEntry(entry('sent', { bytes: 20 }), 1)
  accumulator.addEntry(entry('alone', { bytes: 10, alone: true }), 1)
  expect([accumulator.pendingKeys, accumulator.pendingBytes]).toEqual([3, 60])
  const drain = accumulator.drain()
  expect([accumulator.pendingKeys, accumulator.pendingBytes]).toEqual([0, 0])
  expect([drain.pendingKeys, drain.pendingBytes]).toEqual([3, 60])
  const encoder = new BatchEncoder({ producer: producerA, ackTimeoutMs: 1000 })
  expect(dataOf(encoder.encode(drain, false).element)).toEqual(['sent'])
  expect([drain.pendingKeys, drain.pendingBytes]).toEqual([1, 10])
  expect(dataOf(encoder.encode(drain, false).element)).toEqual(['alone'])
  expect([drain.pendingKeys, drain.pendingBytes]).toEqual([0, 0])
  expect(dropped.places).toEqual([])
})

test('a batch whose entries all have nothing to send is one without entries', () => {
  const accumulator = new Accumulator()
  accumulator.addEntry(entry(undefined), 1)
  const elements = encodeAll(accumulator)
  expect(elements.map((element) => readHeader(element))).toMatchObject([{ entries: false, requests: 0 }])
  expect(elements[0]!.toString()).toMatch(/^\{"v":1,/)
})

test('many entries leave in batches of about their most bytes, each numbered from 0', () => {
  const accumulator = new Accumulator()
  const entries = Array.from({ length: 1000 }, (_, i) => entry(`${i} ${'x'.repeat(1000)}`))
  for (const each of entries) accumulator.addEntry(each, 1)
  accumulator.add(incrementsOf({ key: 'foo', delta: 1 }), 1)
  const elements = encodeAll(accumulator)
  expect(elements.length).toBeGreaterThan(3)
  for (const element of elements) expect(element.length).toBeLessThan(batchBytesMax + 2000)
  const all = elements.flatMap((element, i) => dataOf(element).map((data, number) => [data, `${i + 1}.${number}`]))
  expect(all.map(([data]) => data)).toEqual(entries.map((_, i) => `${i} ${'x'.repeat(1000)}`))
  expect(entries.map(({ places: [place] }) => place)).toEqual(all.map(([, place]) => place))
})

test('what travels alone is in a batch with nothing else, behind all else of its drain, in order', () => {
  const accumulator = new Accumulator()
  const corrections = [entry('first', { alone: true }), entry(undefined, { alone: true }),
    entry('second', { alone: true })]
  accumulator.addEntry(corrections[0]!, 1)
  for (let i = 0; i < 20_000; i++) accumulator.add(incrementsOf({ key: `key ${i}`, delta: 1 }), 1, true)
  accumulator.addEntry(corrections[1]!, 1)
  accumulator.addEntry(corrections[2]!, 1)
  accumulator.addEntry(entry('shared'), 1)
  accumulator.addIdempotent(once('b'), 1, 1)
  const drain = accumulator.drain()
  const encoder = new BatchEncoder({ producer: producerA, ackTimeoutMs: 1000 })
  const elements: Buffer[] = []
  while (drain.pendingKeys > 0) elements.push(encoder.encode(drain, drain.refusable).element)
  expect(elements.length).toBeGreaterThan(3)
  expect(dataOf(elements.at(-3)!)).toEqual(['shared'])
  for (const [element, data] of [[elements.at(-2)!, 'first'], [elements.at(-1)!, 'second']] as const) {
    expect(JSON.parse(element.toString())).toEqual({
      v: 2,
      producer: producerA,
      seq: expect.any(Number),
      at: 1,
      requests: 0,
      increments: 0,
      sums: {},
      once: [],
      plugins: [{ plugin: 'tickets', data }],
    })
  }
  expect(corrections[2]?.places).toEqual([`${elements.length}.0`])
})

test('a correction that comes first does not hide sums beyond 64 bits, which travel in parts before it', () => {
  const accumulator = new Accumulator()
  accumulator.addEntry(entry('set', { alone: true }), 1)
  for (let i = 0; i < 3; i++) accumulator.add(incrementsOf({ key: 'large', delta: 2n ** 63n - 1n }), 1)
  const elements = encodeAll(accumulator)
  expect(elements.map((element) => readHeader(element))).toMatchObject([
    { entries: false }, { entries: false }, { entries: false }, { entries: true },
  ])
})

test('a batch with entries asks for its commit at once, one without does not, a replay as its batches', async () => {
  const { queue, flusher, count } = setUp()
  count('foo')
  await until('the batch', () => queue.list.length === 1)
  const ticket = entry('ticket')
  flusher.acceptEntry(ticket)
  await until('the batch', () => queue.list.length === 2)
  count('foo')
  await until('the batch', () => queue.list.length === 3)
  expect(queue.attempts.map(({ hurry }) => hurry)).toEqual([false, true, false])
  expect(ticket.places).toEqual(['2.0'])
  const before = queue.attempts.map(({ elements }) => elements[0])
  queue.forget()
  await until('the replay', () => queue.list.length === 3)
  expect(queue.attempts.at(-1)).toMatchObject({ elements: before, hurry: true })
  expect(ticket.places).toEqual(['2.0'])
})

test('entries do not keep sums that were asked for at level stored from being refused', async () => {
  const { queue, flusher, post } = setUp({ ackTimeoutMs: 20_000 })
  queue.hold()
  flusher.acceptEntry(entry('a'))
  const outcome = post('foo', 'stored')
  onTestFinished(() => queue.release())
  await until('the attempt', () => queue.attempts.length === 1)
  const [element] = queue.attempts[0]!.elements
  expect(parse(element!)).toMatchObject({ v: 2, ack: 'stored', timeout: 20_000, sums: { foo: 1 } })
  expect(readHeader(element!)).toMatchObject({ entries: true, storedWithinMs: 20_000 })
  queue.release()
  await until('the push', () => queue.list.length === 1)
  queue.reportProgress(producerA, {
    high: 1, rejected: [{ seq: 1, key: 'foo', reason: 'overflow', filed: false, value: '1' }],
  })
  expect(await outcome).toMatchObject({ refused: [{ key: 'foo' }] })
})

test('what a stop could not push keeps its entries, and no mark that its sums may be refused', async () => {
  const { queue, flusher, post } = setUp({ ackTimeoutMs: 20_000 })
  queue.disconnect()
  const entries = [entry({ text: ',"ack":"stored","timeout":20000' }), entry('alone', { alone: true })]
  for (const each of entries) flusher.acceptEntry(each)
  const outcome = post('foo', 'stored')
  const left = await flusher.finish(AbortSignal.abort())
  expect(await outcome).toBe('late')
  expect(left.map(({ seq, entries }) => [seq, entries])).toEqual([[1, 1], [2, 1]])
  expect(readHeader(left[0]!.element)).not.toHaveProperty('storedWithinMs')
  expect(left.flatMap(({ element }) => dataOf(element)))
    .toEqual([{ text: ',"ack":"stored","timeout":20000' }, 'alone'])
  expect(entries.map(({ places }) => places)).toEqual([['1.0'], ['2.0']])
})
