// What the consumer makes of entries: compared with a plain model over random histories, and case by case.
import fc from 'fast-check'
import { expect, test } from 'vitest'
import { EntryRefusedError, type Json } from '@gearbox/runtime/plugin.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'
import { Allotment } from '../src/allotment.ts'
import { apply } from '../src/consumer/apply.ts'
import { rebind } from '../src/consumer/rebind.ts'
import { verify } from '../src/consumer/verify.ts'
import { parseIssued, parseServed, type Issued, type IssueEntry, type Served, type TicketEntry } from '../src/entry.ts'
import { lineState, placeOf, readLine } from '../src/lines.ts'
import { receiptOf } from '../src/receipt.ts'
import { calledNumbers } from '../src/called.ts'
import { openDatabase, type TestDatabase } from './fixtures/plugin-database.ts'

/** A consumer with a database, and a clock that moves on with every entry. */
class Consumer {
  readonly database: TestDatabase = openDatabase()
  now = 1_764_072_000_000
  holdS = 0
  #seq = 0

  apply (data: TicketEntry): Json {
    this.now += 1000
    this.#seq++
    const entry = { data, producer: 'worker', seq: this.#seq, entry: 0, at: this.now }
    const context = { database: this.database, now: this.now, settings: { ticketsHoldS: this.holdS } }
    return this.database.savepoint(() => JSON.parse(JSON.stringify(apply(entry, context))))
  }

  issue (name: string, counts: readonly number[], holders: readonly string[] = []): Issued {
    return parseIssued(this.apply(issueEntry(name, counts, holders)))
  }

  serve (name: string, what: { by: number } | { to: number }): Served {
    return parseServed(this.apply({ serve: name, ...what }))
  }

  /** The error that an entry is refused with. */
  refusal (data: TicketEntry): { code: string, details?: unknown } {
    try {
      this.apply(data)
    } catch (error) {
      if (error instanceof EntryRefusedError) return error.entryError
      throw error
    }
    throw new Error('it was not refused')
  }

  place (name: string, number: number): ReturnType<typeof placeOf> {
    return placeOf(this.database, name, number, 0, this.now, this.holdS * 1000)
  }

  state (name: string): unknown {
    return lineState(this.database, name, readLine(this.database, name)!)
  }
}

function issueEntry (name: string, counts: readonly number[], holders: readonly string[] = []): IssueEntry {
  return {
    issue: name,
    requests: counts.length,
    counts: counts.flatMap((count, i): Array<[number, number]> => count === 1 ? [] : [[i, count]]),
    holders: holders.map((holder, i): [number, string] => [i, holder]),
    request: 2 ** 20,
    secret: 'of the worker',
  }
}

/** What each request of an entry got: its first number, or undefined. */
function numbersOf ({ first, left }: Issued, counts: readonly number[]): Array<number | undefined> {
  const allotment = new Allotment(first, left)
  return counts.map((count) => allotment.take(count))
}

/** A line as anybody would write it down: every number with what became of it. */
class Model {
  readonly numbers = new Map<number, 'waiting' | 'called'>()
  readonly givenUp = new Set<number>()
  readonly gaps = new Set<number>()
  issued = 0
  serving = 0
  limit = Infinity

  issue (counts: readonly number[]): Array<number | undefined> {
    return counts.map((count) => {
      if (this.issued + count > this.limit) return undefined
      const first = this.issued + 1
      for (let i = 0; i < count; i++) this.numbers.set(++this.issued, 'waiting')
      return first
    })
  }

  serve (by: number, to: number): number[] {
    const called: number[] = []
    while (called.length < by && this.serving < Math.min(to, this.issued)) {
      const number = ++this.serving
      if (!this.numbers.has(number) || this.givenUp.has(number)) continue
      this.numbers.set(number, 'called')
      called.push(number)
    }
    return called
  }

  get waiting (): number {
    return [...this.numbers].filter(([number, state]) => state === 'waiting' && !this.givenUp.has(number)).length
  }

