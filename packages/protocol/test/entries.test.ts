// Entries of plugins in a batch: what is written is what is read, and a batch without them is as it always was.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import {
  batchBytesMax, encodeBatch, encodeEntry, EntryTooDeepError, newerVersion, readEntries, readHeader, withoutRefusals,
} from '../src/batch.ts'
import { entryBytesMax, entryLevelsMax, type Json, type PluginEntry } from '../src/plugin-entry.ts'
import { encodeProgress, parseProgress, parseResultRequest } from '../src/progress.ts'
import { asEntry, element, producerA } from '@gearbox/test-kit/batches.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'

/** Data that holds what a careless reader could take for the batch's own end. */
const awkward: Json[] = [
  { x: 1, ack: 'stored', timeout: 5 }, { once: [], plugins: [] }, '],"plugins":[', null, [[], {}], '\u0000"\\€😀',
]

const anyJson = fc.jsonValue().map((value): Json => JSON.parse(JSON.stringify(value)))
const data = fc.oneof(fc.constantFrom(...awkward), anyJson)
const entry: fc.Arbitrary<PluginEntry> = fc.oneof(
  fc.record({ plugin: fc.stringMatching(/^[a-z][a-z0-9-]{0,8}$/), data }),
  fc.record({
    plugin: fc.constant('tickets'), data, id: fc.stringMatching(/^[0-9a-f]{64}$/), at: fc.nat(),
  }))

interface Content { sums: Record<string, number>, entries: readonly PluginEntry[], storedWithinMs?: number | undefined }

function encode ({ sums, entries, storedWithinMs }: Content, seq = 1): ReturnType<typeof encodeBatch> {
  const pairs = Object.entries(sums)
  const texts = entries.map(encodeEntry)
  const header = { producer: producerA, seq, at: 7, requests: 1, increments: 1 }
  return encodeBatch({ ...header, ...(storedWithinMs === undefined ? {} : { storedWithinMs }) }, {
    nextSum: () => {
      const pair = pairs.shift()
      return pair === undefined ? undefined : asEntry(pair)
    },
    nextIdempotent: () => undefined,
    nextEntry: () => texts.shift(),
  })
}

