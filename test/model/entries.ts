// Entries of plugins and their outcomes, in the configurations that have them: every batch has one entry, and its
// outcome is the number that the database gives it, 1 for the first of all. apps/consumer/src/store applies entries and
// keeps outcomes; apps/web/src asks again for those that it lacks.
import type { Rules } from './rules.ts'
import { spend, type Add } from './step.ts'
import { at, set, type Consumer, type Database, type Element, type Outcome, type State, type Worker } from './state.ts'

/** Outcomes as a trace shows them. */
export function showOutcomes (outcomes: readonly Outcome[]): string {
  return outcomes.map(({ producer, seq, number }) => `${producer}.${seq} is number ${number}`).join(', ')
}

/** Applies a batch's entry: one that was applied before has its outcome already. */
export function applyEntry (database: Database, { producer, seq }: Element, rules: Rules, before: boolean): Database {
  if (before && rules.duplicates === 'not asked again') return database
  const number = database.entries.length + 1
  const others = database.outcomes.filter((outcome) => !isOf(outcome, producer, seq))
  return {
    ...database,
    entries: [...database.entries, { producer, seq, number }],
    outcomes: rules.outcomes === 'kept in memory' ? others : [...others, { producer, seq, number }],
  }
}

/** What a commit has to report: the outcomes of its batches, whether they were new or not. */
export function outcomesOf (database: Database, taken: readonly Element[], rules: Rules): Outcome[] {
  const kept = rules.outcomes === 'kept in memory' ? database.entries : database.outcomes
  return kept.filter(({ producer, seq }) =>
    taken.some((element) => element.producer === producer && element.seq === seq))
}

/** A worker receives outcomes: those that it waits for. */
export function receiveOutcomes (worker: Worker): Worker {
  const settled = worker.news.filter(({ seq }) => worker.awaited.includes(seq))
  return {
    ...worker,
    news: [],
    awaited: worker.awaited.filter((seq) => settled.every((outcome) => outcome.seq !== seq)),
    received: [...worker.received, ...settled],
    unconfirmed: [...worker.unconfirmed, ...settled.map(({ seq }) => seq)],
  }
}

/** Sequences that are known to be stored and whose outcomes the worker lacks. */
function missingOf ({ awaited, window }: Worker): number[] {
  return awaited.filter((seq) => window.every(({ element }) => element.seq !== seq))
}

/** A worker's message about outcomes: what it has received, and what it misses. It is published, so it may be lost. */
export function addRequest (state: State, rules: Rules, producer: number, add: Add, addFault: Add): void {
  const worker = at(state.workers, producer)
  const missing = rules.missing === 'asked for' ? missingOf(worker) : []
  const { unconfirmed } = worker
  if (missing.length === 0 && unconfirmed.length === 0) return
  const what = `worker ${producer}: reports outcomes of ${unconfirmed.join(', ') || 'none'} as received, asks for ` +
    `${missing.join(', ') || 'none'}`
  const sent = (from: State): State =>
    ({ ...from, workers: set(from.workers, producer, { ...at(from.workers, producer), unconfirmed: [] }) })
  add(() => what, () => {
    const after = sent(state)
    const request = { producer, received: unconfirmed, missing }
    return {
      ...after,
      consumers: after.consumers.map((consumer) => isListening(consumer)
        ? { ...consumer, requests: [...consumer.requests.filter((other) => other.producer !== producer), request] }
        : consumer),
    }
  })
  const lost = spend(state, 'timeouts')
  if (lost !== undefined) addFault(() => `${what}, and the message is LOST`, () => sent(lost))
}

function isListening ({ phase }: Consumer): boolean {
  return !['down', 'identity read', 'checked', 'raised'].includes(phase)
}

/** The consumer handles what workers have sent: deletes what they have, and reports what they lack. */
export function addHandling (state: State, index: number, add: Add): void {
  const consumer = at(state.consumers, index)
  const [request, ...others] = consumer.requests
  if (request === undefined) return
  const { producer, received, missing } = request
  add(() => `consumer ${index}: handles the request of worker ${producer}`, () => {
    const { outcomes, producers } = state.database
    const found = outcomes.filter((outcome) => missing.some((seq) => isOf(outcome, producer, seq)))
    const news = consumer.news.filter((outcome) => found.every((other) => !isSame(outcome, other)))
    return {
      ...state,
      database: {
        ...state.database,
        outcomes: outcomes.filter((outcome) => received.every((seq) => !isOf(outcome, producer, seq))),
      },
      consumers: set(state.consumers, index, {
        ...consumer,
        requests: others,
        news: [...news, ...found],
        unreported: found.length === 0 ? consumer.unreported : set(consumer.unreported, producer, producers[producer]),
      }),
    }
  })
}

/** The outcomes of a report, put into the database's state if a broken rule deletes what was only reported. */
export function afterReport (state: State, rules: Rules, news: readonly Outcome[]): State {
  if (rules.outcomes !== 'kept until reported') return state
  const outcomes = state.database.outcomes.filter((outcome) => news.every((other) => !isSame(outcome, other)))
  return { ...state, database: { ...state.database, outcomes } }
}

/** What must never be: an entry that was applied twice, or an outcome that is not its entry's. */
export function wrongOutcome ({ database, workers }: State): string | undefined {
  for (const [i, { producer, seq }] of database.entries.entries()) {
    const first = database.entries.findIndex((entry) => isOf(entry, producer, seq))
    if (first < i) return `the entry of batch ${producer}.${seq} was applied twice, as ${first + 1} and ${i + 1}`
  }
  for (const { received } of workers) {
    const wrong = received.find((outcome) => database.entries.every((entry) => !isSame(entry, outcome)))
    if (wrong !== undefined) return `an outcome is not its entry's: ${showOutcomes([wrong])}`
  }
  return undefined
}

/** What must not be at rest: a living worker that still waits for an outcome. */
export function missingOutcome ({ workers }: State): string | undefined {
  const waiting = workers.findIndex(({ alive, awaited }) => alive && awaited.length > 0)
  return waiting < 0 ? undefined : `worker ${waiting} never gets the outcome of ${workers[waiting]!.awaited.join(', ')}`
}

function isOf (outcome: Outcome, producer: number, seq: number): boolean {
  return outcome.producer === producer && outcome.seq === seq
}

function isSame (one: Outcome, other: Outcome): boolean {
  return isOf(one, other.producer, other.seq) && one.number === other.number
}