  ahead (of: number): number {
    return [...this.numbers]
      .filter(([number, state]) => number < of && state === 'waiting' && !this.givenUp.has(number)).length
  }
}

type Step =
  { kind: 'issue', counts: number[] } | { kind: 'by', by: number } | { kind: 'to', to: number } |
  { kind: 'give up', at: number } | { kind: 'limit', more: number | null } | { kind: 'rebind', more: number }

const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({
    kind: fc.constant('issue' as const), counts: fc.array(fc.integer({ min: 1, max: 6 }), { minLength: 1 }),
  }),
  fc.record({ kind: fc.constant('by' as const), by: fc.integer({ min: 1, max: 12 }) }),
  fc.record({ kind: fc.constant('to' as const), to: fc.integer({ min: 0, max: 200 }) }),
  fc.record({
    kind: fc.constant('give up' as const), at: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
  }),
  fc.record({
    kind: fc.constant('limit' as const), more: fc.option(fc.integer({ min: -3, max: 12 }), { nil: null }),
  }),
  fc.record({ kind: fc.constant('rebind' as const), more: fc.integer({ min: 0, max: 30 }) })
)

const steps = fc.array(step, { maxLength: 40 })

test('any history of entries comes to what a plain model says', () => {
  fc.assert(fc.property(steps, (history) => {
    const [consumer, model] = [new Consumer(), new Model()]
    for (const step of history) play(step, consumer, model)
    for (const [number, state] of model.numbers) {
      const expected = model.givenUp.has(number) ? 'given_up' : state
      const ahead = expected === 'waiting' ? model.ahead(number) : 0
      expect(consumer.place('boat', number)).toMatchObject({ state: expected, ahead })
    }
    if (model.numbers.size > 0) {
      const { issued, serving, waiting } = model
      expect(consumer.state('boat')).toMatchObject({ issued, serving, waiting })
    }
    expect(verify(consumer.database).filter(({ right }) => !right)).toEqual([])
  }), { seed, numRuns: 200 })
})

function play (step: Step, consumer: Consumer, model: Model): void {
  if (step.kind === 'issue') {
    const got = consumer.issue('boat', step.counts)
    expect(numbersOf(got, step.counts)).toEqual(model.issue(step.counts))
  } else if (step.kind === 'rebind') {
    const floor = Math.max(model.issued, highest(consumer)) + step.more
    rebind.run(consumer.database, { 'tickets-from': String(floor) })
    for (let number = model.issued + 1; number <= floor; number++) model.gaps.add(number)
    model.issued = floor
  } else if (step.kind === 'limit') {
    model.limit = step.more === null ? Infinity : Math.max(0, model.issued + step.more)
    consumer.apply({ limit: 'boat', to: step.more === null ? null : model.limit })
  } else if (step.kind === 'give up') {
    const number = [...model.numbers.keys()][Math.floor(step.at * model.numbers.size)]
    if (number === undefined) return
    consumer.apply({ giveUp: 'boat', number })
    model.givenUp.add(number)
  } else if (model.numbers.size > 0) {
    const [by, to] = step.kind === 'by' ? [step.by, Infinity] : [Infinity, step.to]
    const before = model.serving
    const served = consumer.serve('boat', step.kind === 'by' ? { by } : { to })
    expect(calledNumbers(served, 1000).called).toEqual(model.serve(by, to))
    expect(served.serving).toBeGreaterThanOrEqual(before)
    model.serving = served.serving
  }
}

function highest ({ database }: Consumer): number {
  return database.get<{ last: number | null }>('SELECT max(last) AS last FROM tickets_gaps')?.last ?? 0
}

test('requests beyond the limit are refused one by one, and smaller ones behind them may still fit', () => {
  const consumer = new Consumer()
  consumer.issue('boat', [1])
  consumer.apply({ limit: 'boat', to: 8 })
  const counts = [1, 5, 3, 2, 4, 1, 1]
  expect(numbersOf(consumer.issue('boat', counts), counts))
    .toEqual([2, 3, undefined, undefined, undefined, 8, undefined])
  expect(consumer.state('boat')).toEqual({ name: 'boat', issued: 8, serving: 0, waiting: 8, limit: 8 })
  expect(consumer.database.all('SELECT first, count, request - 1048576 AS offset FROM tickets_runs')).toEqual([
    { first: 1, count: 1, offset: 0 }, { first: 2, count: 6, offset: 0 }, { first: 8, count: 1, offset: 15 },
  ])
  consumer.apply({ limit: 'boat', to: 2 })
  expect(numbersOf(consumer.issue('boat', [1]), [1])).toEqual([undefined])
  expect(consumer.state('boat')).toMatchObject({ issued: 8, limit: 2 })
  consumer.apply({ limit: 'boat', to: null })
  expect(numbersOf(consumer.issue('boat', [1]), [1])).toEqual([9])
})

