// The check of tickets itself: a right history passes, and each kind of wrong one is found. Histories are made up here;
// a chaos run makes real ones.
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { TicketLedger } from './tickets.ts'

describe('the ledger', () => {
  function database (runs: ReadonlyArray<readonly [first: number, count: number]>, issued?: number): Database.Database {
    const db = new Database(':memory:')
    onTestFinished(() => { db.close() })
    db.exec('CREATE TABLE tickets_runs(name TEXT, first INTEGER, count INTEGER);' +
      'CREATE TABLE tickets_lines(name TEXT, issued INTEGER)')
    const insert = db.prepare("INSERT INTO tickets_runs VALUES ('lifeboat', ?, ?)")
    for (const run of runs) insert.run(...run)
    const most = runs.reduce((before, [first, count]) => Math.max(before, first + count - 1), 0)
    db.prepare("INSERT INTO tickets_lines VALUES ('lifeboat', ?)").run(issued ?? most)
    return db
  }

  const accepted = { status: 202, text: '', headers: { location: '/x' } }

  interface Told { readonly count?: number, readonly key?: string, readonly replies: readonly unknown[] }

  /** The problems of clients that were told these replies; a number is a 201, 'pending' a 202, 'unknown' no answer. */
  function judge (told: readonly Told[], db: Database.Database, before = (_: TicketLedger): void => {}): string[] {
    const ledger = new TicketLedger()
    for (const [i, { count = 1, key, replies }] of told.entries()) {
      const operation: TicketLedger['operations'][number] = {
        id: i + 1,
        name: 'lifeboat',
        count,
        idempotencyKey: key,
        attempts: [],
        sentAt: performance.now(),
        issue: undefined,
        receipt: undefined,
      }
      ledger.operations.push(operation)
      for (const reply of replies) {
        const attempt: typeof operation.attempts[number] = {
          outcome: 'open', location: undefined, killed: false, orphan: false, dataLost: false,
        }
        operation.attempts.push(attempt)
        if (reply === 'unknown') attempt.outcome = 'unknown'
        else if (reply === 'pending') ledger.answered(operation, attempt, accepted)
        else if (typeof reply === 'number') {
          const text = count === 1
            ? { name: 'lifeboat', number: reply, receipt: `r${reply}` }
            : { name: 'lifeboat', first: reply, last: reply + count - 1, receipt: `r${reply}` }
          ledger.answered(operation, attempt, { status: 201, text: JSON.stringify(text), headers: {} })
        } else {
          ledger.answered(operation, attempt, { status: Number(reply), text: '', headers: {} })
        }
      }
    }
    before(ledger)
    ledger.judge(db)
    return ledger.problems
  }

  test('passes a right history', () => {
    expect(judge([
      { replies: [1] }, { count: 3, replies: [2] }, { key: 'a', replies: ['unknown', 5, 5] }, { replies: ['503'] },
    ], database([[1, 1], [2, 3], [5, 1]]))).toEqual([])
  })

  test('passes numbers that a client did not wait for', () => {
    expect(judge([{ replies: ['unknown'] }, { replies: [2] }], database([[1, 2]]))).toEqual([])
  })

  test.each([
    ['a gap in the log', [{ replies: [1] }, { replies: [3] }], [[1, 1], [3, 1]], /a run begins at 3/],
    ['a number that is in the log twice', [{ replies: [1] }, { replies: ['unknown'] }], [[1, 1], [1, 1]], /begins at/],
    ['a number that two were given', [{ replies: [1] }, { replies: [1] }], [[1, 2]], /and so has operation/],
    ['a number that is not in the log', [{ replies: [1] }, { replies: [2] }], [[1, 1]], /1 were issued/],
    ['another number for a repeat', [{ key: 'a', replies: [1, 2] }], [[1, 2]], /had 1 first, and then 2/],
    ['numbers that nobody asked for', [{ replies: [1] }], [[1, 2]], /2 are issued; clients know of 1/],
    ['a number for what was refused', [{ replies: ['503'] }], [[1, 1]], /1 are issued; clients know of 0/],
    ['two numbers for one key', [{ key: 'a', replies: ['unknown', 'unknown'] }], [[1, 2]], /2 are issued/],
    ['a request that is pending for ever', [{ replies: ['pending'] }], [], /answered with 202 and never issued/],
    ['a status that nothing explains', [{ replies: ['500'] }], [], /answered with 500/],
    ['order', [{ replies: [2] }, { replies: [1] }], [[1, 2]], /was answered before/],
  ] as const)('finds %s', (_name, told, runs, how) => {
    expect(judge(told, database(runs)).join('\n')).toMatch(how)
  })

  test('excuses what was pending in a worker that was killed, or that left before Redis lost its data', () => {
    expect(judge([{ replies: ['pending'] }], database([]), (ledger) => ledger.workerKilled())).toEqual([])
    const both = (ledger: TicketLedger): void => { ledger.workerLeft(); ledger.dataLost() }
    expect(judge([{ replies: ['pending'] }], database([]), both)).toEqual([])
    expect(judge([{ replies: ['pending'] }], database([]), (ledger) => ledger.workerLeft())).not.toEqual([])
  })

  test('finds a count of issued numbers that the log does not have', () => {
    expect(judge([{ replies: [1] }], database([[1, 1]], 2)).join('\n')).toMatch(/2 are said to be issued/)
  })
})
