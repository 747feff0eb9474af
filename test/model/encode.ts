// A state as a short string: equal for states that can't be distinguished by anything that follows.
import { hash } from 'node:crypto'
import type { Sequences } from '@gearbox/protocol/sequences.ts'
import type { Consumer, Database, Dataset, Element, Incarnation, Late, Outcome, State, Worker } from './state.ts'

/** 120 bits of SHA-1 over the state's canonical text: among a million states two share them with a chance of 10^-24. */
export function keyOf (state: State): string {
  return hash('sha1', encode(state), 'base64url').slice(0, 20)
}

/** Late commands are a bag, and so in the order of their text; all else has its place. */
export function encode (state: State): string {
  const { redis, faults } = state
  return [
    state.workers.map(ofWorker).join('&'),
    [redis.runId, redis.replicationId, redis.generations, ofData(redis.data),
      redis.saved === redis.data ? '=' : ofData(redis.saved)].join(','),
    state.consumers.map(ofConsumer).join('&'),
    ofDatabase(state.database),
    state.late.map(ofLate).sort().join('&'),
    Object.values(faults).join(''),
    flags(state.acknowledged) + flags(state.lostByRedis) + (state.refused ? 'r' : ''),
  ].join('|')
}

function ofWorker (worker: Worker): string {
  if (!worker.alive) return `dead${ofElements(worker.unsent)}@${ofIncarnation(worker.unsentTo)}`
  const { replay, push } = worker
  return [
    worker.coming.join('.'), worker.accumulator.join('.'), worker.drain?.join('.') ?? '-', worker.group.join('.'),
    worker.seq,
    worker.window.map(({ element, pushed, lost, refilled }) =>
      `${ofElement(element)}${pushed ? 'p' : ''}${lost ? 'l' : ''}${refilled ? 'r' : ''}`).join(';'),
    worker.delivering ?? '', ofIncarnation(worker.incarnation),
    replay === undefined ? '' : `${ofIncarnation(replay.to)}>${replay.rest.join('.')}`,
    ofIncarnation(worker.queue), push === undefined
      ? ''
      : `${ofElements(push.elements)}@${push.generation}${push.refills ? 'r' : ''}${push.reply ?? ''}`,
    ofSequences(worker.report),
    ofOutcomes(worker.news), worker.awaited.join('.'), ofOutcomes(worker.received), worker.unconfirmed.join('.'),
  ].join(',')
}

function ofConsumer (consumer: Consumer): string {
  if (consumer.phase === 'down') return 'down'
  return [consumer.phase, consumer.epoch, consumer.found, ofDatabase(consumer.read), ofElements(consumer.taken),
    ofDatabase(consumer.transaction), consumer.unreported.map(ofSequences).join('.'), ofOutcomes(consumer.news),
    consumer.requests.map(({ producer, received, missing }) =>
      `${producer}<${received.join('.')}>${missing.join('.')}`).join(';')].join(',')
}

function ofLate (late: Late): string {
  switch (late.name) {
    case 'push': return `push${ofElements(late.elements)}@${late.generation}`
    case 'acknowledge': return `ack${ofElements(late.elements)}@${late.owner}`
    case 'bind': return `bind${late.expected}>${late.owner}`
    case 'report progress': return `report${late.stored.map(ofSequences).join('.')}${ofOutcomes(late.news)}`
  }
}

function ofData ({ batches, generation, owner, stored }: Dataset): string {
  return `${ofElements(batches)}g${generation}o${owner}s${stored.map(ofSequences).join('.')}`
}

function ofDatabase (database: Database | undefined): string {
  return database === undefined
    ? '-'
    : `${database.epoch}:${database.counts.join('')}:${database.producers.map(ofSequences).join('.')}` +
      `${ofOutcomes(database.entries)}/${ofOutcomes(database.outcomes)}`
}

function ofElements (elements: readonly Element[]): string {
  return elements.map(ofElement).join(';')
}

function ofElement ({ producer, seq, increments }: Element): string {
  return `${producer}/${seq}/${increments.join('.')}`
}

function ofSequences (stored: Sequences | undefined): string {
  return stored === undefined ? '-' : `${stored.high}${stored.gaps.map(([from, to]) => `!${from}-${to}`).join('')}`
}

function ofOutcomes (outcomes: readonly Outcome[]): string {
  return outcomes.map(({ producer, seq, number }) => `${producer}.${seq}=${number}`).sort().join(';')
}

function ofIncarnation (incarnation: Incarnation | undefined): string {
  return incarnation === undefined ? '-' : `${incarnation.runId}/${incarnation.generation}`
}

function flags (values: readonly boolean[]): string {
  return values.map(Number).join('')
}
