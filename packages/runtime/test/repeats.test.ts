import { expect, test } from 'vitest'
import { Repeats } from '../src/log/repeats.ts'

test('lines that differ in numbers, ids and quoted text are one kind: a few are logged, the others summed up', () => {
  const repeats = new Repeats()
  const summed: string[] = []
  let logged = 0
  for (let i = 0; i < 3000; i++) {
    const message =
      `pair ${i} ("${'x'.repeat(i % 50)}") of worker 6c84fb90-12c4-11e1-840d-7b25c5ee77${10 + i % 90} was refused`
    if (repeats.accept(40, message, (leftOut) => summed.push(`${leftOut}: ${message}`))) logged++
  }
  expect(logged).toBe(5)
  repeats.sumUp()
  expect(summed).toEqual([expect.stringMatching(/^2995: pair 2999 /)])
  repeats.sumUp()
  expect(summed).toHaveLength(1)
  expect(repeats.accept(40, 'pair 1 was refused', () => {}), 'a new interval').toBe(true)
})

test('levels and messages are told apart', () => {
  const repeats = new Repeats()
  for (let i = 0; i < 10; i++) repeats.accept(40, 'one', () => {})
  expect(repeats.accept(40, 'one', () => {})).toBe(false)
  expect(repeats.accept(50, 'one', () => {})).toBe(true)
  expect(repeats.accept(40, 'two', () => {})).toBe(true)
})

test('however many kinds there are, an interval has few lines and little is remembered', () => {
  const repeats = new Repeats()
  let [logged, leftOut] = [0, 0]
  const letters = (i: number): string => i.toString(26).replace(/\d/g, (digit) => 'qrstuvwxyz'[Number(digit)]!)
  for (let i = 0; i < 20_000; i++) if (repeats.accept(40, letters(i), (count) => { leftOut += count })) logged++
  expect(logged).toBeLessThan(600)
  repeats.sumUp()
  expect(logged + leftOut).toBe(20_000)
})

test('a message made to be slow to compare is compared in no time', () => {
  const repeats = new Repeats()
  const startedAt = performance.now()
  for (let i = 0; i < 100; i++) repeats.accept(40, `"${'\\'.repeat(100_000)}`, () => {})
  expect(performance.now() - startedAt).toBeLessThan(500)
})