test('an entry with an Idempotency-Key that is refused is an error, so that it is not remembered', () => {
  const consumer = new Consumer()
  consumer.apply({ limit: 'boat', to: 4 })
  const keyed = (count: number): TicketEntry => {
    const { secret, ...entry } = issueEntry('boat', [count])
    return { ...entry, request: -7 }
  }
  expect(consumer.refusal(keyed(5))).toMatchObject({ statusCode: 409, code: 'GBX_SOLD_OUT', details: { left: 4 } })
  expect(parseIssued(consumer.apply(keyed(4)))).toMatchObject({ first: 1, left: 4 })
  expect(consumer.database.all('SELECT first, count, request FROM tickets_runs'))
    .toEqual([{ first: 1, count: 4, request: -7 }])
})

test('a place is given up with its receipt, once and for all, and its number is never issued again', () => {
  const consumer = new Consumer()
  const { key } = consumer.issue('boat', [1, 3])
  const giveUp = (number: number, receipt?: string): TicketEntry =>
    ({ giveUp: 'boat', number, ...(receipt === undefined ? {} : { receipt }) })
  const [one, three] = [receiptOf(key, 1, 1), receiptOf(key, 2, 3)]
  const wrong = [[1, three], [2, one], [1, ''], [1, 'é'.repeat(22)], [2, three.replace('2.', '1.')]] as const
  for (const [number, receipt] of wrong) {
    expect(consumer.refusal(giveUp(number, receipt)), receipt).toMatchObject({ code: 'GBX_WRONG_RECEIPT' })
  }
  consumer.apply(giveUp(1, one))
  consumer.apply(giveUp(3, three))
  consumer.apply(giveUp(3))
  expect(consumer.refusal(giveUp(5))).toMatchObject({ statusCode: 404 })
  expect([1, 2, 3, 4].map((number) => consumer.place('boat', number).state))
    .toEqual(['given_up', 'waiting', 'given_up', 'waiting'])
  expect(consumer.issue('boat', [1]).first).toBe(5)
})

test('a receipt is as good after more tickets were issued, and none is good for another entry', () => {
  const consumer = new Consumer()
  const one = consumer.issue('boat', [1])
  const two = consumer.issue('boat', [1])
  expect(one.key).not.toBe(two.key)
  expect(consumer.refusal({ giveUp: 'boat', number: 2, receipt: receiptOf(one.key, 2, 1) }))
    .toMatchObject({ code: 'GBX_WRONG_RECEIPT' })
  consumer.apply({ giveUp: 'boat', number: 1, receipt: receiptOf(one.key, 1, 1) })
})

test('a called place counts as given up after TICKETS_HOLD_S, unless whoever has it asks in time', () => {
  const consumer = new Consumer()
  consumer.holdS = 60
  consumer.issue('boat', [1, 1, 1])
  consumer.serve('boat', { by: 2 })
  const states = (): string[] => [1, 2, 3].map((number) => consumer.place('boat', number).state)
  expect(states()).toEqual(['called', 'called', 'waiting'])
  consumer.now += 50_000
  consumer.apply({ asked: 'boat', number: 2 })
  consumer.now += 30_000
  expect(states()).toEqual(['given_up', 'called', 'waiting'])
  consumer.apply({ asked: 'boat', number: 1 })
  expect(states()).toEqual(['given_up', 'called', 'waiting'])
  consumer.now += 30_000
  expect(states()).toEqual(['given_up', 'given_up', 'waiting'])
  consumer.holdS = 0
  expect(states()).toEqual(['called', 'called', 'waiting'])
})

test('the wait is estimated from how fast numbers were called lately', () => {
  const consumer = new Consumer()
  consumer.issue('boat', Array.from({ length: 50 }, () => 1))
  expect(consumer.place('boat', 50)).toMatchObject({ ahead: 49, waitSeconds: null })
  consumer.serve('boat', { by: 5 })
  expect(consumer.place('boat', 50)).toMatchObject({ ahead: 44, waitSeconds: null })
  consumer.now += 9000
  consumer.serve('boat', { by: 5 })
  expect(consumer.place('boat', 50)).toMatchObject({ ahead: 39, waitSeconds: 80 })
  consumer.now += 10_000
  expect(consumer.place('boat', 50)).toMatchObject({ ahead: 39, waitSeconds: 160 })
  consumer.now += 3_600_000
  expect(consumer.place('boat', 50)).toMatchObject({ ahead: 39, waitSeconds: null })
})

test('old calls are forgotten, so that a line that runs for years stays small', () => {
  const consumer = new Consumer()
  consumer.issue('boat', [1000])
  for (let i = 0; i < 30; i++) consumer.serve('boat', { by: 1 })
  consumer.now += 2 * 86_400_000
  for (let i = 0; i < 5; i++) consumer.serve('boat', { by: 1 })
  expect(consumer.database.all('SELECT last FROM tickets_calls')).toHaveLength(5)
})

