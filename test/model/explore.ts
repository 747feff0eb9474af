// Walks through the states: all that can be reached within the bounds, breadth first and so with shortest
// counterexamples; or one at random, far beyond them.
import { keyOf } from './encode.ts'
import type { Rules } from './rules.ts'
import { at, initialState, noFaults, type Size, type State } from './state.ts'
import { stepsFrom, wrongAnywhere, wrongAtRest } from './system.ts'

export interface Explored {
  readonly states: number
  /** States in which nothing moves by itself any more. */
  readonly atRest: number
  /** Of these, ones that lack an acknowledged increment with an excuse: Redis lost its data and the worker died. */
  readonly excused: number
  /** States from which no rest can be reached without a further fault. */
  readonly restless: number
  /** Steps of the longest shortest way. */
  readonly depth: number
  /** What is wrong, and how it comes about; undefined if nothing is. */
  readonly counterexample: string | undefined
}

/**
 * Explores everything that can happen.
 * @param statesMax a bound against running out of memory. @throws Error if it is hit: never a silent end
 */
export function explore (size: Size, rules: Rules, statesMax = 2_000_000): Explored {
  const ownerOf = owners(size)
  const ids = new Map<string, number>()
  /** By state: which one it was first reached from, and by which of its steps. */
  const cameFrom: number[] = []
  const cameBy: number[] = []
  /** Steps without faults, as pairs of states, for finding what can come to rest. */
  const edges: number[] = []
  const resting: number[] = []
  let [frontier, depth, excused] = [[initialState(size)], 0, 0]
  let found: { id: number, wrong: string } | undefined

  const idOf = (state: State, from: number, by: number): { id: number, isNew: boolean } => {
    const key = keyOf(state)
    const known = ids.get(key)
    if (known !== undefined) return { id: known, isNew: false }
    if (ids.size === statesMax) {
      throw new Error(`more than ${statesMax} states: raise the bound or take a smaller configuration`)
    }
    const id = ids.size
    ids.set(key, id)
    cameFrom.push(from)
    cameBy.push(by)
    return { id, isNew: true }
  }

  let frontierIds = frontier.map((state) => idOf(state, -1, -1).id)
  while (frontier.length > 0 && found === undefined) {
    const [next, nextIds]: [State[], number[]] = [[], []]
    for (const [position, state] of frontier.entries()) {
      const from = frontierIds[position] ?? 0
      let moves = false
      for (const [by, step] of stepsFrom(state, rules).entries()) {
        const after = step.take()
        const { id, isNew } = idOf(after, from, by)
        if (!step.fault && id !== from) {
          moves = true
          edges.push(from, id)
        }
        if (!isNew) continue
        next.push(after)
        nextIds.push(id)
        const wrong = wrongAnywhere(after)
        if (wrong !== undefined) found ??= { id, wrong }
      }
      if (!moves) {
        resting.push(from)
        const wrong = wrongAtRest(state, ownerOf)
        if (wrong !== undefined) found ??= { id: from, wrong: `at rest, ${wrong}` }
        else if (state.acknowledged.some((acknowledged, increment) =>
          acknowledged && state.database.counts[increment] === 0)) excused++
      }
      if (found !== undefined) break
    }
    [frontier, frontierIds] = [next, nextIds]
    if (next.length > 0) depth++
  }
  const counterexample = found === undefined
    ? undefined
    : `${found.wrong}\n${trace(initialState(size), rules, wayTo(found.id, cameFrom, cameBy))}`
  return {
    states: ids.size,
    atRest: resting.length,
    excused,
    restless: found === undefined ? restless(ids.size, edges, resting) : 0,
    depth,
    counterexample,
  }
}

export interface Walked {
  readonly steps: number
  readonly faults: number
  readonly counterexample: string | undefined
}

const restStepsMax = 20_000

