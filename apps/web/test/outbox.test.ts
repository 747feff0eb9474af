// Delivery to a queue that does what queues can do: be slow, fail, lose a reply, lose its memory.
import { expect, test } from 'vitest'
import { producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { sequences, setUp, spyOn, sumUp } from './fixtures/flusher.ts'

// Failing pushes

test('a failed push is sent again with the same bytes, and nothing is merged into it', async () => {
  const { queue, flusher, count } = setUp()
  queue.misfortunes('fail', 'fail after', 'fail')
  count('a')
  await until('the first push', () => queue.attempts.length === 1)
  for (let i = 0; i < 10; i++) count('a')
  await until('all of it', () => queue.list.length === 3)
  const [first, ...repeats] = queue.attempts.slice(0, 4).map(({ elements }) => elements[0]!)
  expect(repeats).toHaveLength(3)
  for (const repeat of repeats) expect(repeat.equals(first!)).toBe(true)
  expect(sequences(queue.list)).toEqual([1, 1, 2])
  expect(sumUp(queue.list)).toEqual({ a: 11 })
  expect(flusher.counts).toMatchObject({ increments: 11, pushed: 2, retries: 3, replays: 0 })
})

test('while the queue fails, the log says why and for how long, and that it is available again', async () => {
  const { queue, flusher, log, count } = setUp()
  queue.break()
  count('a')
  await until('a warning', () => log.messages(40).length > 0)
  expect(flusher.failure).toBe('cut')
  expect(flusher.failingMs).toBeGreaterThan(900)
  queue.repair()
  await until('the batch', () => queue.list.length === 1)
  await until('a line that it is available', () => log.messages(30).some((message) => message.includes('again')))
  expect(flusher.failure).toBeUndefined()
  expect(flusher.failingMs).toBe(0)
  expect(log.messages(40)).toHaveLength(1)
})

// The window

test('a queue that lost its memory gets the whole window again, in order, with the same bytes', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd']) await post(key, 'queued')
  const before = queue.list
  queue.forget()
  await until('the window', () => queue.list.length === 4)
  expect(Buffer.concat(queue.list).equals(Buffer.concat(before))).toBe(true)
  expect(flusher.counts.replays).toBe(1)
  await post('e', 'queued')
  expect(sequences(queue.list)).toEqual([1, 2, 3, 4, 5])
})

test('a mere reconnect repeats nothing but the batch in flight', async () => {
  const { queue, flusher, count, post } = setUp()
  await post('a', 'queued')
  await post('b', 'queued')
  queue.disconnect()
  count('c')
  await until('a failed attempt', () => flusher.counts.retries > 0)
  queue.connect()
  await until('the third', () => queue.list.length === 3)
  queue.misfortunes('fail after')
  await post('d', 'queued')
  expect(sequences(queue.list)).toEqual([1, 2, 3, 4, 4])
  expect(flusher.counts.replays).toBe(0)
})

test('a queue that changes during a replay gets all of it again, from the start', async () => {
  const { queue, post } = setUp()
  for (let i = 1; i <= 300; i++) await post('a', 'queued')
  const attemptsBefore = queue.attempts.length
  queue.misfortunes('fail')
  queue.forget()
  await until('the first failure', () => queue.misfortunesLeft === 0)
  await until('the window', () => queue.list.length === 300)
  const groups = queue.attempts.slice(attemptsBefore).map(({ elements }) => elements.length)
  expect(groups.slice(0, 3)).toEqual([256, 256, 44])
  queue.hold()
  queue.forget()
  await until('the first group', () => queue.attempts.at(-1)?.elements.length === 256)
  queue.release()
  queue.misfortunes('move')
  await until('the whole window', () => queue.misfortunesLeft === 0 && queue.list.length === 300)
  expect(sequences(queue.list)).toEqual(Array.from({ length: 300 }, (_, i) => i + 1))
})

test('a batch that finds the queue moved goes behind the window', async () => {
  const { queue, post } = setUp()
  await post('a', 'queued')
  await post('b', 'queued')
  queue.misfortunes('move')
  expect(await post('c', 'queued')).toBe('reached')
  // The batch in flight is in the window by then: it comes with it.
  expect(sequences(queue.list)).toEqual([1, 2, 3])
})

