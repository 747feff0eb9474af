// The batch's bytes: what an encoded one says, and what is made of bytes that are none.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { batchBytesMax, encodeBatch, readHeader, withoutRefusals, type IdempotentRequest } from '../src/batch.ts'
import { add, int64Max, int64Min, type Sum } from '../src/int64.ts'
import { asEntry, element, producerA } from '@gearbox/test-kit/batches.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'

const key = fc.string({ unit: 'binary', minLength: 1, maxLength: 20 }).filter((text) => !/\p{Cc}|\p{Cs}/u.test(text))
const sums = fc.dictionary(key, fc.maxSafeInteger(), { maxKeys: 20 })
const content = fc.record({
  producer: fc.uuid(),
  seq: fc.integer({ min: 1, max: 999_999_999_999_999 }),
  at: fc.integer({ min: 0, max: 999_999_999_999_999 }),
  requests: fc.nat(),
  increments: fc.nat(),
  sums,
  once: fc.array(fc.record({ id: fc.stringMatching(/^[0-9a-f]{64}$/), at: fc.nat(), sums }), { maxLength: 3 }),
})

test('an encoded batch is JSON that says what went in', () => {
  fc.assert(fc.property(content, (batch) => {
    expect(JSON.parse(element(batch).toString())).toEqual({ v: 1, ...batch })
  }), { seed })
})

test('a batch of our own writing and the same JSON written otherwise have the same header', () => {
  fc.assert(fc.property(content, (batch) => {
    const written = element(batch).toString()
    const { producer, seq, at, requests, increments } = batch
    const header = { producer, seq, at, requests, increments, once: batch.once.length > 0, entries: false }
    expect(readHeader(Buffer.from(written))).toEqual(header)
    expect(readHeader(Buffer.from(` ${written}`))).toEqual(header)
    const reordered = JSON.stringify(Object.fromEntries(Object.entries(JSON.parse(written)).reverse()))
    expect(readHeader(Buffer.from(reordered))).toEqual(header)
  }), { seed })
})

test('a batch says whether it may be refused, at its end, and so does a request in it', () => {
  const timeouts = fc.option(fc.integer({ min: 1, max: 30_000 }), { nil: undefined })
  const requests = fc.array(fc.record({ id: fc.stringMatching(/^[0-9a-f]{64}$/), storedWithinMs: timeouts, sums }),
    { maxLength: 2 })
  fc.assert(fc.property(content, timeouts, requests, (batch, storedWithinMs, once) => {
    const written = element({ ...batch, once, storedWithinMs })
    const header = readHeader(written)
    expect(header).toEqual(readHeader(Buffer.from(` ${written.toString()}`)))
    expect(typeof header === 'string' ? header : [header.storedWithinMs, header.once])
      .toEqual([storedWithinMs, once.length > 0])
    const value = JSON.parse(written.toString())
    expect(Object.keys(value).slice(0, 8)).toEqual(['v', 'producer', 'seq', 'at', 'requests', 'increments', 'sums',
      'once'])
    expect(value.once.map(({ ack, timeout }: { ack?: string, timeout?: number }) => [ack, timeout]))
      .toEqual(once.map(({ storedWithinMs }) => storedWithinMs === undefined
        ? [undefined, undefined]
        : ['stored', storedWithinMs]))
    const plain = withoutRefusals(written)
    expect(plain.equals(element({ ...batch, once: once.map(({ id, sums }) => ({ id, sums })) }))).toBe(true)
  }), { seed })
})

test('keys that look like the words for that stay what they are', () => {
  for (const keys of [['ack'], ['"ack":"stored","timeout":5'], [',"ack":"stored","timeout":5}', 'timeout']]) {
    const sums = Object.fromEntries(keys.map((key) => [key, 5]))
    const plain = element({ sums, once: [{ id: 'x', sums }] })
    expect(readHeader(plain)).not.toHaveProperty('storedWithinMs')
    expect(withoutRefusals(plain).equals(plain)).toBe(true)
    const marked = element({ sums, storedWithinMs: 5, once: [{ id: 'x', sums, storedWithinMs: 6 }] })
    expect(withoutRefusals(marked).equals(plain)).toBe(true)
  }
})

test('sums keep every digit', () => {
  const json = element({ sums: { most: int64Max, least: int64Min, beyond: 2n ** 53n + 1n, zero: 0 } }).toString()
  expect(json).toContain('"most":9223372036854775807,"least":-9223372036854775808,"beyond":9007199254740993,"zero":0')
})

test('adding is exact beyond 2^53 and beyond 64 bits, and comes back to a number', () => {
  fc.assert(fc.property(fc.array(fc.bigInt({ min: int64Min, max: int64Max })), (deltas) => {
    const sum = deltas.reduce<Sum>((total, delta) => add(total, delta), 0)
    const exact = deltas.reduce((total, delta) => total + delta, 0n)
    expect(BigInt(sum)).toBe(exact)
    expect(typeof sum === 'number').toBe(Number.isSafeInteger(Number(exact)) && BigInt(Number(exact)) === exact)
  }), { seed })
  expect(add(Number.MAX_SAFE_INTEGER, 1)).toBe(2n ** 53n)
  expect(add(2n ** 53n, -1)).toBe(Number.MAX_SAFE_INTEGER)
})