/** Walks at random, then lets faults end and waits for rest. `random` gives numbers from 0 up to 1. */
export function walk (size: Size, rules: Rules, random: () => number, stepsMax: number): Walked {
  const ownerOf = owners(size)
  const taken: number[] = []
  let state = initialState(size)
  // The last increment of each worker comes when all is well again: whoever goes on counting receives a report of all
  // that is stored.
  const last = state.workers.map(({ coming }) => coming.slice(-1))
  state = { ...state, workers: state.workers.map((worker) => ({ ...worker, coming: worker.coming.slice(0, -1) })) }
  const begin = state
  let [faults, wrong]: [number, string | undefined] = [0, undefined]
  const failed = (): Walked =>
    ({ steps: taken.length, faults, counterexample: `${wrong}\n${trace(begin, rules, taken)}` })

  for (let i = 0; i < stepsMax + restStepsMax; i++) {
    if (i === stepsMax) {
      state = {
        ...state,
        faults: noFaults,
        late: [],
        workers: state.workers.map((worker, producer) =>
          worker.alive ? { ...worker, coming: [...worker.coming, ...at(last, producer)] } : worker),
      }
    }
    const steps = stepsFrom(state, rules)
    // A system that only fails gets nowhere: mostly it works.
    const faulty = random() < 0.15
    const some = [...steps.keys()].filter((index) => steps[index]?.fault === faulty)
    const choice = some[Math.floor(random() * some.length)]
    const step = choice === undefined ? undefined : steps[choice]
    if (choice !== undefined && step !== undefined) {
      state = step.take()
      if (i < stepsMax) taken.push(choice)
      if (step.fault) faults++
    }
    wrong = wrongAnywhere(state)
    if (wrong !== undefined) return failed()
    if (i >= stepsMax && isAtRest(state, rules)) {
      wrong = wrongAtRest(state, ownerOf)
      return wrong === undefined ? { steps: i, faults, counterexample: undefined } : failed()
    }
  }
  wrong = 'it does not come to rest'
  return failed()
}

function isAtRest (state: State, rules: Rules): boolean {
  const steps = stepsFrom(state, rules).filter(({ fault }) => !fault)
  if (steps.length === 0) return true
  if (steps.length > 2 * state.workers.length) return false
  const key = keyOf(state)
  return steps.every((step) => keyOf(step.take()) === key)
}

/** A random number generator that gives the same numbers for the same seed (mulberry32). */
export function seeded (seed: number): () => number {
  let a = seed >>> 0
  return () => {
    a = (a + 0x6D2B79F5) >>> 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
}

function owners ({ increments }: Size): number[] {
  return increments.flatMap((count, worker) => Array.from({ length: count }, () => worker))
}

function wayTo (id: number, cameFrom: readonly number[], cameBy: readonly number[]): number[] {
  const way: number[] = []
  for (let on = id; on > 0; on = cameFrom[on] ?? 0) way.unshift(cameBy[on] ?? 0)
  return way
}

/** The same steps once more, with their names. */
function trace (begin: State, rules: Rules, way: readonly number[]): string {
  let state = begin
  return way.map((by, i) => {
    const step = stepsFrom(state, rules)[by]
    if (step === undefined) throw new Error('the steps of a state are not the same twice')
    const line = `${String(i + 1).padStart(4)}. ${step.name()}`
    state = step.take()
    return line
  }).join('\n')
}

/** How many states can't come to rest without a further fault: backwards from rest along the steps that are none. */
function restless (states: number, edges: readonly number[], resting: readonly number[]): number {
  const first = new Int32Array(states).fill(-1)
  const nextOf = new Int32Array(edges.length / 2)
  for (let edge = 0; edge < nextOf.length; edge++) {
    const to = edges[2 * edge + 1] ?? 0
    nextOf[edge] = first[to] ?? -1
    first[to] = edge
  }
  const canRest = new Uint8Array(states)
  const open = [...resting]
  for (const id of open) canRest[id] = 1
  let count = open.length
  for (let id = open.pop(); id !== undefined; id = open.pop()) {
    for (let edge = first[id] ?? -1; edge >= 0; edge = nextOf[edge] ?? -1) {
      const from = edges[2 * edge] ?? 0
      if (canRest[from] === 1) continue
      canRest[from] = 1
      count++
      open.push(from)
    }
  }
  return states - count
}
