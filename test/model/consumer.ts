// The consumer: apps/consumer/src/consumer.ts, store/ and ownership.ts over packages/queue/src/redis/consumer-queue.ts.
// start (check the binding, claim ownership) → take → apply → commit → acknowledge → report → take → …
import { has, include, isSubset } from '@gearbox/protocol/sequences.ts'
import { addHandling, afterReport, applyEntry, outcomesOf, showOutcomes } from './entries.ts'
import { show, showElements } from './producer.ts'
import * as queue from './queue.ts'
import type { Rules } from './rules.ts'
import { spend, type Add } from './step.ts'
import { at, idle, set, type Consumer, type Database, type Late, type State } from './state.ts'

function withConsumer (state: State, index: number, change: Partial<Consumer>): State {
  return { ...state, consumers: set(state.consumers, index, { ...at(state.consumers, index), ...change }) }
}

/** Dead, refused or superseded: it knows nothing, and its open transaction is rolled back. */
function leave (state: State, index: number): State {
  return {
    ...state,
    consumers: set(state.consumers, index, { ...idle, unreported: state.workers.map(() => undefined) }),
  }
}

export function consumerSteps (state: State, rules: Rules, index: number, add: Add, addFault: Add): void {
  const consumer = at(state.consumers, index)
  const who = `consumer ${index}`
  const nothingToTell = consumer.unreported.every((stored) => stored === undefined)

  switch (consumer.phase) {
    case 'down': {
      if (state.consumers.every(({ phase }) => phase === 'down')) {
        add(() => `${who}: starts, reads ${firstRead(rules)}`, () => checkBinding(state, rules, index))
      }
      const second = spend(state, 'secondConsumers')
      if (second !== undefined && state.consumers.some(({ phase }) => phase !== 'down')) {
        addFault(() => `${who}: starts BESIDE ANOTHER, reads ${firstRead(rules)}`,
          () => checkBinding(second, rules, index))
      }
      return
    }
    case 'identity read':
      add(() => `${who}: reads the other and compares (queue's owner ${state.redis.data.owner}, database's epoch ` +
        `${state.database.epoch})`, () => compareBinding(state, index))
      break
    case 'checked':
      if (!isLocked(state, index)) {
        add(() => `${who}: raises the epoch to ${state.database.epoch + 1}`, () => raiseEpoch(state, index))
      }
      break
    case 'raised':
      add(() => `${who}: binds the queue, ${consumer.found} → ${consumer.epoch}`,
        () => claimOwnership(state, rules, index))
      addTimeouts(state, index, { name: 'bind', expected: consumer.found, owner: consumer.epoch },
        (from) => queue.bind(from, consumer.found, consumer.epoch).state, (from) => leave(from, index), addFault)
      break
    case 'running':
      if (rules.epoch === 'checked' && state.redis.data.owner !== consumer.epoch) {
        add(() => `${who}: finds the queue's owner to be ${state.redis.data.owner}`, () => stayOwner(state, index))
      } else if (state.redis.data.batches.length > 0) {
        add(() => `${who}: takes ${showElements(queue.take(state, rules).run)}`, () => take(state, rules, index))
      } else if (!nothingToTell) {
        addReport(state, rules, index, add, addFault)
      }
      addHandling(state, index, add)
      break
    case 'taken':
      if (!isLocked(state, index)) {
        add(() => `${who}: applies ${showElements(consumer.taken)}`, () => apply(state, rules, index))
      }
      break
    case 'applied':
      add(() => `${who}: commits: ${consumer.transaction?.producers.map(show).join(', ')}`,
        () => commit(state, rules, index))
      break
    case 'committed':
      add(() => `${who}: acknowledges ${showElements(consumer.taken)}`, () => acknowledge(state, rules, index))
      addTimeouts(state, index, { name: 'acknowledge', elements: consumer.taken, owner: consumer.epoch },
        (from) => queue.acknowledge(from, rules, consumer.taken, consumer.epoch),
        (from) => withConsumer(from, index, { phase: 'running', taken: [] }), addFault)
      break
    case 'acknowledged':
      addReport(state, rules, index, add, addFault)
      break
  }
  const crashed = spend(state, 'consumerCrashes')
  if (crashed !== undefined) addFault(() => `${who} CRASHES (${consumer.phase})`, () => leave(crashed, index))
}

/**
 * A command's request is lost, or its reply is, or it is carried out later. To the consumer all are the same: it tries
 * again.
 */
function addTimeouts (state: State, index: number, command: Late, carryOut: (from: State) => State,
  failed: (from: State) => State, addFault: Add): void {
  const who = `consumer ${index}`
  const timedOut = spend(state, 'timeouts')
  if (timedOut !== undefined) {
    addFault(() => `${who}: TIMEOUT, the request to ${command.name} is LOST`, () => failed(timedOut))
    addFault(() => `${who}: TIMEOUT, ${command.name} is done and the reply is LOST`, () => failed(carryOut(timedOut)))
  }
  const late = spend(state, 'late')
  if (late !== undefined) {
    addFault(() => `${who}: TIMEOUT, ${command.name} may still ARRIVE LATE`,
      () => failed({ ...late, late: [...late.late, command] }))
  }
}

/** SQLite's lock: who has begun a transaction keeps others from writing. */
function isLocked (state: State, index: number): boolean {
  return state.consumers.some(({ transaction }, other) => other !== index && transaction !== undefined)
}

function firstRead (rules: Rules): string {
  return rules.binding === 'database first' ? 'the database\'s identity' : 'the queue\'s owner'
}

