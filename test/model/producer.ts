// A web worker: apps/web/src/deliver/flusher.ts, outbox.ts and window.ts over
// packages/queue/src/redis/producer-queue.ts. accept → flush (drain, encode) → deliver (catch up, push) → queued;
// next to it receive reports, poll and, after a loss, replay.
import { has, type Sequences } from '@gearbox/protocol/sequences.ts'
import { addRequest, receiveOutcomes, showOutcomes } from './entries.ts'
import * as queue from './queue.ts'
import type { Rules } from './rules.ts'
import { spend, type Add } from './step.ts'
import {
  at, lostWorker, same, sameElement, set, type Element, type Incarnation, type Late, type State, type Unstored,
  type Worker,
} from './state.ts'

/** Batches that one replaying push takes: one, so that anything can come between two of them. */
const groupBatchesMax = 1

/** Increments that one batch takes: a larger drain becomes several. */
const batchIncrementsMax = 2

function withWorker (state: State, producer: number, change: Partial<Worker>): State {
  return { ...state, workers: set(state.workers, producer, { ...at(state.workers, producer), ...change }) }
}

export function producerSteps (state: State, rules: Rules, producer: number, add: Add, addFault: Add): void {
  const worker = at(state.workers, producer)
  if (!worker.alive) {
    addUnsent(state, rules, producer, add)
    return
  }
  const connected = worker.queue.runId !== 0
  const who = `worker ${producer}`

  if (worker.coming.length > 0) {
    add(() => `${who}: accepts increment ${worker.coming[0]}`,
      () => withWorker(state, producer,
        { coming: worker.coming.slice(1), accumulator: [...worker.accumulator, ...worker.coming.slice(0, 1)] }))
  }
  if (worker.drain === undefined && worker.accumulator.length > 0) {
    add(() => `${who}: flush drains ${worker.accumulator.join(', ')} and encodes batch ${worker.seq + 1}`,
      () => flush(state, producer))
  }
  if (worker.report !== undefined || worker.news.length > 0) {
    const news = worker.news.length === 0 ? '' : `, and that ${showOutcomes(worker.news)}`
    add(() => `${who}: receives the report that ${show(worker.report)} is stored${news}`, () => {
      const told = withWorker(state, producer, { ...receiveOutcomes(worker), report: undefined })
      return dropStored(told, rules, producer, worker.report)
    })
  }
  if (connected) addRequest(state, rules, producer, add, addFault)
  if (!connected) add(() => `${who}: connects and identifies the queue`, () => identify(state, rules, producer))
  if (connected && worker.window.length > 0) {
    add(() => `${who}: polls: ${show(at(state.redis.data.stored, producer))} is stored, generation ` +
      `${state.redis.data.generation}`, () => poll(state, rules, producer))
  }
  const slow = connected && state.redis.data.batches.length === 0 &&
    worker.window.some(({ element, pushed }) => pushed && isApplied(state, element))
    ? spend(state, 'slowReports')
    : undefined
  if (slow !== undefined) {
    addFault(() => `${who}: polls, and finds no REPORT of what is stored`, () => poll(slow, rules, producer, true))
  }
  if (worker.push === undefined) {
    if (connected) addDelivery(state, rules, producer, add)
  } else {
    addPush(state, rules, producer, worker.push, add, addFault)
  }
  const stopped = spend(state, 'stops')
  if (stopped !== undefined) {
    addFault(() => `${who} is STOPPED`, () => stop(stopped, rules, producer))
    const late = spend(stopped, 'late')
    if (late !== undefined && worker.push !== undefined && worker.push.reply === undefined) {
      const command = lateOf(worker.push)
      addFault(() => `${who} is STOPPED; its push may still arrive`,
        () => stop({ ...late, late: [...late.late, command] }, rules, producer))
    }
  }
  const crashed = spend(state, 'workerCrashes')
  if (crashed !== undefined) {
    const dead = (from: State): State => ({ ...from, workers: set(from.workers, producer, lostWorker) })
    addFault(() => `${who} CRASHES`, () => dead(crashed))
    const late = spend(crashed, 'late')
    if (late !== undefined && worker.push !== undefined && worker.push.reply === undefined) {
      const command = lateOf(worker.push)
      addFault(() => `${who} CRASHES; its push may still arrive`,
        () => dead({ ...late, late: [...late.late, command] }))
    }
  }
}

