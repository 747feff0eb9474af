// The tables behind the accumulator, held against a plain Map.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { seed } from '@gearbox/test-kit/seeds.ts'
import { Sums } from '../src/accumulate/sums.ts'
import { hashOf, KeyTable, noBytes, type Slice } from '../src/accumulate/key-table.ts'

function put (table: KeyTable, key: string): number {
  const bytes = Buffer.from(key)
  return table.put(bytes, 0, bytes.length, hashOf(bytes, 0, bytes.length))
}

function find (table: KeyTable, key: string): number {
  // Not at the start of its buffer, and not all of it.
  const bytes = Buffer.from(`before${key}behind`)
  const [start, end] = [6, bytes.length - 6]
  return table.find(bytes, start, end, hashOf(bytes, start, end))
}

function keysOf (table: { readonly size: number, locate (index: number, slice: Slice): void }): string[] {
  const slice: Slice = { bytes: noBytes, start: 0, end: 0 }
  return Array.from({ length: table.size }, (_, index) => {
    table.locate(index, slice)
    return slice.bytes.toString('utf8', slice.start, slice.end)
  })
}

/** Keys that all have the same shard and the same first slot while that has at most 256 slots. */
function collidingKeys (count: number): string[] {
  const hash = (key: string): number => hashOf(Buffer.from(key), 0, key.length) & 0xffff
  const wanted = hash('wanted')
  const keys: string[] = []
  for (let i = 0; keys.length < count; i++) {
    if (hash(`key ${i}`) === wanted) keys.push(`key ${i}`)
  }
  return keys
}

const key = fc.oneof(fc.string({ unit: 'grapheme', maxLength: 3 }),
  fc.constantFrom('', '__proto__', 'constructor', 'foo', 'k'.repeat(256)))

describe('a table of keys', () => {
  test('numbers them in the order in which they are added, and again from 0 once it was cleared', () => {
    const rounds = fc.array(fc.array(key, { maxLength: 200 }), { minLength: 1, maxLength: 4 })
    fc.assert(fc.property(rounds, (rounds) => {
      const table = new KeyTable()
      for (const keys of rounds) {
        const numbers = new Map<string, number>()
        for (const key of keys) {
          const number = numbers.get(key) ?? numbers.size
          expect(put(table, key)).toBe(number)
          numbers.set(key, number)
        }
        expect(keysOf(table)).toEqual([...numbers.keys()])
        for (const [key, number] of numbers) expect(find(table, key)).toBe(number)
        expect(find(table, 'none of these')).toBe(-1)
        table.clear()
        expect(table.size).toBe(0)
        for (const key of keys) expect(find(table, key)).toBe(-1)
      }
    }), { seed })
  })

  test('keeps a hundred thousand keys apart, short ones and the longest', () => {
    const table = new KeyTable()
    const keys = Array.from({ length: 100_000 }, (_, i) => `${'k'.repeat(i % 3 * 100)} ${i}`)
    for (let round = 0; round < 2; round++) expect(keys.findIndex((key, i) => put(table, key) !== i)).toBe(-1)
    expect(keysOf(table)).toEqual(keys)
    expect(keys.findIndex((key, i) => find(table, key) !== i)).toBe(-1)
    expect(find(table, ' 100000')).toBe(-1)
  })

  test('keeps keys that were chosen to collide, before and after it grows past them, and forgets them ' +
    'when cleared', () => {
    const table = new KeyTable()
    const keys = collidingKeys(50)
    for (const [i, key] of keys.entries()) expect(put(table, key)).toBe(i)
    for (let i = 0; i < 200_000; i++) put(table, `other ${i}`)
    for (const [i, key] of keys.entries()) expect(put(table, key)).toBe(i)
    expect(table.size).toBe(200_050)
    for (const [i, key] of keys.entries()) expect(find(table, key)).toBe(i)
    table.clear()
    for (const key of keys) expect(find(table, key)).toBe(-1)
  })

  test('keeps keys apart whose hashes are much the same', () => {
    // Some bits of a hash that choose the shard, some that choose the slot.
    const masks = fc.constantFrom(0, 0x1, 0x101, 0x1f01, 0x30003, 0x7fffff00)
    fc.assert(fc.property(masks, fc.integer({ min: 1, max: 1500 }), fc.nat(), (mask, count, salt) => {
      const table = new KeyTable()
      const keys = Array.from({ length: count }, (_, i) => Buffer.from(`${salt} ${i}`))
      const hash = (key: Buffer): number => hashOf(key, 0, key.length) & mask
      for (const [i, key] of keys.entries()) {
        if (table.find(key, 0, key.length, hash(key)) !== -1) {
          throw new Error(`${key.toString()} is there before it was put`)
        }
        if (table.put(key, 0, key.length, hash(key)) !== i) throw new Error(`${key.toString()} is taken for another`)
      }
      for (const [i, key] of keys.entries()) {
        if (table.find(key, 0, key.length, hash(key)) !== i) throw new Error(`${key.toString()} is lost`)
      }
    }), { seed, numRuns: 50 })
  })
})

test('a cleared table forgets keys that collided, also once others have taken their slots', () => {
  const table = new KeyTable()
  const keys = Array.from({ length: 80 }, (_, i) => Buffer.from(`key ${i}`))
  const [first, second] = [keys.slice(0, 40), keys.slice(40)]
  for (const key of first) table.put(key, 0, key.length, 7)
  table.clear()
  for (const [i, key] of second.entries()) expect(table.put(key, 0, key.length, 7)).toBe(i)
  for (const key of first) expect(table.find(key, 0, key.length, 7)).toBe(-1)
})

test('a table that is cleared and filled again does not grow', () => {
  const table = new KeyTable()
  const fill = (rounds: number): number => {
    for (let round = 0; round < rounds; round++) {
      for (let i = 0; i < 4; i++) put(table, `key ${i}`)
      table.clear()
    }
    return process.memoryUsage().arrayBuffers
  }
  const before = fill(1)
  expect(fill(200_000) - before).toBeLessThan(1_000_000)
})

describe('sums', () => {
  test('are what BigInts add up to, also after the memory was used before', () => {
    const delta = fc.oneof(fc.integer(), fc.maxSafeInteger(), fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }))
    const rounds = fc.array(fc.array(fc.tuple(key, delta), { maxLength: 200 }), { minLength: 1, maxLength: 4 })
    fc.assert(fc.property(rounds, (rounds) => {
      const sums = new Sums()
      for (const pairs of rounds) {
        const model = new Map<string, bigint>()
        for (const [key, delta] of pairs) {
          const bytes = Buffer.from(key)
          const hash = hashOf(bytes, 0, bytes.length)
          expect(sums.has(bytes, 0, bytes.length, hash)).toBe(model.has(key))
          expect(sums.add(bytes, 0, bytes.length, hash, delta)).toBe(!model.has(key))
          model.set(key, (model.get(key) ?? 0n) + BigInt(delta))
        }
        expect(keysOf(sums)).toEqual([...model.keys()])
        expect([...model.values()].map((sum, i) => sum === BigInt(sums.sumAt(i)))).not.toContain(false)
        expect(sums.clear()).toBe(true)
      }
    }), { seed })
  })

  test('of very many keys give their memory back', () => {
    const sums = new Sums()
    for (let i = 0; i <= 4096; i++) {
      const bytes = Buffer.from(`key ${i}`)
      sums.add(bytes, 0, bytes.length, hashOf(bytes, 0, bytes.length), 1)
    }
    expect(sums.clear()).toBe(false)
  })
})