const content = fc.record({
  sums: fc.dictionary(fc.stringMatching(/^[a-z",\\]{1,9}$/), fc.integer(), { maxKeys: 4 }),
  entries: fc.array(entry, { maxLength: 4 }),
  storedWithinMs: fc.option(fc.integer({ min: 1, max: 30_000 }), { nil: undefined }),
})

test('entries are read as they were written, by our own reader and out of any other JSON', () => {
  fc.assert(fc.property(content, (content) => {
    const batch = encode(content)
    const { entries, storedWithinMs } = content
    const text = batch.element.toString()
    expect(batch.entries).toBe(entries.length)
    expect(JSON.parse(text).v).toBe(entries.length === 0 ? 1 : 2)
    const header = readHeader(batch.element)
    expect(header).toEqual({
      producer: producerA,
      seq: 1,
      at: 7,
      requests: 1,
      increments: 1,
      once: false,
      entries: entries.length > 0,
      ...(storedWithinMs === undefined ? {} : { storedWithinMs }),
    })
    if (entries.length === 0) return
    expect(readEntries(batch.element)).toEqual(entries)
    const reordered = Buffer.from(JSON.stringify(Object.fromEntries(Object.entries(JSON.parse(text)).reverse())))
    expect(readHeader(reordered)).toEqual(header)
    expect(readEntries(reordered)).toEqual(entries)
  }), { seed })
})

test('what makes a batch refusable is taken away without touching the data of entries', () => {
  fc.assert(fc.property(content, (content) => {
    const kept = withoutRefusals(encode(content).element)
    expect(kept.toString()).toBe(encode({ ...content, storedWithinMs: undefined }).element.toString())
  }), { seed })
})

test('a batch holds as many entries as fit, and the next one has the others', () => {
  const texts = Array.from({ length: 12 }, (_, i) => encodeEntry({ plugin: 'a', data: String(i).repeat(30_000) }))
  const source = {
    nextSum: () => undefined, nextIdempotent: () => undefined, nextEntry: () => texts.shift(),
  }
  const header = { producer: producerA, at: 0, requests: 1, increments: 0 }
  const sizes = [1, 2].map((seq) => {
    const { element, entries } = encodeBatch({ ...header, seq }, source)
    expect(readEntries(element)).toHaveLength(entries ?? 0)
    return element.length
  })
  expect(texts).toHaveLength(0)
  expect(sizes[0]).toBeGreaterThanOrEqual(batchBytesMax)
  expect(sizes[0]).toBeLessThan(batchBytesMax + entryBytesMax)
})

test('an entry that is too long is refused before it is in a batch', () => {
  expect(() => encodeEntry({ plugin: 'a', data: 'x'.repeat(entryBytesMax) })).toThrow(RangeError)
})

const good = encode({ sums: { a: 1 }, entries: [{ plugin: 'a', data: 1 }] }).element.toString()

test.each([
  ['"plugin":"a"', '"plugin":"A"'],
  ['"plugin":"a"', '"plugin":7'],
  [',"data":1', ''],
  [',"data":1', ',"data":1,"id":"x","at":1'],
  [',"data":1', `,"data":1,"id":"${'a'.repeat(64)}"`],
  ['[{"plugin":"a","data":1}]', '{}'],
  ['{"plugin":"a","data":1}', '{"plugin":"a","data":1'],
])('entries with %s written as %s can not be read, and it is said why', (from, to) => {
  const written = Buffer.from(good.replace(from, to))
  expect(readEntries(written)).toEqual(expect.stringContaining('"plugins"'))
  const header = readHeader(Buffer.from(` ${written.toString()}`))
  expect(header).toEqual(expect.stringMatching(/"plugins"|not JSON/))
})

test('a well-formed batch of a newer version is told from one that is none', () => {
  expect(newerVersion(Buffer.from(good.replace('"v":2', '"v":3')))).toBe(3)
  for (const text of [good, '{"v":3}', 'x', good.replace('"v":2', '"v":"3"'), good.replace('"v":2', '"v":3.5')]) {
    expect(newerVersion(Buffer.from(text))).toBeUndefined()
  }
  expect(newerVersion(element({ sums: { a: 1 } }))).toBeUndefined()
})

test('results travel with progress, and what is none of them is left out', () => {
  const results = [
    { seq: 1, entry: 0, outcome: { result: { number: 42 } } },
    { seq: 1, entry: 1, outcome: { error: { statusCode: 409, code: 'GBX_SOLD_OUT', message: 'none left' } } },
  ]
  const progress = { high: 1, gaps: [], rejected: [], omittedRejections: [] }
  expect(parseProgress(encodeProgress({ ...progress, results }))).toEqual({ ...progress, results })
  expect(parseProgress(encodeProgress(progress))).toEqual(progress)
  const foreign = [{ seq: 1, entry: 0, outcome: {} }, { seq: 'x', entry: 0, outcome: { result: 1 } }, null]
  const text = JSON.stringify({ ...progress, results: foreign })
  expect(parseProgress(text)).toEqual({ ...progress, results: [] })
})

test('a request for results is read as it was written', () => {
  const request = { producer: producerA, received: [1, 2], missing: [3] }
  expect(parseResultRequest(JSON.stringify(request))).toEqual(request)
  for (const text of ['', 'x', '{}', '{"producer":"x"}']) expect(parseResultRequest(text)).toBeUndefined()
})

test('more entries than a worker puts into one batch are not read', () => {
  const longest = encodeEntry({ plugin: 'a', data: 'x'.repeat(65_000) })
  const texts = Array.from({ length: 12 }, () => longest)
  const header = { producer: producerA, seq: 1, at: 7, requests: 1, increments: 1 }
  const source = { nextSum: () => undefined, nextIdempotent: () => undefined, nextEntry: () => texts.shift() }
  const { element: batch, entries } = encodeBatch(header, source)
  expect(readEntries(batch)).toHaveLength(entries ?? 0)
  const forged = batch.toString().replace('"plugins":[', `"plugins":[${`${longest},`.repeat(5)}`)
  expect(readEntries(Buffer.from(forged))).toBe('"plugins" has more than a worker sends')
})

test('an entry is nested as deep as everybody can read it, and not deeper', () => {
  const nested = (levels: number, inner: Json = '}]"\\'.repeat(200) + '['.repeat(200)): Json => {
    let value = inner
    for (let level = 0; level < levels; level++) value = level % 2 === 0 ? [value, '{'] : { '{"': value }
    return value
  }
  // Its own object is a level, too.
  const data = nested(entryLevelsMax - 1)
  expect(JSON.parse(encodeEntry({ plugin: 'a', data }))).toEqual({ plugin: 'a', data })
  expect(() => encodeEntry({ plugin: 'a', data: nested(entryLevelsMax) })).toThrow(EntryTooDeepError)
  expect(() => encodeEntry({ plugin: 'a', data: nested(100_000) })).toThrow(EntryTooDeepError)
  expect(encodeEntry({ plugin: 'a', data: Array.from({ length: 300 }, () => [{}]) })).not.toBe('')
})