/** The unsent file of a worker that was stopped, which a later one pushes: apps/web/src/deliver/spool.ts. */
function addUnsent (state: State, rules: Rules, producer: number, add: Add): void {
  const { unsent, unsentTo } = at(state.workers, producer)
  if (unsent.length === 0) return
  const stored = at(state.redis.data.stored, producer)
  const left = unsent.filter(({ seq }) => !has(stored, seq))
  if (left.length < unsent.length) {
    add(() => `a later worker: sees that ${show(stored)} is stored`,
      () => withWorker(state, producer, { unsent: left }))
  }
  const adopted = queue.adoptGeneration(state)
  const to = { runId: runIdOf(state, rules), generation: adopted.redis.data.generation }
  if (same(unsentTo, to) && state.redis.data.batches.length > 0) return
  add(() => `a later worker: pushes ${showElements(unsent)} of the unsent file`, () =>
    withWorker(queue.push(adopted, rules, unsent, to.generation).state, producer, { unsentTo: to }))
}

/**
 * Flusher.finish and Outbox.unaccounted: what is neither in the queue nor reported as stored goes into the file. Then
 * it is gone.
 */
function stop (state: State, rules: Rules, producer: number): State {
  const worker = at(state.workers, producer)
  const reached = worker.queue.runId !== 0 && !needsReplay(worker)
  const stored = at(state.redis.data.stored, producer)
  const isAccountedFor = ({ element, pushed }: Unstored): boolean => reached && pushed && (
    rules.stop === 'what was not pushed' || has(stored, element.seq) ||
      state.redis.data.batches.some((waiting) => sameElement(waiting, element)))
  const rest = [...worker.drain ?? [], ...worker.accumulator]
  const unsent = [
    ...worker.window.filter((batch) => !isAccountedFor(batch)).map(({ element }) => element),
    ...rest.length === 0 ? [] : [{ producer, seq: worker.seq + 1, increments: rest }],
  ]
  const accepted = [...worker.window.flatMap(({ element }) => element.increments), ...rest]
  return {
    ...state,
    workers: set(state.workers, producer, { ...lostWorker, unsent }),
    // A stop promises all of it, and from here on only what Redis loses later is an excuse.
    acknowledged: state.acknowledged.map((before, increment) => before || accepted.includes(increment)),
    lostByRedis: state.lostByRedis.map((before, increment) => before && !accepted.includes(increment)),
  }
}

/** What the outbox does next on its own account: catch up, replay, push, or settle. */
function addDelivery (state: State, rules: Rules, producer: number, add: Add): void {
  const worker = at(state.workers, producer)
  const who = `worker ${producer}`
  const { replay, delivering } = worker
  if (replay !== undefined) {
    const [seq] = replay.rest
    if (!same(worker.queue, replay.to)) {
      add(() => `${who}: the queue moved, the replay begins again`,
        () => withWorker(state, producer, { replay: undefined }))
    } else if (seq !== undefined) {
      add(() => `${who}: replays batch ${replay.rest.slice(0, groupBatchesMax).join(', ')}`,
        () => pushGroup(state, producer, replay))
    } else {
      add(() => `${who}: the replay is done`,
        () => withWorker(state, producer, { replay: undefined, incarnation: replay.to }))
    }
    return
  }
  const needsPush = delivering !== undefined &&
    worker.window.some(({ element, pushed }) => element.seq === delivering && !pushed)
  if (delivering !== undefined && !needsPush) {
    add(() => `${who}: batch ${delivering} is delivered`, () => delivered(state, producer))
  } else if (!same(worker.queue, worker.incarnation) && (needsPush || needsReplay(worker))) {
    add(() => `${who}: catches up with run ${worker.queue.runId}, generation ${worker.queue.generation}`,
      () => catchUp(state, rules, producer))
  } else if (needsPush) {
    add(() => `${who}: pushes batch ${delivering}`,
      () => send(state, producer,
        worker.window.filter(({ element }) => element.seq === delivering).map(({ element }) => element)))
  } else if (same(worker.queue, worker.incarnation)) {
    const lost = worker.window.filter((batch) => batch.lost).slice(0, groupBatchesMax).map(({ element }) => element)
    if (lost.length > 0) {
      add(() => `${who}: pushes lost ${showElements(lost)} again`, () => send(state, producer, lost, true))
    }
  }
}

