// How much of what was taken is one run.
import { expect, test } from 'vitest'
import { element } from '@gearbox/test-kit/batches.ts'
import { nextRun } from '../src/next-run.ts'

const sums = (seq: number): Buffer => element({ seq, sums: { ['x'.repeat(200_000)]: seq } })
const entries = (seq: number): Buffer => element({
  seq, entries: Array.from({ length: 4 }, () => ({ plugin: 'list', data: 'x'.repeat(50_000) })),
})

const sequencesOf = (elements: readonly Buffer[]): number[] =>
  nextRun(elements, 'a queue').elements.map((taken) => JSON.parse(taken.toString()).seq)

test('sums are one run, however many', () => {
  expect(sequencesOf(Array.from({ length: 12 }, (_, i) => sums(i + 1)))).toHaveLength(12)
})

test('many entries of plugins are several runs: each may have a result, and all are in one transaction', () => {
  expect(sequencesOf([sums(1), entries(2), sums(3), entries(4), sums(5), entries(6)])).toEqual([1, 2, 3, 4, 5])
  expect(sequencesOf([entries(6), sums(7)])).toEqual([6, 7])
})

test('one batch is a run, however large', () => {
  const large = Buffer.from(entries(1).toString().replace('"data":"', `"data":"${'x'.repeat(600_000)}`))
  expect(sequencesOf([large, sums(2), entries(3)])).toEqual([1, 2])
})

test('a correction is a run of its own', () => {
  const correction = element({ seq: 2, entries: [{ plugin: 'totals', data: { key: 'a', total: '1' } }] })
  expect(sequencesOf([sums(1), correction, sums(3)])).toEqual([1])
  expect(sequencesOf([correction, sums(3)])).toEqual([2])
})
