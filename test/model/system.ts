// All that can happen next: what workers, Redis and consumers do by themselves, and what goes wrong around them.
import { missingOutcome, wrongOutcome } from './entries.ts'
import { consumerSteps } from './consumer.ts'
import { producerSteps, showElements } from './producer.ts'
import * as queue from './queue.ts'
import type { Rules } from './rules.ts'
import { spend, type Step } from './step.ts'
import type { Dataset, State } from './state.ts'
import { none } from '@gearbox/protocol/sequences.ts'

export function stepsFrom (state: State, rules: Rules): Step[] {
  const steps: Step[] = []
  const add = (name: () => string, take: () => State): void => { steps.push({ name, fault: false, take }) }
  const addFault = (name: () => string, take: () => State): void => { steps.push({ name, fault: true, take }) }
  state.workers.forEach((_, producer) => producerSteps(state, rules, producer, add, addFault))
  state.consumers.forEach((_, index) => consumerSteps(state, rules, index, add, addFault))

  state.late.forEach((late, index) => {
    const what = late.name === 'push' || late.name === 'acknowledge' ? ` of ${showElements(late.elements)}` : ''
    addFault(() => `redis: LATE ${late.name}${what}`,
      () => queue.carryOut({ ...state, late: state.late.filter((_, other) => other !== index) }, rules, late))
  })
  const { data, saved } = state.redis
  const empty: Dataset = { batches: [], generation: 0, owner: 0, stored: state.workers.map(() => none) }
  const flushed = spend(state, 'flushes')
  if (flushed !== undefined) addFault(() => 'redis: FLUSHALL, no connection is closed', () => lose(flushed, empty))
  const removed = data.batches.length > 0 ? spend(state, 'removals') : undefined
  if (removed !== undefined) {
    addFault(() => 'redis: somebody DELETES the list', () => lose(removed, { ...data, batches: [] }))
    if (data.batches.length > 1) {
      addFault(() => `redis: somebody TAKES THE FIRST, ${showElements(data.batches.slice(0, 1))}`,
        () => lose(removed, { ...data, batches: data.batches.slice(1) }))
      addFault(() => `redis: somebody TAKES THE LAST, ${showElements(data.batches.slice(-1))}`,
        () => lose(removed, { ...data, batches: data.batches.slice(0, -1) }))
    }
  }
  const swapped = state.redis.saved.generation === 0 ? undefined : spend(state, 'swaps')
  if (swapped !== undefined) {
    addFault(() => `redis: becomes a replica of an OLDER COPY and a primary again: ${showData(saved)}`, () => {
      const lost = lose(swapped, saved)
      return { ...lost, redis: { ...lost.redis, replicationId: lost.redis.replicationId + 1 } }
    })
  }
  const toSave = spend(state, 'saves')
  if (toSave !== undefined) {
    addFault(() => `redis: its disk has now ${showData(data)}`,
      () => ({ ...toSave, redis: { ...toSave.redis, saved: data } }))
  }
  const stopped = spend(state, 'restarts')
  if (stopped !== undefined) {
    addFault(() => 'redis: RESTARTS with all it had', () => restart(stopped, data))
    addFault(() => 'redis: RESTARTS EMPTY', () => restart(stopped, empty))
    if (state.redis.saved.generation !== 0) {
      addFault(() => `redis: RESTARTS with what its disk had: ${showData(saved)}`, () => restart(stopped, saved))
    }
  }
  const failed = spend(state, 'failovers')
  if (failed !== undefined) {
    addFault(() => `redis: FAILS OVER to its replica: ${showData(saved)}`, () => failOver(failed))
  }
  return steps
}

function showData ({ batches, generation }: Dataset): string {
  return `${batches.length === 0 ? 'no batch' : showElements(batches)}, generation ${generation}`
}

function lose (state: State, data: Dataset): State {
  const kept = new Set(data.batches.flatMap(({ increments }) => increments))
  const gone = new Set(state.redis.data.batches.flatMap(({ increments }) => increments)
    .filter((increment) => !kept.has(increment)))
  return {
    ...state,
    redis: { ...state.redis, data },
    lostByRedis: state.lostByRedis.map((before, increment) => before || gone.has(increment)),
  }
}

function restart (state: State, data: Dataset): State {
  const { redis } = state
  return disconnect({
    ...lose(state, data),
    redis: { ...redis, data, saved: data, runId: redis.runId + 1, replicationId: redis.replicationId + 1 },
  })
}

/** Two servers take turns, each with a run_id for as long as it runs. */
function failOver (state: State): State {
  const { redis } = state
  const { saved } = redis
  return disconnect({
    ...lose(state, saved),
    redis: { ...redis, data: saved, runId: redis.runId === 1 ? 2 : 1, replicationId: redis.replicationId + 1 },
  })
}

/** Every connection dies, and with it what was on its way. */
function disconnect (state: State): State {
  const workers = state.workers.map((worker) =>
    worker.alive ? { ...worker, push: undefined, replay: undefined, queue: { ...worker.queue, runId: 0 } } : worker)
  return { ...state, workers, late: [] }
}

/** What must never be, wherever the system is. */
export function wrongAnywhere (state: State): string | undefined {
  const doubled = state.database.counts.findIndex((count) => count > 1)
  if (doubled >= 0) return `increment ${doubled} is counted ${state.database.counts[doubled]} times`
  if (state.refused) return 'a consumer was refused the database that belongs to the queue'
  return wrongOutcome(state)
}

/** What must not be at rest: when nothing moves by itself any more. */
export function wrongAtRest (state: State, ownerOf: readonly number[]): string | undefined {
  for (const [increment, acknowledged] of state.acknowledged.entries()) {
    const counted = state.database.counts[increment] === 1
    const worker = state.workers[ownerOf[increment] ?? -1]
    // Of a dead worker, only what Redis lost may be missing; of a living one nothing, whether it was acknowledged or
    // not.
    if (worker?.alive === true && !counted) {
      return `increment ${increment} is lost (${acknowledged ? 'acknowledged' : 'not acknowledged'}), and its ` +
        'worker lives'
    }
    if (worker?.alive === false && acknowledged && !counted && state.lostByRedis[increment] !== true) {
      return `acknowledged increment ${increment} is lost, and Redis did not lose it`
    }
  }
  const unstored = state.workers.findIndex(({ window }) => window.length > 0)
  if (unstored >= 0) {
    const seq = state.workers[unstored]?.window[0]?.element.seq
    return `worker ${unstored} never receives a report that batch ${seq} is stored`
  }
  const unsent = state.workers.findIndex((worker) => worker.unsent.length > 0)
  if (unsent >= 0) return `the unsent file of worker ${unsent} is left`
  if (state.redis.data.batches.length > 0) return 'batches are left in the queue'
  return missingOutcome(state)
}