/** A push on its way: Redis runs the script, the reply comes; or the connection dies. */
function addPush (state: State, rules: Rules, producer: number, push: Worker['push'] & {}, add: Add,
  addFault: Add): void {
  const who = `worker ${producer}`
  if (push.reply === undefined) {
    add(() => `redis: push of ${showElements(push.elements)} for generation ${push.generation} (has ` +
      `${state.redis.data.generation})`, () => {
      const { state: after, reply } = queue.push(state, rules, push.elements, push.generation)
      return withWorker(after, producer, { push: { ...push, reply } })
    })
  } else {
    add(() => `${who}: the reply is "${push.reply}"`, () => replied(state, rules, producer, push))
  }
  const failed = spend(state, 'timeouts')
  if (failed !== undefined) {
    addFault(() => `${who}: TIMEOUT, the push's ${push.reply === undefined ? 'request' : 'reply'} is LOST`,
      () => pushFailed(failed, rules, producer))
  }
  const late = push.reply === undefined ? spend(state, 'late') : undefined
  if (late !== undefined) {
    addFault(() => `${who}: TIMEOUT, the push may still ARRIVE LATE`,
      () => pushFailed({ ...late, late: [...late.late, lateOf(push)] }, rules, producer))
  }
}

function lateOf ({ elements, generation }: Worker['push'] & {}): Late {
  return { name: 'push', elements, generation }
}

/** Flusher.#flush: drains the accumulator; what comes from now on waits for the next flush. */
function flush (state: State, producer: number): State {
  const { accumulator } = at(state.workers, producer)
  return encode(withWorker(state, producer, { accumulator: [], drain: accumulator, group: accumulator }), producer)
}

/** BatchEncoder.encode and Outbox.deliver: from here on the batch is frozen, in the window, and delivered. */
function encode (state: State, producer: number): State {
  const { drain = [], seq: before, window, awaited } = at(state.workers, producer)
  const seq = before + 1
  const element: Element = { producer, seq, increments: drain.slice(0, batchIncrementsMax) }
  return withWorker(state, producer,
    {
      seq,
      drain: drain.slice(batchIncrementsMax),
      window: [...window, { element, pushed: false, lost: false, refilled: false }],
      delivering: seq,
      awaited: state.hasEntries ? [...awaited, seq] : awaited,
    })
}

/** After Outbox.deliver: the drain's next batch, or else its `queued` replies. */
function delivered (state: State, producer: number): State {
  const { drain = [], group } = at(state.workers, producer)
  if (drain.length > 0) return encode(state, producer)
  const settled = withWorker(state, producer, { delivering: undefined, drain: undefined, group: [] })
  return {
    ...settled,
    acknowledged: settled.acknowledged.map((before, increment) => before || group.includes(increment)),
  }
}

/** Outbox.#needsReplay and Window.hasPushed */
function needsReplay ({ queue, incarnation, window }: Worker): boolean {
  return queue.runId !== 0 && !same(queue, incarnation) && window[0]?.pushed === true
}

/** Outbox.#catchUp up to its first push. */
function catchUp (state: State, rules: Rules, producer: number): State {
  const worker = at(state.workers, producer)
  const to = worker.queue
  if (!needsReplay(worker)) return withWorker(state, producer, { incarnation: to })
  const after = poll(state, rules, producer)
  return withWorker(after, producer,
    { replay: { to, rest: at(after.workers, producer).window.map(({ element }) => element.seq) } })
}

/** One group of pushInGroups in Outbox.#catchUp; what became known as stored since is not pushed. */
function pushGroup (state: State, producer: number, replay: { to: Incarnation, rest: readonly number[] }): State {
  const { window } = at(state.workers, producer)
  const seqs = replay.rest.slice(0, groupBatchesMax)
  const group = window.filter(({ element }) => seqs.includes(element.seq)).map(({ element }) => element)
  const after = withWorker(state, producer, { replay: { to: replay.to, rest: replay.rest.slice(groupBatchesMax) } })
  return group.length === 0 ? after : send(after, producer, group)
}

function send (state: State, producer: number, elements: readonly Element[], refills = false): State {
  const { queue } = at(state.workers, producer)
  return withWorker(state, producer, { push: { elements, generation: queue.generation, refills, reply: undefined } })
}

function replied (state: State, rules: Rules, producer: number, {
  elements,
  refills,
  reply,
}: Worker['push'] & {}): State {
  const after = withWorker(state, producer, { push: undefined })
  if (reply === 'moved') return withWorker(identify(after, rules, producer), producer, { replay: undefined })
  const { window } = at(after.workers, producer)
  return withWorker(after, producer, { window: markPushed(window, rules, elements, refills) })
}

/** Window.markPushed and markRefilled */
function markPushed (window: readonly Unstored[], rules: Rules, elements: readonly Element[],
  refills: boolean): Unstored[] {
  const seqs = elements.map(({ seq }) => seq)
  if (rules.window === 'none') return window.filter(({ element }) => !seqs.includes(element.seq))
  return window.map((batch) => seqs.includes(batch.element.seq)
    ? { ...batch, pushed: true, lost: false, refilled: batch.refilled || refills }
    : batch)
}

