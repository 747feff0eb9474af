// Sums in memory and the batches they leave in, held against a plain model of BigInts.
import { batchBytesMax, encodeBatch, readHeader, type IdempotentRequest } from '@gearbox/protocol/batch.ts'
import { int64Max, int64Min, narrow } from '@gearbox/protocol/int64.ts'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { Accumulator, type Drain } from '../src/accumulate/accumulator.ts'
import { incrementsOf } from './fixtures/columns.ts'
import { sumsOf } from './fixtures/open-queue.ts'

const producer = '01234567-89ab-4def-8123-456789abcdef'

/** A batch may go past its size by its last entry. */
const lastEntryBytesMax = 128 * 1024

interface Batches {
  readonly elements: Buffer[]
  readonly totals: Map<string, bigint>
}

/** Draws everything in batches, as the flusher does, and adds up what they say. */
function encodeAll (drain: Drain): Batches {
  const elements: Buffer[] = []
  const totals = new Map<string, bigint>()
  while (drain.pendingKeys > 0) {
    const { element } = encodeBatch({ producer, seq: elements.length + 1, at: drain.oldestAt, ...drain.readCounts() },
      drain)
    const sums = sumsOf(element)
    const keys = new Set(sums.map(([key]) => key))
    if (keys.size !== sums.length) throw new Error('a key stands in a batch twice')
    if (element.length > batchBytesMax + lastEntryBytesMax) throw new Error(`a batch of ${element.length} bytes`)
    elements.push(element)
    for (const [key, sum] of sums) {
      if (sum !== BigInt.asIntN(64, sum)) throw new Error(`${sum} is beyond 64 bits`)
      totals.set(key, (totals.get(key) ?? 0n) + sum)
    }
  }
  return { elements, totals }
}

function add (accumulator: Accumulator, key: string, value: bigint): void {
  accumulator.add(incrementsOf({ key, delta: narrow(value) }), 1000)
}

function has (accumulator: Accumulator, key: string): boolean {
  return accumulator.has(incrementsOf({ key, delta: 0 }), 0)
}

function expectEmpty ({ pendingKeys, pendingBytes }: { pendingKeys: number, pendingBytes: number }): void {
  expect({ pendingKeys, pendingBytes }).toEqual({ pendingKeys: 0, pendingBytes: 0 })
}

describe('sums', () => {
  test('are exact beyond 2^53', () => {
    const accumulator = new Accumulator()
    for (let i = 0; i < 1000; i++) add(accumulator, 'a', 2n ** 53n - 1n)
    add(accumulator, 'a', 1n)
    expect(encodeAll(accumulator.drain()).totals).toEqual(new Map([['a', 1000n * (2n ** 53n - 1n) + 1n]]))
  })

  test('come back below 2^53 as they were', () => {
    const accumulator = new Accumulator()
    for (const value of [1n, int64Max, int64Max, -int64Max, -int64Max]) add(accumulator, 'a', value)
    const { elements, totals } = encodeAll(accumulator.drain())
    expect(totals).toEqual(new Map([['a', 1n]]))
    expect(elements).toHaveLength(1)
  })

  test.each([int64Max, int64Min])('beyond 64 bits leave in as many batches as they need (%s)', (extreme) => {
    const accumulator = new Accumulator()
    for (let i = 0; i < 5; i++) add(accumulator, 'a', extreme)
    add(accumulator, 'b', 1n)
    const drain = accumulator.drain()
    expect(drain.pendingKeys).toBe(2)
    const { elements, totals } = encodeAll(drain)
    expect(elements).toHaveLength(5)
    expect(totals).toEqual(new Map([['a', 5n * extreme], ['b', 1n]]))
    expectEmpty(drain)
  })

  test('of zero leave too', () => {
    const accumulator = new Accumulator()
    add(accumulator, 'a', 5n)
    add(accumulator, 'a', -5n)
    expect(encodeAll(accumulator.drain()).totals).toEqual(new Map([['a', 0n]]))
  })

  test('of names that objects have are sums like any other', () => {
    const accumulator = new Accumulator()
    const keys = ['__proto__', 'constructor', 'toString', '"', '\\', '\u2028', '\uFEFF', ' ']
    for (const key of [...keys, ...keys]) add(accumulator, key, 1n)
    expect(encodeAll(accumulator.drain()).totals).toEqual(new Map(keys.map((key) => [key, 2n])))
  })
})