test('exactly what is stored leaves the window: a gap is pushed again', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd', 'e']) await post(key, 'queued')
  queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] })
  queue.reportProgress(producerB, { high: 5 })
  expect(flusher.unstoredBatches).toBe(3)
  queue.forget()
  await until('the rest', () => queue.list.length === 3)
  expect(sequences(queue.list)).toEqual([2, 3, 5])
})

test('a reported gap is pushed again at once, those batches only and once', async () => {
  const { queue, flusher, log, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd', 'e']) await post(key, 'queued')
  queue.list = []
  queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] })
  await until('the gap', () => queue.list.length === 2)
  expect(sequences(queue.list)).toEqual([2, 3])
  queue.reportProgress(producerA, { high: 4, gaps: [[2, 3]] })
  await post('f', 'queued')
  expect(sequences(queue.list)).toEqual([2, 3, 6])
  expect(flusher.counts).toMatchObject({ replays: 0, refilled: 2 })
  expect(log.messages(40)).toEqual([expect.stringContaining('lost 2 batches')])
})

test('a gap is pushed again until the queue has it', async () => {
  const { queue, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  queue.list = []
  queue.misfortunes('fail', 'fail after', 'fail')
  queue.reportProgress(producerA, { high: 3, gaps: [[1, 2]] })
  await until('the gap', () => queue.misfortunesLeft === 0 && queue.list.length === 4)
  expect(sequences(queue.list)).toEqual([1, 2, 1, 2])
})

test('a gap in a queue that has moved comes with the whole window', async () => {
  const { queue, post } = setUp()
  for (const key of ['a', 'b', 'c', 'd']) await post(key, 'queued')
  queue.misfortunes('move')
  queue.reportProgress(producerA, { high: 3, gaps: [[2, 2]] })
  await until('the window', () => queue.list.length === 2)
  expect(sequences(queue.list)).toEqual([2, 4])
})

test('a tail that vanished is pushed again by an idle worker, once', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  queue.reportProgress(producerA, { high: 1 })
  queue.list = []
  await until('the tail', () => queue.list.length === 2)
  expect(sequences(queue.list)).toEqual([2, 3])
  expect(flusher.undelivered.window).toBe(0)
  queue.list = []
  const { polled } = spyOn(queue)
  await until('four more polls', () => polled() > 4)
  expect(queue.list).toEqual([])
  expect(flusher.counts).toMatchObject({ replays: 0, refilled: 2 })
})

test('what was lost and has left the window can not be pushed again, and the log says how much that is', async () => {
  const { queue, log, post } = setUp({ unstoredBytesMax: 1000 })
  for (let i = 0; i < 20; i++) await post('a', 'queued')
  queue.reportProgress(producerA, { high: 10, gaps: [[2, 4]] })
  queue.reportProgress(producerA, { high: 11, gaps: [[2, 4]] })
  expect(log.messages(50)).toEqual([expect.stringMatching(/lost 3 batches.*npm run verify/)])
})

test('an idle worker notices what is stored, although no report reaches it', async () => {
  const { queue, flusher, post } = setUp()
  for (const key of ['a', 'b', 'c']) await post(key, 'queued')
  queue.reportProgress(producerA, { high: 2 }, { received: false })
  await until('a poll', () => flusher.unstoredBatches === 1)
  expect(flusher.lagSeconds).toBeGreaterThan(0)
  queue.reportProgress(producerA, { high: 3 }, { received: false })
  await until('a poll', () => flusher.unstoredBatches === 0)
  expect(flusher.lagSeconds).toBe(0)
})

test('past UNSTORED_BYTES_MAX the oldest batches leave the window, with a warning', async () => {
  const { queue, flusher, log, post } = setUp({ unstoredBytesMax: 1000 })
  for (let i = 0; i < 20; i++) await post('a', 'queued')
  const bytes = queue.list[0]!.length
  expect(flusher.unstoredBatches).toBe(Math.floor(1000 / (bytes + 1)))
  expect(log.messages(40)).toContainEqual(expect.stringContaining('UNSTORED_BYTES_MAX'))
  const kept = flusher.unstoredBatches
  queue.forget()
  await until('the rest of the window', () => queue.list.length === kept)
  expect(sequences(queue.list)).toEqual(Array.from({ length: kept }, (_, i) => 20 - kept + 1 + i))
})
