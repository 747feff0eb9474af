// Exactly once, checked on a model: everything that can happen to two batches under one kind of fault at a time, and
// random walks far beyond that. README.md in this folder says what is modelled, the bounds, and what was found.
//
// Checked: wherever the system is, no increment is counted twice. At rest, when nothing moves by itself any more, every
// increment of a living worker is counted once, every acknowledged one of a dead worker too unless Redis lost it, the
// queue is empty, and every living worker knows that all it pushed is stored. From every state a rest can be reached.
// States are compared by a canonical text (encode.ts); each exploration must find as many as its configuration says.
import { describe, expect, test } from 'vitest'
import { broken, configurations, mixed, secondLines } from './configurations.ts'
import { explore, seeded, walk } from './explore.ts'
import { realRules, type Rules } from './rules.ts'
import { noFaults, type Faults, type Size } from './state.ts'

const minute = 60_000

const all = { ...configurations, ...mixed }

function sizeOf (name: keyof typeof all): Size {
  return all[name]
}

describe('the real rules, within bounds', () => {
  for (const [name, { statesMin, ...size }] of Object.entries(configurations)) {
    test(`neither lose nor double: ${name}`, { timeout: minute }, () => {
      const { states, atRest, excused, restless, counterexample } = explore(size, realRules)
      expect(counterexample).toBeUndefined()
      expect(states).toBeGreaterThan(statesMin)
      expect(atRest).toBeGreaterThan(0)
      expect(excused).toBe(0)
      expect(restless).toBe(0)
    })
  }

  test('lose an acknowledged increment only if Redis loses it and its worker dies', { timeout: minute }, () => {
    const { statesMin, ...size } = mixed['worker crash and loss']
    const { states, excused, counterexample } = explore(size, realRules)
    expect(counterexample).toBeUndefined()
    expect(states).toBeGreaterThan(statesMin)
    expect(excused).toBeGreaterThan(0)
  })

  test('neither lose nor double when messages are late across a silent loss', { timeout: minute }, () => {
    const { statesMin, ...size } = mixed['loss and late messages']
    const { states, counterexample } = explore(size, realRules)
    expect(counterexample).toBeUndefined()
    expect(states).toBeGreaterThan(statesMin)
  })

  test.each(['stop and removal',
    'stop and loss'] as const)('lose nothing that a stopped worker had, unless Redis loses it after the stop: %s',
    { timeout: minute }, (name) => {
      const { statesMin, ...size } = mixed[name]
      const { states, excused, restless, counterexample } = explore(size, realRules)
      expect(counterexample).toBeUndefined()
      expect(states).toBeGreaterThan(statesMin)
      expect(excused).toBeGreaterThan(0)
      expect(restless).toBe(0)
    })

  test.each(['worker and consumer crash', 'slow report and consumer crash', 'stop and late messages',
    'two failovers'] as const)('neither lose nor double: %s', { timeout: minute }, (name) => {
    const { statesMin, ...size } = mixed[name]
    const { states, excused, restless, counterexample } = explore(size, realRules)
    expect(counterexample).toBeUndefined()
    expect(states).toBeGreaterThan(statesMin)
    expect(excused).toBe(0)
    expect(restless).toBe(0)
  })

  test('no bound ends an exploration in silence', () => {
    expect(() => explore(configurations.timeouts, realRules, 1000)).toThrow('more than 1000 states')
  })
})

describe('a broken rule is found', () => {
  for (const { name, rules, fails, how } of broken) {
    test(`${name} (${fails})`, { timeout: minute }, () => {
      const { counterexample, restless } = explore(sizeOf(fails), rules)
      if (how === 'restless') expect(restless).toBeGreaterThan(0)
      else expect(counterexample).toMatch(how)
    })
  }
})

describe('a second line of defence counts when the first one is gone', () => {
  for (const { name, first, second, fails, how } of secondLines) {
    test(`${name} (${fails})`, { timeout: minute }, () => {
      const size = sizeOf(fails)
      expect(explore(size, { ...realRules, ...first }).counterexample).toBeUndefined()
      expect(explore(size, { ...realRules, ...second }).counterexample).toBeUndefined()
      expect(explore(size, { ...realRules, ...first, ...second }).counterexample).toMatch(how)
    })
  }
})

describe('random walks', () => {
  const seed = process.env.MODEL_SEED === undefined
    ? Math.floor(Math.random() * 2 ** 31)
    : Number(process.env.MODEL_SEED)
  /** At most so many faults of each kind in one walk. Failovers are left out: see above. */
  const faultsMax: Faults = {
    ...noFaults,
    timeouts: 8,
    late: 6,
    consumerCrashes: 4,
    workerCrashes: 1,
    secondConsumers: 3,
    restarts: 3,
    saves: 4,
    flushes: 2,
    removals: 3,
    swaps: 2,
    slowReports: 2,
    stops: 1,
  }
  const stepsMax = 400

  function counterexampleIn (walks: number, rules: Rules, from: number): string | undefined {
    for (let seed = from; seed < from + walks; seed++) {
      const random = seeded(seed)
      const faults =
        Object.fromEntries(Object.entries(faultsMax).map(([kind, most]) => [kind, Math.floor(random() * (most + 1))]))
      const { counterexample } = walk({ increments: [14, 14, 14], consumers: 2, faults }, rules, random, stepsMax)
      if (counterexample !== undefined) return `MODEL_SEED=${seed}\n${counterexample}`
    }
    return undefined
  }

  test('far beyond the bounds the real rules neither lose nor double', { timeout: minute }, () => {
    expect(counterexampleIn(600, realRules, seed)).toBeUndefined()
  })

  test('find a broken rule too', { timeout: minute }, () => {
    const noRefill = { tails: 'ignored', gaps: 'ignored' } as const
    const broken = [
      noRefill, { ...noRefill, take: 'pops' }, { ...noRefill, acknowledge: 'trims n' }, { retry: 'new sequence' },
      { window: 'none' },
    ] as const
    for (const rules of broken) {
      expect(counterexampleIn(200, { ...realRules, ...rules }, 1), JSON.stringify(rules)).toMatch(/^MODEL_SEED=/)
    }
  })
})