test('what a result has no room for is counted, not listed', () => {
  const consumer = new Consumer()
  for (let i = 0; i < 3; i++) consumer.issue('boat', [1000])
  for (let number = 2; number <= 3000; number += 2) consumer.apply({ giveUp: 'boat', number })
  const served = consumer.serve('boat', { by: 1000 })
  expect(JSON.stringify(served).length).toBeLessThan(4096)
  const { called, more } = calledNumbers(served, 10_000)
  expect(served).toMatchObject({ from: 0, serving: 1999, called: 1000 })
  expect(called).toEqual(Array.from({ length: called.length }, (_, i) => 2 * i + 1))
  expect(called.length + more).toBe(1000)
  expect(called.length).toBeGreaterThan(700)
})

test('after a rebind every name begins above a floor, and no other rebind lowers it', () => {
  const consumer = new Consumer()
  consumer.issue('boat', [5])
  consumer.apply({ limit: 'raft', to: 10 })
  expect(rebind.run(consumer.database, {})).toEqual([
    expect.stringContaining('1000005'), expect.stringContaining('1 names with a lower limit'),
  ])
  expect(consumer.issue('boat', [1]).first).toBe(1_000_006)
  expect(consumer.issue('new', [1]).first).toBe(1_000_006)
  expect(numbersOf(consumer.issue('raft', [1]), [1])).toEqual([undefined])
  expect(() => rebind.run(consumer.database, { 'tickets-from': '5' })).toThrow(/at least 1000006/)
  expect(() => rebind.run(consumer.database, { 'tickets-from': 'ten' })).toThrow(/whole number/)
  expect(rebind.run(consumer.database, { 'tickets-from': '2000000' })).toHaveLength(2)
  expect(consumer.issue('boat', [1]).first).toBe(2_000_001)
  expect(consumer.issue('newer', [1]).first).toBe(2_000_001)
  expect(consumer.state('boat')).toMatchObject({ waiting: 7 })
  expect(consumer.place('boat', 2_000_001)).toMatchObject({ ahead: 6 })
  expect(calledNumbers(consumer.serve('boat', { by: 7 }), 10).called)
    .toEqual([1, 2, 3, 4, 5, 1_000_006, 2_000_001])
  expect(verify(consumer.database))
    .toEqual([{ text: 'tickets: 9 numbers of 3 names, each in the log once', right: true }])
})

test('verify names a gap, a repeat, and a line that differs from its log', () => {
  const wrong = (sql: string): string[] => {
    const consumer = new Consumer()
    consumer.issue('boat', [5])
    consumer.issue('boat', [5])
    consumer.database.run(sql)
    const findings = verify(consumer.database)
    expect(findings.map(({ right }) => right)).toEqual([false])
    return findings.map(({ text }) => text)
  }
  expect(wrong('UPDATE tickets_runs SET first = 7, count = 4 WHERE first = 6')).toEqual(
    ['tickets "boat": behind number 5 the log goes on with 7'])
  expect(wrong('UPDATE tickets_runs SET first = 5, count = 6 WHERE first = 6')).toEqual(
    ['tickets "boat": behind number 5 the log goes on with 5'])
  expect(wrong('UPDATE tickets_lines SET issued = 11')).toEqual(
    ['tickets "boat": the line says 11, the log ends with 10'])
  expect(wrong('DELETE FROM tickets_lines')).toEqual(['tickets "boat": the line says nothing, the log ends with 10'])
  expect(verify(openDatabase([]))).toEqual([])
  expect(rebind.run(openDatabase([]), {})).toEqual([])
})

test('an entry that no worker sends is refused', () => {
  const consumer = new Consumer()
  const good = issueEntry('boat', [1])
  for (const data of [null, 7, [], {}, { issue: 1 }, { ...good, issue: '' }, { ...good, requests: 0 },
    { ...good, counts: [[1, 2]] },
    { ...good, counts: [[0, 1001]] }, { ...good, requests: 2 ** 20 + 1 }, { ...good, holders: [[0, 1]] },
    { serve: 'boat' }, { giveUp: 'boat' }, { limit: 'boat' }, { asked: 'boat' }]) {
    expect(consumer.refusal(data as TicketEntry), JSON.stringify(data)).toMatchObject({ code: 'GBX_BAD_ENTRY' })
  }
})
