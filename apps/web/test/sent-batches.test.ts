// Which outcomes belong to which entries, and what is asked for.
import type { EntryOutcome } from '@gearbox/protocol/plugin-entry.ts'
import type { Progress } from '@gearbox/protocol/progress.ts'
import { producerA } from '@gearbox/test-kit/batches.ts'
import { expect, test } from 'vitest'
import { SentBatches } from '../src/submit/sent-batches.ts'
import { SubmittedEntry } from '../src/submit/submitted-entry.ts'

interface Sent {
  readonly batches: SentBatches
  /** How each entry was settled. */
  readonly settled: string[]
  send (name: string, seq: number): void
}

function sent (): Sent {
  const batches = new SentBatches()
  const settled: string[] = []
  return {
    batches,
    settled,
    send: (name, seq) => {
      const entry = new SubmittedEntry({ plugin: 'tickets', data: name, alone: false }, {
        onBatch: () => {},
        onSettled: () => { settled.push(name) },
      })
      batches.add(entry, seq)
    },
  }
}

function progress (high: number, ...results: ReadonlyArray<[seq: number, entry: number]>): Progress {
  const outcome: EntryOutcome = { result: null }
  return {
    high,
    gaps: [],
    rejected: [],
    omittedRejections: [],
    results: results.map(([seq, entry]) => ({ seq, entry, outcome })),
  }
}

test('an outcome is that of the entry with its sequence and number, and of no other', () => {
  const { batches, settled, send } = sent()
  for (const [name, seq] of [['a', 3], ['b', 3], ['c', 5]] as const) send(name, seq)
  batches.onProgress(progress(5, [3, 2], [3, -1], [4, 0], [5, 1], [2, 0], [0, 0], [-3, 0], [99, 0]), 0)
  expect(settled).toEqual([])
  batches.onProgress(progress(5, [3, 1]), 0)
  expect(settled).toEqual(['b'])
  batches.onProgress(progress(5, [3, 1], [3, 1], [5, 0], [3, 0]), 0)
  expect(settled).toEqual(['b', 'c', 'a'])
})

test('a stored batch that lacks outcomes is asked for, soon after; with all of them it is reported as received', () => {
  const { batches, send } = sent()
  for (const seq of [1, 2, 4]) send(String(seq), seq)
  expect(batches.request(producerA, 0)).toBeUndefined()
  batches.onProgress({ ...progress(4, [1, 0]), gaps: [[2, 3]] }, 1000)
  expect(batches.request(producerA, 1050)).toEqual({ producer: producerA, received: [1], missing: [] })
  const request = batches.request(producerA, 1100)!
  expect(request).toEqual({ producer: producerA, received: [1], missing: [4] })
  // As long as it was not sent, all of it is asked again.
  expect(batches.request(producerA, 1200)).toEqual(request)
  batches.requested(request)
  expect(batches.request(producerA, 1300)).toEqual({ producer: producerA, received: [], missing: [4] })
  batches.onProgress(progress(4, [4, 0], [2, 0]), 1400)
  const last = batches.request(producerA, 1500)!
  expect(last).toEqual({ producer: producerA, received: [4, 2], missing: [] })
  expect(batches.isEmpty).toBe(false)
  batches.requested(last)
  expect(batches.isEmpty).toBe(true)
})

test('what comes again after it was reported as received is reported once more', () => {
  const { batches, send } = sent()
  send('a', 1)
  batches.onProgress(progress(1, [1, 0]), 0)
  batches.requested(batches.request(producerA, 0)!)
  expect(batches.isEmpty).toBe(true)
  batches.onProgress(progress(1, [1, 0], [2, 0]), 0)
  expect(batches.request(producerA, 0)).toEqual({ producer: producerA, received: [1], missing: [] })
})

test('ten minutes after it was stored a batch is given up, and not before', () => {
  const { batches, send } = sent()
  send('a', 1)
  send('b', 1)
  send('c', 2)
  batches.onProgress(progress(1, [1, 0]), 1000)
  expect(batches.takeOld(600_999)).toEqual([])
  expect(batches.takeOld(601_000)).toHaveLength(1)
  expect(batches.request(producerA, 601_000)).toBeUndefined()
  expect(batches.takeOld(1e9)).toEqual([])
  expect(batches.isEmpty).toBe(false)
})

test('a batch that the queue lost after it had left the window is given up, and no other', () => {
  const { batches, send, settled } = sent()
  for (const seq of [1, 2, 3, 4]) send(String(seq), seq)
  const isKept = (seq: number): boolean => seq === 2
  expect(batches.onProgress(progress(0), 0, isKept)).toEqual([])
  const lost = batches.onProgress({ ...progress(3, [3, 0]), gaps: [[1, 2]] }, 0, isKept)
  for (const entry of lost) entry.fail(new Error('lost'))
  expect(settled).toEqual(['3', '1'])
  // A report that is older than what is known changes nothing.
  expect(batches.onProgress({ ...progress(4), gaps: [[1, 1], [3, 3]] }, 0, () => true)).toEqual([])
  expect(batches.onProgress({ ...progress(4), gaps: [[1, 1], [4, 4]] }, 0, () => false)).toEqual([])
  expect(batches.request(producerA, 1000)).toEqual({ producer: producerA, received: [3], missing: [2, 4] })
})

test('a request has a bounded number of sequences', () => {
  const { batches, send } = sent()
  for (let seq = 1; seq <= 10_000; seq++) send('', seq)
  batches.onProgress(progress(10_000, ...Array.from({ length: 5000 }, (_, i): [number, number] => [i + 1, 0])), 0)
  const request = batches.request(producerA, 1000)!
  expect([request.received.length, request.missing.length]).toEqual([4000, 4000])
  expect([request.received[0], request.missing[0]]).toEqual([1, 5001])
  batches.requested(request)
  expect(batches.request(producerA, 2000)?.received).toHaveLength(1000)
})
