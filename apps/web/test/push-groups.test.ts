// How batches are divided into pushes, and what becomes of a push of many of them.
import { expect, test } from 'vitest'
import { batchBytesMax, type Batch } from '@gearbox/protocol/batch.ts'
import { MemoryQueue } from '@gearbox/queue/memory.ts'
import { QueueUnavailableError } from '@gearbox/queue/queue.ts'
import { pushGroups, pushInGroups } from '../src/deliver/push-groups.ts'
import { Window } from '../src/deliver/window.ts'

function batches (sizes: readonly number[]): Batch[] {
  return sizes.map((bytes, i) => {
    return { seq: i + 1, increments: 1, at: 1000 + i, element: Buffer.alloc(bytes, String(i % 10)) }
  })
}

const small = (count: number): Batch[] => batches(Array.from({ length: count }, () => 10))

async function grouped (list: Iterable<Batch> | AsyncIterable<Batch>): Promise<number[][]> {
  const groups: number[][] = []
  for await (const group of pushGroups(list, () => true)) groups.push(group.map(({ seq }) => seq))
  return groups
}

test('groups are in order, of at most 256 batches and the bytes of one largest, or of one larger batch', async () => {
  expect((await grouped(small(600))).map((group) => group.length)).toEqual([256, 256, 88])
  const sizes = [batchBytesMax / 2, batchBytesMax / 2, 10, batchBytesMax + 1000, 10, 10]
  expect(await grouped(batches(sizes))).toEqual([[1, 2], [3], [4], [5, 6]])
  expect(await grouped([])).toEqual([])
})

test('batches that are read from a file are grouped in the same way', async () => {
  async function * read (): AsyncGenerator<Batch> { yield * small(300) }
  expect((await grouped(read())).map((group) => group.length)).toEqual([256, 44])
})

test('what becomes known as stored between two groups is in none any more', async () => {
  const window = new Window()
  for (const batch of small(300)) window.add(batch)
  const given: number[] = []
  for await (const group of pushGroups(window.batches(), ({ seq }) => window.has(seq))) {
    given.push(...group.map(({ seq }) => seq))
    window.dropStored({ high: 299, gaps: [] })
  }
  expect(given).toEqual([...Array.from({ length: 256 }, (_, i) => i + 1), 300])
})

test('a push ends where the queue is another one or unavailable, and reports only what the queue has', async () => {
  const queue = new MemoryQueue()
  const pushed: number[] = []
  const options = {
    queue,
    incarnation: '1',
    signal: new AbortController().signal,
    isWanted: () => true,
    onPushed: (group: readonly Batch[]) => { pushed.push(group.length) },
  }
  queue.misfortunes('fail')
  await expect(pushInGroups(small(300), options)).rejects.toThrow(QueueUnavailableError)
  expect(pushed).toEqual([])
  expect(await pushInGroups(small(300), options)).toBe(true)
  expect(pushed).toEqual([256, 44])
  queue.forget()
  expect(await pushInGroups(small(300), options)).toBe(false)
  expect(pushed).toEqual([256, 44])
})

test('a push that is abandoned ends before its next group', async () => {
  const queue = new MemoryQueue()
  const abandon = new AbortController()
  const pushing = pushInGroups(small(600), {
    queue, incarnation: '1', signal: abandon.signal, isWanted: () => true, onPushed: () => abandon.abort(),
  })
  await expect(pushing).rejects.toThrow('abandoned')
  expect(queue.list).toHaveLength(256)
})