describe('a drain', () => {
  test('has everything, and the next one what came since', () => {
    const accumulator = new Accumulator()
    expect(accumulator.isEmpty).toBe(true)
    add(accumulator, 'a', 1n)
    expect(accumulator.isEmpty).toBe(false)
    expect(has(accumulator, 'a')).toBe(true)
    const first = accumulator.drain()
    expect(accumulator.isEmpty).toBe(true)
    expect(has(accumulator, 'a')).toBe(false)
    expectEmpty(accumulator)
    add(accumulator, 'a', 2n)
    const second = accumulator.drain()
    const third = accumulator.drain()
    expect(encodeAll(first).totals).toEqual(new Map([['a', 1n]]))
    expect(encodeAll(second).totals).toEqual(new Map([['a', 2n]]))
    expect(encodeAll(third)).toEqual({ elements: [], totals: new Map() })
    for (const drain of [first, second, third]) expectEmpty(drain)
  })

  test('gives its counts once, and when its oldest increment came', () => {
    const accumulator = new Accumulator()
    accumulator.add(incrementsOf({ key: 'a', delta: 1 }, { key: 'a', delta: 1 }, { key: 'b', delta: 1 }), 1000)
    accumulator.add(incrementsOf({ key: 'a', delta: 1 }), 2000)
    const drain = accumulator.drain()
    expect(drain.oldestAt).toBe(1000)
    expect(drain.readCounts()).toEqual({ requests: 2, increments: 4 })
    expect(drain.readCounts()).toEqual({ requests: 0, increments: 0 })
    accumulator.add(incrementsOf({ key: 'a', delta: 1 }), 3000)
    expect(accumulator.drain().oldestAt).toBe(3000)
  })

  test('counts its keys and bytes down as they are read', () => {
    const accumulator = new Accumulator()
    for (let i = 0; i < 20_000; i++) add(accumulator, `key ${i}`, BigInt(i))
    expect(accumulator.pendingKeys).toBe(20_000)
    const { pendingBytes } = accumulator
    expect(pendingBytes).toBeGreaterThan(20_000 * 'key 12345'.length)
    for (let i = 0; i < 20_000; i++) add(accumulator, `key ${i}`, BigInt(i))
    expect(accumulator).toMatchObject({ pendingKeys: 20_000, pendingBytes })
    const drain = accumulator.drain()
    expect(drain).toMatchObject({ pendingKeys: 20_000, pendingBytes })
    let before = drain.pendingBytes
    for (let left = 20_000; left > 0; left--) {
      expect(drain.pendingKeys).toBe(left)
      expect(drain.nextSum()).toBeDefined()
      expect(drain.pendingBytes).toBeLessThan(before)
      before = drain.pendingBytes
    }
    expect(drain.nextSum()).toBeUndefined()
    expectEmpty(drain)
  })
})

describe('idempotent requests', () => {
  const request = (id: string, keys: readonly string[]): IdempotentRequest =>
    ({ id: id.padStart(64, '0'), at: 1000, sums: new Map(keys.map((key) => [key, 1])) })

  test('are kept as they are, next to the sums', () => {
    const accumulator = new Accumulator()
    add(accumulator, 'a', 1n)
    accumulator.addIdempotent(request('1', ['a', 'b']), 2, 1000)
    accumulator.addIdempotent(request('2', ['a']), 1, 1000)
    expect(accumulator).toMatchObject({ pendingKeys: 3, requests: 3, increments: 4 })
    expect(has(accumulator, 'b')).toBe(false)
    const drain = accumulator.drain()
    const { elements, totals } = encodeAll(drain)
    expect(totals).toEqual(new Map([['a', 1n]]))
    expect(elements).toHaveLength(1)
    expect(JSON.parse(elements[0]!.toString())).toEqual({
      v: 1,
      producer,
      seq: 1,
      at: 1000,
      requests: 3,
      increments: 4,
      sums: { a: 1 },
      once: [{ id: '1'.padStart(64, '0'), at: 1000, sums: { a: 1, b: 1 } },
        { id: '2'.padStart(64, '0'), at: 1000, sums: { a: 1 } }],
    })
    expectEmpty(drain)
  })

  test('are found by their ids until they are drained, drain after drain', () => {
    const accumulator = new Accumulator()
    for (const id of ['1', '2', '3']) {
      const once = request(id, ['a'])
      accumulator.addIdempotent(once, 1, 1000)
      expect(accumulator.pendingIdempotent(once.id)).toBe(once)
      accumulator.drain()
      expect(accumulator.pendingIdempotent(once.id)).toBeUndefined()
    }
  })

  test('leave in batches of about their most bytes, each request whole', () => {
    const accumulator = new Accumulator()
    const keys = Array.from({ length: 100 }, (_, i) => `${i}${'"'.repeat(250)}`)
    const ids = Array.from({ length: 200 }, (_, i) => String(i).padStart(64, '0'))
    for (const id of ids) accumulator.addIdempotent(request(id, keys), keys.length, 1000)
    const drain = accumulator.drain()
    const { elements } = encodeAll(drain)
    expect(elements.length).toBeGreaterThan(5)
    const seen = elements.flatMap((element) => {
      const { once }: { once: Array<{ id: string, sums: Record<string, number> }> } = JSON.parse(element.toString())
      for (const { sums } of once) expect(Object.keys(sums)).toHaveLength(100)
      return once.map(({ id }) => id)
    })
    expect(seen).toEqual(ids)
    expectEmpty(drain)
  })
})

