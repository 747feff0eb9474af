// The table behind the accumulator, held against a plain Map.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { seed } from '../../../packages/queue/test/seeds.ts'
import { hashOf, Table } from '../src/table.ts'

function add (old: number, value: number): number {
  return old + value
}

function entriesOf (table: Table<number>): Array<readonly [string, number]> {
  return Array.from({ length: table.size }, (_, index) => table.at(index)!)
}

/** Keys that all have the same shard and the same first slot while that has at most 256 slots. */
function collidingKeys (count: number): string[] {
  const wanted = hashOf('wanted') & 0xffff
  const keys: string[] = []
  for (let i = 0; keys.length < count; i++) {
    if ((hashOf(`key ${i}`) & 0xffff) === wanted) keys.push(`key ${i}`)
  }
  return keys
}

describe('a table', () => {
  test('has what a Map has, in the same order, whatever is put into it', () => {
    fc.assert(fc.property(fc.array(fc.tuple(fc.oneof(fc.string({ unit: 'grapheme', maxLength: 3 }), fc.constantFrom('', '__proto__', 'constructor', 'foo')), fc.integer())), (puts) => {
      const table = new Table<number>()
      const map = new Map<string, number>()
      for (const [key, value] of puts) {
        expect(table.put(key, value, add)).toBe(!map.has(key))
        map.set(key, (map.get(key) ?? 0) + value)
      }
      expect(entriesOf(table)).toEqual([...map])
      for (const [key, value] of map) expect(table.get(key)).toBe(value)
      expect(table.get('none of these')).toBeUndefined()
      expect(table.at(table.size)).toBeUndefined()
    }), { seed })
  })

  test('keeps a hundred thousand keys apart', () => {
    const table = new Table<number>()
    for (let round = 1; round <= 2; round++) {
      for (let i = 0; i < 100_000; i++) table.put(`key ${i}`, i, add)
    }
    expect(table.size).toBe(100_000)
    expect(entriesOf(table).every(([key, value], i) => key === `key ${i}` && value === 2 * i)).toBe(true)
    expect(table.get('key 99999')).toBe(199_998)
    expect(table.get('key 100000')).toBeUndefined()
  })

  test('keeps keys that were chosen to collide, before and after it grows past them', () => {
    const table = new Table<number>()
    const keys = collidingKeys(50)
    for (const key of keys) expect(table.put(key, 1, add)).toBe(true)
    for (let i = 0; i < 200_000; i++) table.put(`other ${i}`, 1, add)
    for (const key of keys) expect(table.put(key, 1, add)).toBe(false)
    expect(table.size).toBe(200_050)
    for (const key of keys) expect(table.get(key)).toBe(2)
    expect(entriesOf(table).slice(0, 50)).toEqual(keys.map((key) => [key, 2]))
  })
})