test('a batch ends at about its most bytes and leaves the rest to the next', () => {
  const long = 'k'.repeat(256)
  // Two and a half batches of them, at about 265 bytes each.
  const keys = Math.floor(2.5 * batchBytesMax / 265)
  let drawn = 0
  const source = {
    nextSum: () => drawn < keys ? asEntry([`${long}${drawn++}`, drawn]) : undefined,
    nextIdempotent: (): IdempotentRequest | undefined => undefined,
  }
  const header = { producer: producerA, at: 0, requests: 1, increments: 1 }
  const sizes: number[] = []
  for (const seq of [1, 2, 3]) {
    const before = drawn
    const { element } = encodeBatch({ ...header, seq }, source)
    sizes.push(element.length)
    expect(Object.keys(JSON.parse(element.toString()).sums)).toHaveLength(drawn - before)
  }
  expect(drawn).toBe(keys)
  for (const size of sizes) expect(size).toBeLessThan(batchBytesMax + 1024)
  for (const size of sizes.slice(0, -1)) expect(size).toBeGreaterThanOrEqual(batchBytesMax)
  expect(batchBytesMax).toBeLessThanOrEqual(1024 * 1024)
})

test('a request longer than all the memory at hand is written whole', () => {
  const sums = new Map(Array.from({ length: 800 }, (_, i) => [`${i}${'€'.repeat(80)}`, 1]))
  const pending: IdempotentRequest[] = [1, 2, 3].map((i) => ({ id: String(i).padStart(64, '0'), at: 1, sums }))
  const { element } = encodeBatch({ producer: producerA, seq: 1, at: 1, requests: 1, increments: 1 },
    { nextSum: () => undefined, nextIdempotent: () => pending.shift() })
  expect(JSON.parse(element.toString()).once).toHaveLength(2)
})

const good = element({ sums: { a: 1 } }).toString()

test.each([
  ['', 'not JSON'],
  ['null', 'not a JSON object'],
  ['[]', 'not a JSON object'],
  ['"v"', 'not a JSON object'],
  ['{', 'not JSON'],
  [good.replace('"v":1', '"v":3'), '"v" is not'],
  [good.replace('"v":1', '"v":"1"'), '"v" is not'],
  [good.replace('"v":1,', ''), '"v" is not'],
  ['{"__proto__":{"v":1}}', '"v" is not'],
  [good.replace(producerA, 'somebody'), '"producer"'],
  [good.replace(`"${producerA}"`, '7'), '"producer"'],
  [good.replace('"seq":1', '"seq":0'), '"seq"'],
  [good.replace('"seq":1', '"seq":-1'), '"seq"'],
  [good.replace('"seq":1', '"seq":1.5'), '"seq"'],
  [good.replace('"seq":1', '"seq":9007199254740992'), '"seq"'],
  [good.replace('"seq":1', '"seq":"1"'), '"seq"'],
  [good.replace('"seq":1', '"seq":1000000000000000'), '"seq"'],
  [good.replace(/"at":\d+/, '"at":9000000000000000'), '"at"'],
  [good.replace(/"at":\d+/, '"at":-1'), '"at"'],
  [good.replace('"requests":1', '"requests":null'), '"requests"'],
  [good.replace(/"increments":1,/, ''), '"increments"'],
  [good.replace('{"a":1}', '[1]'), '"sums"'],
  [good.replace('{"a":1}', 'null'), '"sums"'],
  [` ${good.replace('"once":[]', '"once":{}')}`, '"once"'],
])('%s is no batch, and it is said why', (text, why) => {
  expect(readHeader(Buffer.from(text))).toEqual(expect.stringContaining(why))
})

test('bytes that are not UTF-8 are no batch, wherever they are', () => {
  const at = good.indexOf('"a"') + 1
  const bytes = Buffer.from(good)
  bytes[at] = 0xff
  expect(readHeader(bytes)).toBe('not UTF-8')
  expect(readHeader(Buffer.from([0xc3]))).toBe('not UTF-8')
})

test('the version before is read too', () => {
  expect(readHeader(Buffer.from(good.replace('"v":1', '"v":0')))).toMatchObject({ producer: producerA, seq: 1 })
})

test('a batch without "once" has none', () => {
  expect(readHeader(Buffer.from(` ${good.replace(',"once":[]', '')}`))).toMatchObject({ once: false })
})

test('any bytes at all are a header or a reason, never an exception', () => {
  fc.assert(fc.property(fc.oneof(fc.uint8Array(), fc.json().map((text) => Buffer.from(text))), (bytes) => {
    expect(['string', 'object']).toContain(typeof readHeader(Buffer.from(bytes)))
  }), { seed })
})
