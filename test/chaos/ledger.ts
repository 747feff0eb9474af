// What the clients know: every operation before it is sent, and what became of each attempt. Holds the database against
// it.
//
// An attempt that was answered may still be excused, and only for these two losses, which the contract names:
// a 202 lived in one worker's memory, and that worker was killed before the database had it; or Redis lost its data
// and the worker had left, both before the database had it. Pairs of edge keys are never to be counted: their totals
// stand at an end of 64 bits. So each that was promised has to be found in `rejected`, and none that was refused (422).
import { createHash } from 'node:crypto'
import { closeSync, openSync, writeSync } from 'node:fs'
import type Database from 'better-sqlite3'
import { TicketLedger } from './tickets.ts'

export type Level = 'memory' | 'queued' | 'stored'

/**
 * counted: the level asked for was reached. memory: 202, in one worker's memory. notCounted: refused, or nothing was
 * sent. unknown: no answer. open: none yet.
 */
export type Outcome = 'open' | 'counted' | 'memory' | 'notCounted' | 'unknown'

export interface Pair {
  readonly key: string
  readonly delta: bigint
}

export interface Attempt {
  readonly operation: Operation
  /** performance.now ms */
  readonly sentAt: number
  /** The client's end of its connection: which worker got it. */
  port: number | undefined
  outcome: Outcome
  /** It was told that its edge pair was refused (422). */
  refused: boolean
  /** The worker that had it was killed before the database had it. */
  killed: boolean
  /** The worker that had it left, in whatever way, before the database had it. */
  orphan: boolean
  /** Redis lost its data before the database had it. */
  dataLost: boolean
}

export interface Operation {
  readonly id: number
  /** Pairs of keys that nobody else uses; at least one. */
  readonly own: readonly Pair[]
  /** A pair of a key that all clients use. */
  readonly shared: Pair | undefined
  /** A pair whose total would leave 64 bits. */
  readonly edge: Pair | undefined
  readonly level: Level
  readonly idempotencyKey: string | undefined
  readonly attempts: Attempt[]
}

export type Verdict = 'counted' | 'not counted' | 'either'

/** Unknown attempts are watched for this long: what may still become of them is decided by then. */
const watchedMs = 30_000

/** Reachable sums that are worked out one by one; past that, only the least and the most. */
const sumsMax = 100_000

const reportedMax = 20

/** Keys whose totals stand at the ends of 64 bits, from before the first operation on. */
export const edges: readonly Pair[] = [{ key: 'edge above', delta: 2n ** 63n - 1n },
  { key: 'edge below', delta: -(2n ** 63n) }]

export class Ledger {
  readonly operations: Operation[] = []
  readonly problems: string[] = []
  readonly tickets = new TicketLedger(this.problems)
  /** Attempts with both marks, answered or not: only for these may the queue have lost a batch for good. */
  lostWithWorker = 0
  /** Operations that judge() found to be lost, and whose loss is excused. */
  lost = 0
  readonly #file: number
  readonly #db: Database.Database
  readonly #total: Database.Statement<[string], bigint>
  readonly #rejection: Database.Statement<[string], number>
  /** Attempts that may count and that the database was not seen to have. */
  #pending = new Set<Attempt>()

  /** @param db a separate connection, for reading */
  constructor (path: string, db: Database.Database) {
    this.#file = openSync(path, 'a')
    this.#db = db
    this.#total = db.prepare<[string], bigint>('SELECT value FROM numbers WHERE key = ?').safeIntegers().pluck()
    this.#rejection = db.prepare<[string], number>('SELECT 1 FROM rejected WHERE once = ?').pluck()
  }

