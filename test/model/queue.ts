// The scripts of packages/queue/src as Redis runs them: push.lua, take.lua, acknowledge.lua, bind.lua; and the report
// of progress. Each is one step that nothing can come between.
import { isSubset, type Sequences } from '@gearbox/protocol/sequences.ts'
import type { Rules } from './rules.ts'
import { sameElement, type Dataset, type Element, type Late, type Outcome, type State } from './state.ts'

/** Elements that one run takes at most: fewer than the list can have, so that runs end in the middle of it. */
export const runElementsMax = 2

export function withData (state: State, data: Partial<Dataset>): State {
  return { ...state, redis: { ...state.redis, data: { ...state.redis.data, ...data } } }
}

/** push.lua */
export function push (state: State, rules: Rules, elements: readonly Element[], generation: number): {
  state: State
  reply: 'pushed' | 'moved'
} {
  const { data } = state.redis
  if (rules.generation === 'compared' && data.generation !== generation) return { state, reply: 'moved' }
  return { state: withData(state, { batches: [...data.batches, ...elements] }), reply: 'pushed' }
}

/** take.lua */
export function take (state: State, rules: Rules): { state: State, run: readonly Element[] } {
  const { batches } = state.redis.data
  const run = batches.slice(0, runElementsMax)
  return { state: rules.take === 'pops' ? withData(state, { batches: batches.slice(run.length) }) : state, run }
}

/** acknowledge.lua */
export function acknowledge (state: State, rules: Rules, elements: readonly Element[], owner: number): State {
  if (rules.take === 'pops') return state
  const { batches, owner: found } = state.redis.data
  if (rules.epoch === 'checked' && found !== owner) return state
  let handled = 0
  if (rules.acknowledge === 'trims n') {
    handled = elements.length
  } else {
    for (const element of elements) {
      const head = batches[handled]
      if (head === undefined || !sameElement(head, element)) break
      handled++
    }
  }
  return withData(state, { batches: batches.slice(handled) })
}

/** bind.lua */
export function bind (state: State, expected: number, owner: number): { state: State, bound: boolean } {
  if (state.redis.data.owner !== expected) return { state, bound: false }
  return { state: withData(state, { owner }), bound: true }
}

/** HSET, and PUBLISH; `arrives` is whether the workers receive the message. */
export function reportProgress (
  state: State, stored: ReadonlyArray<Sequences | undefined>, news: readonly Outcome[], arrives: boolean
): State {
  const kept = withData(state,
    { stored: state.redis.data.stored.map((before, producer) => stored[producer] ?? before) })
  if (!arrives) return kept
  return {
    ...kept,
    workers: kept.workers.map((worker, producer) => {
      const report = stored[producer]
      // Reports arrive in their order, so that the older of two adds nothing to the newer.
      const isNews = report !== undefined && !(worker.report !== undefined && isSubset(report, worker.report))
      if (!worker.alive) return worker
      const outcomes = news.filter((outcome) => outcome.producer === producer &&
        worker.news.every(({ seq }) => seq !== outcome.seq))
      const told = outcomes.length === 0 ? worker : { ...worker, news: [...worker.news, ...outcomes] }
      return isNews ? { ...told, report } : told
    }),
  }
}

/** GET, SET NX, GET: a generation that is there is never overwritten. */
export function adoptGeneration (state: State): State {
  const { redis } = state
  if (redis.data.generation !== 0) return state
  const generations = redis.generations + 1
  return { ...state, redis: { ...redis, generations, data: { ...redis.data, generation: generations } } }
}

/** What a dead connection left is carried out after all. Nobody waits for the reply. */
export function carryOut (state: State, rules: Rules, late: Late): State {
  switch (late.name) {
    case 'push': return push(state, rules, late.elements, late.generation).state
    case 'acknowledge': return acknowledge(state, rules, late.elements, late.owner)
    case 'bind': return bind(state, late.expected, late.owner).state
    case 'report progress': return reportProgress(state, late.stored, late.news, true)
  }
}
