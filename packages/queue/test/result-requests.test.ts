// Requests about outcomes, as anybody may send them.
import { expect, test } from 'vitest'
import { producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { ResultRequests } from '../src/result-requests.ts'

const request = (producer: string, received: readonly number[], missing: readonly number[]): string =>
  JSON.stringify({ producer, received, missing })

test('requests of a producer become one, and what it has received is not missing', () => {
  const requests = new ResultRequests()
  expect(requests.take()).toEqual([])
  expect(requests.add(request(producerA, [1], [2, 3]))).toBe(true)
  expect(requests.add(request(producerB, [], [7]))).toBe(true)
  expect(requests.add(request(producerA, [2], [3, 4]))).toBe(true)
  expect(requests.take()).toEqual([
    { producer: producerA, received: [1, 2], missing: [3, 4] },
    { producer: producerB, received: [], missing: [7] },
  ])
  expect(requests.take()).toEqual([])
})

test.each([
  ['nothing', ''],
  ['no JSON', '{"producer":'],
  ['no request', '{"seq":1}'],
  ['a producer that is none', request('x', [], [1])],
  ['too long a text', request(producerA, [], Array.from({ length: 40_000 }, (_, i) => i))],
])('%s is no request', (_what, text) => {
  const requests = new ResultRequests()
  expect(requests.add(text)).toBe(false)
  expect(requests.take()).toEqual([])
})

test('a flood keeps no more than a bounded number of producers and sequences, and is over with the next take', () => {
  const requests = new ResultRequests()
  const uuid = (i: number): string => `00000000-0000-4000-8000-${String(i).padStart(12, '0')}`
  for (let i = 0; i < 5000; i++) requests.add(request(uuid(i), [], []))
  expect(requests.take()).toHaveLength(1024)
  for (let i = 0; i < 100; i++) {
    requests.add(request(producerA, [], Array.from({ length: 2000 }, (_, n) => i * 2000 + n)))
  }
  expect(requests.take()[0]?.missing).toHaveLength(64 * 1024)
  requests.add(request(producerB, [1], []))
  expect(requests.take()).toEqual([{ producer: producerB, received: [1], missing: [] }])
})
