// A part of what paths.ts and request-matcher.ts compare: the same cases every time, and new ones each time, whose seed
// is printed.
import { randomInt } from 'node:crypto'
import { describe, expect, test } from 'vitest'
import { comparePaths, type Over } from './paths.ts'
import { compareMatcher } from './request-matcher.ts'

const fixedSeed = 20
const freshSeed = randomInt(2 ** 31)

describe.each([['fixed', fixedSeed], ['fresh', freshSeed]])('with the %s seed %d', (_name, seed) => {
  test.each<[over: Over, cases: number]>([['pipes', 2000],
    ['sockets', 600]])('both paths answer, close and count the same, over %s', async (over, cases) => {
    const { problems, fast, fastTickets, replies } = await comparePaths(seed, cases, over)
    expect(problems,
      `seed ${seed}; again: node test/fuzz/paths.ts --seed ${seed} --cases ${cases} --over ${over}`).toEqual([])
    expect(fast, 'requests by the fast lane').toBeGreaterThan(cases / 10)
    expect(fastTickets, 'tickets by the fast lane').toBeGreaterThan(cases / 20)
    expect([...replies.keys()])
      .toEqual(expect.arrayContaining(['201', '202', '204', '400', '401', '403', '415', '421', '422']))
  })

  test('what a matcher takes for a request is that request to Node', async () => {
    const cases = 20_000
    const { problems, seen } = await compareMatcher(seed, cases)
    expect(problems,
      `seed ${seed}; again: node test/fuzz/request-matcher.ts --seed ${seed} --cases ${cases}`).toEqual([])
    for (const { whole, other } of Object.values(seen)) {
      expect(whole).toBeGreaterThan(cases / 20)
      expect(other).toBeGreaterThan(cases / 10)
    }
  })
})
