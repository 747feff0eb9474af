// The check of order that tests and chaos use: it accepts what one counter can do, and finds what it can't.
import { expect, test } from 'vitest'
import { findOvertaken, findRepeated, type NumberRequest } from '@gearbox/test-kit/number-order.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'

/** Clients that each send a request, wait for its answer, and send the next; a server numbers it in between. */
function play (random: Random, issue: (client: number, count: number) => number): NumberRequest[] {
  const history: NumberRequest[] = []
  type Step = { at: number, do: () => void }
  const steps: Step[] = []
  const after = (at: number, delay: number, action: (at: number) => void): void => {
    const time = at + delay * (1 + random.next())
    steps.push({ at: time, do: () => action(time) })
  }
  const send = (client: number, sent: number): void => {
    const count = random.chance(0.2) ? random.int(2, 9) : 1
    after(sent, random.int(1, 20), (numbered) => {
      const first = issue(client, count)
      after(numbered, random.int(1, 20), (answered) => {
        history.push({ first, count, sent, answered })
        after(answered, random.int(0, 5), (at) => send(client, at))
      })
    })
  }
  for (let client = 0; client < 8; client++) send(client, random.next())
  while (history.length < 500) {
    steps.sort((one, other) => one.at - other.at)
    steps.shift()!.do()
  }
  return history
}

test(`a counter that numbers one request after another is in order (seed ${seed})`, () => {
  let next = 1
  const history = play(new Random(seed), (_client, count) => (next += count) - count)
  expect(findOvertaken(history)).toEqual([])
  expect(findRepeated(history)).toEqual([])
})

test(`workers that reserve ten numbers ahead are not (seed ${seed})`, () => {
  let next = 1
  const reserved = Array.from({ length: 2 }, () => ({ first: 0, left: 0 }))
  const history = play(new Random(seed), (client, count) => {
    const worker = reserved[client % 2]!
    if (worker.left < count) {
      Object.assign(worker, { first: next, left: 10 })
      next += 10
    }
    worker.first += count
    worker.left -= count
    return worker.first - count
  })
  expect(findRepeated(history)).toEqual([])
  expect(findOvertaken(history).length).toBeGreaterThan(20)
})

test('one request that was overtaken is found among many, with the one that overtook it', () => {
  const history = Array.from({ length: 100 }, (_, i) =>
    ({ first: i + 1, count: 1, sent: i * 10, answered: i * 10 + 15 }))
  expect(findOvertaken(history)).toEqual([])
  const late = { first: 40, count: 1, sent: 500, answered: 510 }
  history[39] = late
  expect(findOvertaken(history)).toEqual([{ request: late, by: history[40] }])
})

test('a number that two requests have is found', () => {
  const at = { sent: 0, answered: 1 }
  expect(findRepeated([{ first: 5, count: 5, ...at }, { first: 1, count: 5, ...at }, { first: 10, count: 1, ...at }]))
    .toEqual([5])
})
