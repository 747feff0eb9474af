// Sequences against the plainest model there is: a Set of numbers.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { has, hasAll, include, isSubset, missing, none, parseSequences, type Sequences } from '../src/sequences.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'

const most = 30
const numbers = Array.from({ length: most + 3 }, (_, i) => i + 1)
const arrivals = fc.array(fc.integer({ min: 1, max: most }), { maxLength: 40 })

function fromList (list: readonly number[]): { sequences: Sequences, model: Set<number> } {
  const model = new Set<number>()
  let sequences = none
  for (const seq of list) {
    if (!has(sequences, seq)) sequences = include(sequences, seq)
    model.add(seq)
  }
  return { sequences, model }
}

test('sequences have what was included and nothing else, in whatever order it came', () => {
  fc.assert(fc.property(arrivals, (list) => {
    const { sequences, model } = fromList(list)
    expect(numbers.filter((seq) => has(sequences, seq))).toEqual(numbers.filter((seq) => model.has(seq)))
    expect(sequences.high).toBe(Math.max(0, ...model))
  }), { seed })
})

test('gaps of sequences are in order, apart from each other, and below the highest', () => {
  fc.assert(fc.property(arrivals, (list) => {
    const { high, gaps } = fromList(list).sequences
    let before = -1
    for (const [from, to] of gaps) {
      expect(from).toBeGreaterThan(before + 1)
      expect(to).toBeGreaterThanOrEqual(from)
      before = to
    }
    expect(before).toBeLessThan(Math.max(high, 1))
  }), { seed })
})

test('hasAll is has for every sequence of a range', () => {
  fc.assert(fc.property(arrivals, fc.integer({ min: 1, max: most }), fc.nat({ max: most }), (list, from, length) => {
    const { sequences, model } = fromList(list)
    const range = Array.from({ length: length + 1 }, (_, i) => from + i)
    expect(hasAll(sequences, from, from + length)).toBe(range.every((seq) => model.has(seq)))
  }), { seed })
})

test('missing gives the ranges of a range that sequences do not have', () => {
  fc.assert(fc.property(arrivals, fc.integer({ min: 1, max: most }), fc.nat({ max: most }), (list, from, length) => {
    const { sequences, model } = fromList(list)
    const range = Array.from({ length: length + 1 }, (_, i) => from + i)
    const found = missing(sequences, from, from + length)
    expect(range.filter((seq) => found.some(([first, last]) => seq >= first && seq <= last)))
      .toEqual(range.filter((seq) => !model.has(seq)))
    expect(found.every(([first, last]) => first >= from && first <= last && last <= from + length)).toBe(true)
  }), { seed })
})

test('hasAll is false for a flush whose last sequence is not known yet', () => {
  expect(hasAll({ high: 1000, gaps: [] }, 1, Number.POSITIVE_INFINITY)).toBe(false)
})

test('isSubset says the same as for sets of numbers', () => {
  fc.assert(fc.property(arrivals, arrivals, fc.boolean(), (listA, listB, containing) => {
    const a = fromList(listA)
    const b = fromList(containing ? [...listA, ...listB] : listB)
    expect(isSubset(a.sequences, b.sequences)).toBe([...a.model].every((seq) => b.model.has(seq)))
  }), { seed })
})

test('sequences survive being written as JSON', () => {
  fc.assert(fc.property(arrivals, (list) => {
    const { sequences } = fromList(list)
    expect(parseSequences(JSON.parse(JSON.stringify(sequences)))).toEqual(sequences)
  }), { seed })
})

test('filling the middle of a gap splits it, filling its ends shortens it', () => {
  const gap: Sequences = { high: 9, gaps: [[3, 7]] }
  expect(include(gap, 5)).toEqual({ high: 9, gaps: [[3, 4], [6, 7]] })
  expect(include(gap, 3)).toEqual({ high: 9, gaps: [[4, 7]] })
  expect(include(gap, 7)).toEqual({ high: 9, gaps: [[3, 6]] })
  expect(include({ high: 3, gaps: [[2, 2]] }, 2)).toEqual({ high: 3, gaps: [] })
})

test.each([
  undefined, null, 5, 'high', [], {}, { high: 1 }, { gaps: [] }, { high: '1', gaps: [] }, { high: 1, gaps: {} },
  { high: 9, gaps: [[1]] }, { high: 9, gaps: [[1, 2, 3]] }, { high: 9, gaps: [['1', 2]] },
  { high: 9, gaps: [[1.5, 2]] }, { high: 9, gaps: [null] },
  { high: 9, gaps: [[5, 4]] }, { high: 9, gaps: [[6, 7], [2, 3]] },
])('%j is refused as sequences', (value) => {
  expect(parseSequences(value)).toBeUndefined()
})
