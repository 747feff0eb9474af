// The window of batches that are not known to be stored.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { batchBytesMax, type Batch } from '../../../packages/queue/src/batch.ts'
import { has, include, none, type Sequences } from '../../../packages/queue/src/sequences.ts'
import { seed } from '../../../packages/queue/test/seeds.ts'
import { Window } from '../src/window.ts'

function batch (seq: number, bytes = 10): Batch {
  return { seq, increments: 1, at: 1000 + seq, element: Buffer.alloc(bytes, String(seq % 10)) }
}

function filled (count: number, { pushed = count, bytes = 10 } = {}): Window {
  const window = new Window()
  const batches = Array.from({ length: count }, (_, i) => batch(i + 1, bytes))
  for (const batch of batches) window.add(batch)
  window.markPushed(batches.slice(0, pushed))
  return window
}

function sequences (window: Window): number[] {
  return [...window.groups()].flat().map(({ seq }) => seq)
}

test('drops exactly what is stored, whatever its gaps', () => {
  fc.assert(fc.property(fc.uniqueArray(fc.integer({ min: 1, max: 25 })), (list) => {
    const window = filled(20)
    const stored = list.reduce<Sequences>((all, seq) => include(all, seq), none)
    window.dropStored(stored)
    const left = Array.from({ length: 20 }, (_, i) => i + 1).filter((seq) => !has(stored, seq))
    expect(sequences(window)).toEqual(left)
    expect(window.size).toBe(left.length)
    expect(window.oldestAt).toBe(left[0] === undefined ? undefined : 1000 + left[0])
  }), { seed })
})

test('knows what still has to be pushed', () => {
  const window = filled(3, { pushed: 1 })
  expect([1, 2, 3, 4].map((seq) => window.needsPush(seq))).toEqual([false, true, true, false])
  expect(window.batches(true).map(({ seq }) => seq)).toEqual([2, 3])
  expect(window.batches(false).map(({ seq }) => seq)).toEqual([1, 2, 3])
  expect(window.hasPushed()).toBe(true)
  window.dropStored({ high: 2, gaps: [] })
  expect(window.needsPush(2)).toBe(false)
  expect(window.hasPushed()).toBe(false)
})

test('lets the oldest pushed ones go past its bytes, and never one that was not pushed', () => {
  const window = filled(10, { pushed: 6, bytes: 100 })
  expect(window.trim(1000)).toBe(0)
  expect(window.trim(850)).toBe(2)
  expect(sequences(window)).toEqual([3, 4, 5, 6, 7, 8, 9, 10])
  expect(window.trim(0)).toBe(4)
  expect(sequences(window)).toEqual([7, 8, 9, 10])
  window.dropStored({ high: 10, gaps: [] })
  expect(window.trim(0)).toBe(0)
  window.add(batch(11, 100))
  window.markPushed([batch(11)])
  expect(window.trim(100)).toBe(0)
})

test('gives everything in order, in groups of at most 256 batches and the bytes of one largest batch, or one larger batch', () => {
  const many = [...filled(600).groups()]
  expect(many.map((group) => group.length)).toEqual([256, 256, 88])
  const large = new Window()
  const sizes = [batchBytesMax / 2, batchBytesMax / 2, 10, batchBytesMax + 1000, 10, 10]
  sizes.forEach((bytes, i) => large.add(batch(i + 1, bytes)))
  expect([...large.groups()].map((group) => group.map(({ seq }) => seq))).toEqual([[1, 2], [3], [4], [5, 6]])
})

test('what becomes known as stored between two groups is not given any more', () => {
  const window = filled(300)
  const given: number[] = []
  for (const group of window.groups()) {
    given.push(...group.map(({ seq }) => seq))
    window.dropStored({ high: 299, gaps: [] })
  }
  expect(given).toEqual([...Array.from({ length: 256 }, (_, i) => i + 1), 300])
})