describe('batches', () => {
  test('of very many keys are of about their most bytes, and add up', () => {
    const accumulator = new Accumulator()
    const model = new Map<string, bigint>()
    for (let i = 0; i < 60_000; i++) {
      const key = `${i} ${'ключ"\\'.repeat(i % 20)}`
      const value = BigInt(i) * (i % 3 === 0 ? 2n ** 46n : -1n)
      model.set(key, value)
      add(accumulator, key, value)
    }
    const drain = accumulator.drain()
    const { elements, totals } = encodeAll(drain)
    expect(totals).toEqual(model)
    expect(elements.length).toBeGreaterThan(5)
    for (const [i, element] of elements.entries()) {
      if (i < elements.length - 1) expect(element.length).toBeGreaterThanOrEqual(batchBytesMax)
      expect(readHeader(element)).toMatchObject({
        producer,
        seq: i + 1,
        requests: i === 0 ? 60_000 : 0,
        increments: i === 0 ? 60_000 : 0,
        once: false,
      })
    }
    expectEmpty(drain)
  })

  test('of very many sums beyond 64 bits add up too', () => {
    const accumulator = new Accumulator()
    const keys = Array.from({ length: 30_000 }, (_, i) => `a key of some length ${i}`)
    for (const key of keys) {
      add(accumulator, key, int64Max)
      add(accumulator, key, int64Max)
    }
    add(accumulator, keys[0]!, int64Max)
    const drain = accumulator.drain()
    const { totals } = encodeAll(drain)
    expect(totals.size).toBe(keys.length)
    for (const [key, total] of totals) expect(total).toBe(key === keys[0] ? 3n * int64Max : 2n * int64Max)
    expectEmpty(drain)
  })
})

describe('whatever is added', () => {
  const value = fc.oneof(
    fc.bigInt({ min: int64Min, max: int64Max }), fc.bigInt({ min: -3n, max: 3n }), fc.constantFrom(int64Min, int64Max,
      2n ** 53n, -(2n ** 53n), 2n ** 53n - 1n, 1n - 2n ** 53n)
  )
  const key = fc.oneof(fc.nat({ max: 20 }).map(String),
    fc.string({ unit: 'grapheme', minLength: 1, maxLength: 20 }).filter((text) => !/\p{Cc}/u.test(text)))

  test('drains and batches add up to it', () => {
    const step = fc.oneof({ weight: 10, arbitrary: fc.tuple(key, value) },
      { weight: 1, arbitrary: fc.constant('drain' as const) })
    fc.assert(fc.property(fc.array(step, { maxLength: 300, size: 'max' }), (steps) => {
      const accumulator = new Accumulator()
      const model = new Map<string, bigint>()
      const totals = new Map<string, bigint>()
      const drainAll = (): void => {
        const drain = accumulator.drain()
        for (const [key, total] of encodeAll(drain).totals) totals.set(key, (totals.get(key) ?? 0n) + total)
        expectEmpty(drain)
        expectEmpty(accumulator)
      }
      for (const step of steps) {
        if (step === 'drain') {
          drainAll()
          continue
        }
        const [key, value] = step
        add(accumulator, key, value)
        model.set(key, (model.get(key) ?? 0n) + value)
        expect(has(accumulator, key)).toBe(true)
      }
      drainAll()
      expect(totals).toEqual(model)
    }), { numRuns: 60 })
  })

  test('more keys than a first table has room for are summed as exactly', () => {
    const random = fc.record({
      keys: fc.integer({ min: 8_000, max: 25_000 }),
      step: fc.constantFrom(1, 3, 7, 8191, 8192, 8193),
      values: fc.array(value, { minLength: 1, maxLength: 50 }),
    })
    fc.assert(fc.property(random, ({ keys, step, values }) => {
      const accumulator = new Accumulator()
      const model = new Map<string, bigint>()
      for (let i = 0; i < 2 * keys; i++) {
        const key = `k${(i * step) % keys}`
        const value = values[i % values.length]!
        add(accumulator, key, value)
        model.set(key, (model.get(key) ?? 0n) + value)
      }
      expect(accumulator.pendingKeys).toBe(model.size)
      for (const key of model.keys()) if (!has(accumulator, key)) throw new Error(`${key} is missing`)
      const drain = accumulator.drain()
      const { totals } = encodeAll(drain)
      expectEmpty(drain)
      expect(totals.size).toBe(model.size)
      for (const [key, total] of model) {
        if (totals.get(key) !== total) throw new Error(`${key} is ${totals.get(key)}, not ${total}`)
      }
    }), { numRuns: 10 })
  })
})