/** The first half of ownership.ts checkBinding. What is read of the queue is kept as if it were a database. */
function checkBinding (state: State, rules: Rules, index: number): State {
  const { owner, stored } = state.redis.data
  const queueRead: Database = { epoch: owner, counts: [], producers: stored, entries: [], outcomes: [] }
  return withConsumer(state, index,
    {
      phase: 'identity read',
      read: rules.binding === 'database first' ? state.database : queueRead,
      found: rules.binding === 'database first' ? 0 : owner,
    })
}

/** The other half: refuses a queue that knows of more than the database has. */
function compareBinding (state: State, index: number): State {
  const { read } = at(state.consumers, index)
  const queueFirst = read?.counts.length === 0
  const database = queueFirst || read === undefined ? state.database : read
  const [owner, stored] = queueFirst && read !== undefined
    ? [read.epoch, read.producers]
    : [state.redis.data.owner, state.redis.data.stored]
  const refused = owner > database.epoch ||
    stored.some((reported, producer) => !isSubset(reported, at(database.producers, producer)))
  if (refused) return { ...leave(state, index), refused: true }
  return withConsumer(state, index, { phase: 'checked', read: undefined, found: owner })
}

/** Store.raiseEpoch */
function raiseEpoch (state: State, index: number): State {
  const epoch = state.database.epoch + 1
  return { ...withConsumer(state, index, { phase: 'raised', epoch }), database: { ...state.database, epoch } }
}

/** ownership.ts claimOwnership, then Consumer.run up to its first take. */
function claimOwnership (state: State, rules: Rules, index: number): State {
  const { found, epoch } = at(state.consumers, index)
  const { state: after, bound } = queue.bind(state, found, epoch)
  // One with a lower epoch can't write any more: if this one left too, nobody would consume.
  if (!bound) {
    return after.redis.data.owner > epoch
      ? leave(after, index)
      : withConsumer(after, index,
        { found: after.redis.data.owner })
  }
  const unreported = after.database.producers.map(
    (stored) => rules.start === 'reports' && stored.high > 0 ? stored : undefined
  )
  return withConsumer(after, index, { phase: 'running', found: 0, unreported })
}

/** RedisConsumerQueue.#stayOwner: leaves to a newer one, takes the place of an older one or of none at all. */
function stayOwner (state: State, index: number): State {
  const { epoch } = at(state.consumers, index)
  const { owner } = state.redis.data
  return owner > epoch ? leave(state, index) : queue.bind(state, owner, epoch).state
}

function take (state: State, rules: Rules, index: number): State {
  const { state: after, run } = queue.take(state, rules)
  return withConsumer(after, index,
    { phase: 'taken', taken: run, read: rules.readApplied === 'at the take' ? state.database : undefined })
}

/** Store.apply: opens the transaction, skips what was applied before, counts the rest and records their identities. */
function apply (state: State, rules: Rules, index: number): State {
  const { taken, read, epoch } = at(state.consumers, index)
  const { database } = state
  if (rules.epoch === 'checked' && database.epoch !== epoch) return leave(state, index)
  let { producers } = read ?? database
  const counts = [...database.counts]
  let withEntries = database
  for (const element of taken) {
    const { producer, seq, increments } = element
    const before = at(producers, producer)
    const isApplied = rules.appliedBefore === 'highest' ? seq <= before.high : has(before, seq)
    if (state.hasEntries) withEntries = applyEntry(withEntries, element, rules, isApplied)
    if (isApplied) continue
    producers = set(producers, producer, include(before, seq))
    for (const increment of increments) counts[increment] = at(counts, increment) + 1
  }
  return withConsumer(state, index,
    { phase: 'applied', read: undefined, transaction: { ...withEntries, counts, producers } })
}

function commit (state: State, rules: Rules, index: number): State {
  const { transaction, taken, unreported, news } = at(state.consumers, index)
  const database = transaction ?? state.database
  const producers = taken.map(({ producer }) => producer)
  const next = unreported.map((before, producer) =>
    producers.includes(producer) ? at(database.producers, producer) : before)
  const change = {
    phase: 'committed',
    transaction: undefined,
    unreported: next,
    news: [...news, ...outcomesOf(database, taken, rules)],
  } as const
  return { ...withConsumer(state, index, change), database }
}

function acknowledge (state: State, rules: Rules, index: number): State {
  const { taken, epoch } = at(state.consumers, index)
  const found = state.redis.data.owner
  const after = queue.acknowledge(state, rules, taken, epoch)
  const stayed = rules.epoch === 'checked' && found !== epoch ? stayOwner(after, index) : after
  if (at(stayed.consumers, index).phase === 'down') return stayed
  return withConsumer(stayed, index, { phase: 'acknowledged', taken: [] })
}

/** Consumer.#reportProgress: what could not be reported stays, for the next time. */
function addReport (state: State, rules: Rules, index: number, add: Add, addFault: Add): void {
  const { unreported, news } = at(state.consumers, index)
  const who = `consumer ${index}`
  const reported = (from: State): State => withConsumer(afterReport(from, rules, news), index,
    { phase: 'running', unreported: unreported.map(() => undefined), news: [] })
  const failed = (from: State): State => withConsumer(from, index, { phase: 'running' })
  const shown = (): string => unreported.flatMap((stored, producer) =>
    stored === undefined ? [] : [`worker ${producer} ${show(stored)}`]).join(', ') +
    (news.length === 0 ? '' : `, and ${showOutcomes(news)}`)
  add(() => `${who}: reports progress to ${shown()}`,
    () => reported(queue.reportProgress(state, unreported, news, true)))
  const lost = spend(state, 'timeouts')
  if (lost !== undefined) {
    addFault(() => `${who}: reports progress, and the message is LOST`,
      () => reported(queue.reportProgress(lost, unreported, news, false)))
  }
  addTimeouts(state, index, { name: 'report progress', stored: unreported, news },
    (from) => queue.reportProgress(from, unreported, news, true), failed, addFault)
}
