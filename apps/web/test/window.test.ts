// The window of batches that are not known to be stored.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import type { Batch } from '@gearbox/protocol/batch.ts'
import { has, include, none, type Sequences } from '@gearbox/protocol/sequences.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'
import { Window } from '../src/deliver/window.ts'

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
  return window.batches().map(({ seq }) => seq)
}

test('a window drops exactly what is stored, whatever its gaps', () => {
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

test('a window knows what still has to be pushed', () => {
  const window = filled(3, { pushed: 1 })
  expect([1, 2, 3, 4].map((seq) => window.needsPush(seq))).toEqual([false, true, true, false])
  expect(window.batches(true).map(({ seq }) => seq)).toEqual([2, 3])
  expect(window.batches(false).map(({ seq }) => seq)).toEqual([1, 2, 3])
  expect(window.hasPushed()).toBe(true)
  window.dropStored({ high: 2, gaps: [] })
  expect(window.needsPush(2)).toBe(false)
  expect(window.hasPushed()).toBe(false)
})

test('past its bytes a window drops the oldest pushed batches, and never one that was not pushed', () => {
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

function lost (window: Window): number[] {
  return sequences(window).filter((seq) => window.isLost(seq))
}

/** A poll of an empty queue, or of one with `length` batches, that took 5 ms. */
function poll (window: Window, askedAt: number, length = 0): void {
  window.noteLength({ askedAt, answeredAt: askedAt + 5, length, lastPushed: window.lastPushed })
}

test('what a report leaves out below its highest is lost: once, and not what was never pushed', () => {
  const window = filled(6, { pushed: 5 })
  expect(window.dropStored({ high: 4, gaps: [[2, 3]] })).toBe(0)
  expect(lost(window)).toEqual([2, 3])
  expect(window.lost).toBe(2)
  expect(window.batches(true).map(({ seq }) => seq)).toEqual([2, 3, 6])
  expect(window.pushedSequences()).toEqual([2, 3, 5])
  expect(window.unpushedIncrements).toBe(3)
  window.markRefilled([batch(2), batch(3)])
  window.dropStored({ high: 5, gaps: [[2, 3]] })
  expect(lost(window)).toEqual([])
  window.dropStored({ high: 5, gaps: [[3, 3]] })
  expect(sequences(window)).toEqual([3, 6])
  window.dropStored({ high: 7, gaps: [[6, 6]] })
  expect(lost(window)).toEqual([])
})

test('a lost batch that is reported as stored after all is not lost', () => {
  const window = filled(3)
  window.dropStored({ high: 3, gaps: [[1, 2]] })
  window.dropStored({ high: 3, gaps: [[1, 1]] })
  expect(lost(window)).toEqual([1])
  window.dropStored({ high: 3, gaps: [] })
  expect(window.lost).toBe(0)
})

test('what a gap shows to be lost and has left the window is counted once', () => {
  const window = filled(20, { bytes: 100 })
  expect(window.trim(500)).toBe(15)
  expect(window.dropStored({ high: 10, gaps: [[3, 4], [7, 9]] })).toBe(5)
  expect(window.dropStored({ high: 10, gaps: [[3, 4], [7, 9]] })).toBe(0)
  expect(window.dropStored({ high: 18, gaps: [[3, 4], [7, 9], [14, 17]] })).toBe(2)
  expect(lost(window)).toEqual([16, 17])
  expect(window.dropStored({ high: 9, gaps: [[3, 4], [7, 8]] })).toBe(0)
})

test('a window keeps a lost batch, however large it is', () => {
  const window = filled(3, { bytes: 100 })
  window.dropStored({ high: 2, gaps: [[1, 1]] })
  expect(window.trim(0)).toBe(0)
  window.markRefilled([batch(1)])
  expect(window.trim(0)).toBe(2)
})

test('an empty queue at two polls a second apart has lost what was pushed before the first', () => {
  const window = filled(2)
  poll(window, 1000)
  expect(lost(window)).toEqual([])
  window.add(batch(3))
  window.markPushed([batch(3)])
  poll(window, 1500)
  expect(lost(window)).toEqual([])
  poll(window, 2000)
  expect(lost(window)).toEqual([1, 2])
  window.markRefilled([batch(1), batch(2)])
  poll(window, 3000)
  poll(window, 4000)
  expect(lost(window)).toEqual([3])
})

test('a queue with something in it has lost nothing, nor has one between whose polls it was seen ' +
  'with something', () => {
  const window = filled(2)
  for (const length of [0, 1, 0, 7, 0]) poll(window, 1000 * (length + 1), length)
  expect(window.lost).toBe(0)
})

test('a batch that was pushed again is lost again only after 30 s of an empty queue', () => {
  const window = filled(1)
  for (const at of [1000, 2000]) poll(window, at)
  window.markRefilled([batch(1)])
  // What waits is taken.
  poll(window, 3000, 1)
  for (let at = 4000; at < 34_000; at += 1000) {
    poll(window, at)
    expect(window.lost, `${at} ms`).toBe(0)
  }
  poll(window, 35_000)
  expect(lost(window)).toEqual([1])
})

test('a batch that is pushed again with all others is on its way through the queue', () => {
  const window = filled(2)
  poll(window, 1000)
  window.markPushed([batch(1), batch(2)])
  poll(window, 2000)
  expect(window.lost).toBe(0)
  poll(window, 3000)
  expect(lost(window)).toEqual([1, 2])
})