/**
 * The connection is dead: whether the push was carried out is not known. It is sent again, and a replay from its start.
 */
function pushFailed (state: State, rules: Rules, producer: number): State {
  const worker = at(state.workers, producer)
  const after = withWorker(state, producer,
    { push: undefined, replay: undefined, queue: { ...worker.queue, runId: 0 } })
  const unpushed = worker.window.find(({ element, pushed }) => element.seq === worker.delivering && !pushed)
  if (unpushed === undefined || rules.retry === 'same bytes') return after
  const others = worker.window.filter((batch) => batch !== unpushed)
  if (rules.retry === 'new sequence') {
    const seq = worker.seq + 1
    return withWorker(after, producer,
      { seq, delivering: seq, window: [...others, { ...unpushed, element: { ...unpushed.element, seq } }] })
  }
  const increments = [...unpushed.element.increments, ...worker.accumulator]
  return withWorker(after, producer, {
    window: [...others, { ...unpushed, element: { ...unpushed.element, increments } }],
    group: [...worker.group, ...worker.accumulator],
    accumulator: [],
  })
}

/** RedisProducerQueue.#identify and #adoptGeneration */
function identify (state: State, rules: Rules, producer: number): State {
  const runId = runIdOf(state, rules)
  if (rules.generation === 'ignored') return withWorker(state, producer, { queue: { runId, generation: 1 } })
  const after = queue.adoptGeneration(state)
  return withWorker(after, producer, { queue: { runId, generation: after.redis.data.generation } })
}

/** readServer and parseRunId */
function runIdOf ({ redis }: State, rules: Rules): number {
  return rules.runId === 'ignored' ? 1 : rules.runId === 'read' ? redis.runId : redis.runId * 100 + redis.replicationId
}

/** Outbox.pollProgress and RedisProducerQueue.pollProgress */
function poll (state: State, rules: Rules, producer: number, slowReport = false): State {
  const stored = at(state.redis.data.stored, producer)
  const noted = noteLength(dropStored(state, rules, producer, stored), rules, producer, stored, slowReport)
  const { queue } = at(state.workers, producer)
  const changed = state.redis.data.generation !== queue.generation ||
    (rules.polled === 'incarnation' && runIdOf(state, rules) !== queue.runId)
  return rules.generation === 'ignored' || !changed ? noted : identify(noted, rules, producer)
}

/** Whether the database has it, whatever was reported. */
function isApplied (state: State, { producer, seq }: Element): boolean {
  return has(at(state.database.producers, producer), seq)
}

/**
 * Window.noteLength. There is no time here: one poll is enough, any time may be 30 s, and only a fault makes a report
 * later than that.
 */
function noteLength (state: State, rules: Rules, producer: number, stored: Sequences, slowReport: boolean): State {
  if (rules.tails === 'ignored' || state.redis.data.batches.length > 0) return state
  const { window } = at(state.workers, producer)
  const isLost = ({ element, pushed, refilled }: Unstored): boolean =>
    pushed && (!refilled || rules.again !== 'never') &&
    (slowReport || !isApplied(state, element)) &&
      (rules.tails !== 'only above the highest' || element.seq > stored.high)
  return withWorker(state, producer,
    { window: window.map((batch) => isLost(batch) ? { ...batch, lost: true } : batch) })
}

/** Window.dropStored */
function dropStored (state: State, rules: Rules, producer: number, stored: Sequences | undefined): State {
  if (stored === undefined) return state
  const { window } = at(state.workers, producer)
  const isStored = (seq: number): boolean => rules.drop === 'exactly' ? has(stored, seq) : seq <= stored.high
  const isLost = ({ element, pushed, refilled }: Unstored): boolean =>
    rules.gaps === 'refilled' && pushed && !refilled && element.seq < stored.high
  const kept = window.filter(({ element }) => !isStored(element.seq))
  return withWorker(state, producer, { window: kept.map((batch) => isLost(batch) ? { ...batch, lost: true } : batch) })
}

export function show (stored: Sequences | undefined): string {
  if (stored === undefined || stored.high === 0) return 'nothing'
  return `up to ${stored.high}${stored.gaps.map(([from, to]) => ` but ${from}–${to}`).join('')}`
}

export function showElements (elements: readonly Element[]): string {
  return elements.map(({ producer, seq, increments }) => `batch ${producer}.${seq} (${increments.join(', ')})`)
    .join(' and ')
}