  /** Writes an attempt down; only then may it be sent. */
  begin (operation: Operation): Attempt {
    if (operation.attempts.length === 0) {
      this.operations.push(operation)
      this.#write({
        id: operation.id,
        pairs: pairsOf(operation).map(({ key, delta }) => `${key}=${delta}`),
        level: operation.level,
        once: operation.idempotencyKey,
      })
    }
    const attempt: Attempt = {
      operation,
      sentAt: performance.now(),
      port: undefined,
      outcome: 'open',
      refused: false,
      killed: false,
      orphan: false,
      dataLost: false,
    }
    operation.attempts.push(attempt)
    this.#write({ id: operation.id, attempt: operation.attempts.length })
    this.#pending.add(attempt)
    return attempt
  }

  /** @param stored it was answered as being in the database, or refused for nothing but its edge pair */
  end (attempt: Attempt, outcome: Outcome, how: string, stored: boolean): void {
    attempt.outcome = outcome
    attempt.refused = how === '422'
    this.#write({
      id: attempt.operation.id,
      attempt: attempt.operation.attempts.indexOf(attempt) + 1,
      port: attempt.port,
      outcome,
      how,
    })
    if (outcome === 'notCounted') this.#pending.delete(attempt)
    if (stored) {
      this.#pending.delete(attempt)
      if (!isRefusedWhole(attempt.operation) && !this.#has(attempt.operation)) {
        this.problems.push(`answered as stored and not in the database: ${describe(attempt.operation)}`)
      }
    }
  }

  note (text: string): void {
    this.#write({ note: text })
  }

  /** Strikes off what the database has by now. */
  sweep (): void {
    const before = performance.now() - watchedMs
    for (const attempt of this.#pending) {
      if (this.#has(attempt.operation) || (attempt.outcome === 'unknown' && attempt.sentAt < before)) {
        this.#pending.delete(attempt)
      }
    }
  }

  /**
   * A worker was killed while it stood still since before the last sweep.
   * @param ports clients' ends of its connections; undefined: not known
   */
  workerKilled (ports: ReadonlySet<number> | undefined, openPorts: ReadonlySet<number>): void {
    this.tickets.workerKilled()
    this.#mark((attempt) => {
      // What came over a connection that is no more may have been anybody's.
      if (ports !== undefined && attempt.port !== undefined && openPorts.has(attempt.port) &&
        !ports.has(attempt.port)) {
        return
      }
      attempt.killed = true
      attempt.orphan = true
    })
  }

  /** A worker has left in order: what it had is in the queue, or in an unsent file. */
  workerLeft (): void {
    this.tickets.workerLeft()
    this.#mark((attempt) => { attempt.orphan = true })
  }

  /** Redis has lost its data. */
  dataLost (): void {
    this.tickets.dataLost()
    this.#mark((attempt) => { attempt.dataLost = true })
  }

  /** Attempts sent before `before` (performance.now ms) that must count and that the database does not have. */
  owed (before: number): Attempt[] {
    this.sweep()
    return [...this.#pending].filter((attempt) =>
      attempt.sentAt < before && mustCount(attempt) && !isRefusedWhole(attempt.operation))
  }

  get excused (): number {
    return this.operations.filter(({ attempts }) => attempts.some(isExcused)).length
  }

  /** Holds all totals, and all that was rejected, against all operations. @returns how many had which verdict */
  judge (): Record<Verdict, number> {
    const counts: Record<Verdict, number> = { counted: 0, 'not counted': 0, either: 0 }
    const totals = new Map(this.#db.prepare<[], { key: string, value: bigint }>('SELECT key, value FROM numbers')
      .safeIntegers().all().map(({ key, value }) => [key, value]))
    const shared = new Map<string, { sure: bigint, unsure: bigint[] }>()
    /** What has to be among the rejected, by edge key. */
    const refused = new Map(edges.map(({ key }) => [key, { sure: 0n, unsure: [] as bigint[] }]))
    const wrong: string[] = []
    for (const operation of this.operations) {
      const verdict = verdictOf(operation)
      counts[verdict]++
      const { own, shared: hot, edge, idempotencyKey } = operation
      const found = own.map(({ key }) => totals.get(key))
      const whole = own.every(({ delta }, i) => found[i] === delta)
      const none = found.every((total) => total === undefined)
      const each = own.every(({ delta }, i) => found[i] === undefined || found[i] === delta)
      const right = verdict === 'counted'
        ? whole
        : verdict === 'not counted'
          ? none
          : idempotencyKey === undefined ? each : whole || none
      if (!whole && !isRefusedWhole(operation) && operation.attempts.some(isExcused)) this.lost++
      if (!right) {
        wrong.push(`${verdict}, found ${found.map((total) => total ?? 'nothing').join(', ')}: ${describe(operation)}`)
      }
      for (const { key } of own) totals.delete(key)
      for (const [pair, sums] of [[hot, shared], [idempotencyKey === undefined ? edge : undefined, refused]] as const) {
        if (pair === undefined || (sums === refused && operation.attempts.some((attempt) => attempt.refused))) continue
        const before = sums.get(pair.key) ?? { sure: 0n, unsure: [] }
        sums.set(pair.key, before)
        // Of an idempotent one the own keys tell.
        if (verdict === 'counted' || (verdict === 'either' && idempotencyKey !== undefined &&
          whole)) before.sure += pair.delta
        else if (verdict === 'either' && idempotencyKey === undefined) before.unsure.push(pair.delta)
      }
    }
    for (const [key, sums] of shared) {
      wrong.push(...this.#judgeSum(`shared ${key}`, totals.get(key) ?? 0n, sums))
      totals.delete(key)
    }
    for (const { key, delta } of edges) {
      if (totals.get(key) !== delta) wrong.push(`${key} is ${totals.get(key) ?? 'nothing'}, not ${delta}`)
      totals.delete(key)
    }
    const rejected = this.#db.prepare<[], {
      key: string | null,
      value: bigint | null,
      once: string |
      null,
      reason: string
    }>('SELECT key, value, once, reason FROM rejected').safeIntegers().all()
    for (const { key, reason } of rejected) {
      if (reason !== 'overflow' || key === null || !refused.has(key)) {
        wrong.push(`rejected for "${reason}": ${key ?? 'a batch'}`)
      }
    }
    for (const [key, sums] of refused) {
      wrong.push(...this.#judgeSum(`rejected of ${key}`,
        rejected.filter((row) => row.key === key && row.once === null).reduce((sum, { value }) => sum + (value ?? 0n),
          0n), sums))
    }
    wrong.push(...this.#judgeOnce(new Set(rejected.flatMap(({ once }) => once ?? []))))
    for (const [key, value] of totals) wrong.push(`${key} is ${value} and nobody counted it`)
    if (wrong.length > 0) {
      this.problems.push(`${wrong.length} totals disagree with what the clients were told:`,
        ...wrong.slice(0, reportedMax))
    }
    return counts
  }

  /** Of the idempotent ones that are refused whole, what was promised is in `rejected`, and what never was is not. */
  #judgeOnce (rejected: ReadonlySet<string>): string[] {
    return this.operations.flatMap((operation) => {
      const { idempotencyKey, attempts } = operation
      if (idempotencyKey === undefined || !isRefusedWhole(operation)) return []
      const found = rejected.has(idOf(idempotencyKey))
      const never = attempts.every(({ outcome }) => outcome === 'notCounted')
      if (found && never) return [`refused, and kept to be tried again: ${describe(operation)}`]
      // Of several answers the last one counts.
      const promised = attempts.some(mustCount) && !attempts.some(({ refused }) => refused)
      return promised && !found ? [`promised, and not kept though it could not be applied: ${describe(operation)}`] : []
    })
  }

  #judgeSum (name: string, found: bigint, { sure, unsure }: {
    readonly sure: bigint
    readonly unsure: readonly bigint[]
  }): string[] {
    return isReachable(found - sure, unsure)
      ? []
      : [`${name} is ${found}, which is not ${sure} and any of ${unsure.length} unsure ones ` +
        `(${unsure.slice(0, reportedMax).join(' ')})`]
  }

  close (): void {
    closeSync(this.#file)
  }

  #mark (mark: (attempt: Attempt) => void): void {
    for (const attempt of this.#pending) {
      const before = attempt.orphan && attempt.dataLost
      mark(attempt)
      if (!before && attempt.orphan && attempt.dataLost) this.lostWithWorker++
    }
  }

  /**
   * Whether the database has what was promised: its own keys or, of what can't be applied, its entry among the
   * rejected.
   */
  #has (operation: Operation): boolean {
    const { own, idempotencyKey } = operation
    if (idempotencyKey !== undefined && isRefusedWhole(operation)) {
      return this.#rejection.get(idOf(idempotencyKey)) !== undefined
    }
    return own.every(({ key }) => this.#total.get(key) !== undefined)
  }

  #write (entry: Record<string, unknown>): void {
    writeSync(this.#file, `${JSON.stringify({ at: Math.round(performance.now()), ...entry })}\n`)
  }
}

function isExcused ({ outcome, killed, orphan, dataLost }: Attempt): boolean {
  return (outcome === 'memory' && killed) || ((outcome === 'memory' || outcome === 'counted') && orphan && dataLost)
}

function mustCount (attempt: Attempt): boolean {
  return (attempt.outcome === 'counted' || attempt.outcome === 'memory') && !isExcused(attempt)
}

/** Of several attempts with one idempotency key, one that must count is enough. */
export function verdictOf (operation: Operation): Verdict {
  const { attempts } = operation
  if (isRefusedWhole(operation)) return 'not counted'
  if (attempts.some(mustCount)) return 'counted'
  return attempts.every(({ outcome }) => outcome === 'notCounted') ? 'not counted' : 'either'
}

/** What the product makes of an Idempotency-Key of a caller that it does not know. */
function idOf (idempotencyKey: string): string {
  return createHash('sha256').update(`0:${idempotencyKey.length}:${idempotencyKey}`).digest('hex')
}

/** An idempotent request applies whole or not at all. */
export function isRefusedWhole ({ edge, idempotencyKey }: Operation): boolean {
  return edge !== undefined && idempotencyKey !== undefined
}

/** All that it sends. */
export function pairsOf ({ own, shared, edge }: Operation): Pair[] {
  return [...own, shared ?? [], edge ?? []].flat()
}

/** Whether some of the deltas make this sum. */
function isReachable (sum: bigint, deltas: readonly bigint[]): boolean {
  let sums = new Set([0n])
  for (const delta of deltas) {
    sums = new Set([...sums, ...Array.from(sums, (before) => before + delta)])
    if (sums.size > sumsMax) {
      const least = deltas.filter((other) => other < 0n).reduce((before, other) => before + other, 0n)
      const most = deltas.filter((other) => other > 0n).reduce((before, other) => before + other, 0n)
      return sum >= least && sum <= most
    }
  }
  return sums.has(sum)
}

export function describe (operation: Operation): string {
  const { id, level, idempotencyKey, attempts } = operation
  const pairs = pairsOf(operation).map(({ key, delta }) => `${key}=${delta}`).join('&')
  const told = attempts.map(({ sentAt, port, outcome, killed, orphan, dataLost }) =>
    `${Math.round(sentAt)} ms port ${port ?? '?'} ` +
      `${outcome}${killed ? ' killed' : ''}${orphan ? ' orphan' : ''}${dataLost ? ' dataLost' : ''}`)
  return `operation ${id} ${pairs} at level ${level}${idempotencyKey === undefined ? '' : ` once ${idempotencyKey}`} ` +
    `[${told.join('; ')}]`
}
