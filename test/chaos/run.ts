// One chaos run: start, count under faults, come to rest, hold the database against what the clients were told.
import { once } from 'node:events'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { until } from '@gearbox/test-kit/until.ts'
import { Client, goToTheEdges } from './client.ts'
import { schedule, type Step } from './faults.ts'
import { describe, isRefusedWhole, Ledger, verdictOf } from './ledger.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import { TicketClient } from './tickets.ts'
import { heldBytesMax, System, type Queue } from './system.ts'

export interface ChaosOptions {
  readonly seed: number
  readonly queue: Queue
  /**
   * From the first process's start to the last one's end, about; what is left at the end comes to rest meanwhile. At
   * the latest it ends `graceMs` after.
   */
  readonly durationMs: number
  /** Ends it at once; then nothing is left of it. */
  readonly signal?: AbortSignal
  /** For tests of the check itself: alters the database before it is looked at. */
  readonly plant?: (databasePath: string) => void
}

export interface ChaosResult {
  /** One line. */
  readonly summary: string
  /** What is wrong, with the schedule; empty if nothing is. */
  readonly problems: readonly string[]
}

const clientCount = 16
const ticketClientCount = 6

/** Of the time, what rest usually takes. */
const restMs = 6000

/** Past the longest stand-still of a worker and its ack timeout. */
const deadlineSlackMs = 9000

const settleMs = 15_000

/** Of the idempotent requests that must have counted, one of so many is repeated at rest. */
const repeatedOf = 20

const sweepMs = 500

/** Whatever becomes of it, it ends this much after its time. */
export const graceMs = 20_000

/** Of that, what killing all and keeping the files takes at most. */
const endMs = 3000

/** @throws Error if it can't be started, or the signal's reason; nothing is left of it then */
export async function runChaos ({ seed, queue, durationMs, signal, plant }: ChaosOptions): Promise<ChaosResult> {
  const startedAt = performance.now()
  const endAt = startedAt + durationMs
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-chaos-'))
  const random = new Random(seed)
  const ackTimeoutMs = random.pick([1000, 2000, 5000])
  // In some runs the limits are so low that faults reach them: what is refused must not count, and what has left a
  // window must.
  const trimmed = queue === 'redis' && random.chance(0.3)
  const settings = {
    ACK_TIMEOUT_MS: String(ackTimeoutMs),
    FLUSH_INTERVAL_MS: random.pick(['auto', 'auto', '20', '300']),
    COMMIT_INTERVAL_MS: random.pick(['20', '20', '0', '150']),
    WEB_WORKERS: random.pick(['2', '3']),
    PENDING_KEYS_MAX: random.pick(['1000000', '1000000', '200']),
    PENDING_BYTES_MAX: String(heldBytesMax),
    UNSTORED_BYTES_MAX: trimmed ? '2048' : String(heldBytesMax),
  }
  const cannotStart = (error: unknown): Error => {
    rmSync(dir, { recursive: true, force: true })
    return new Error(`it can't be started: ${error instanceof Error ? error.message : String(error)}`, { cause: error })
  }
  const system = await System.make(queue, dir,
    { ...settings, LOG_LEVEL: 'info' }).catch((error: unknown) => { throw cannotStart(error) })
  const limit = new AbortController()
  const timer =
    setTimeout(() => limit.abort(new Error(`it is not at rest ${(graceMs - endMs) / 1000} s after its time`)),
      startedAt + durationMs + graceMs - endMs - performance.now())
  const ended = once(signal === undefined ? limit.signal : AbortSignal.any([signal, limit.signal]), 'abort')
  const orEnded = async <T>(work: Promise<T>): Promise<T> => {
    signal?.throwIfAborted()
    return await Promise.race([work, ended.then(() => { throw signal?.reason ?? limit.signal.reason })])
  }
  try {
    await orEnded(system.startProduct())
    await orEnded(goToTheEdges(system.url))
  } catch (error) {
    clearTimeout(timer)
    await system.end(false)
    throw cannotStart(error)
  }
  const db = new Database(system.databasePath, { readonly: true })
  const ledger = new Ledger(join(dir, 'operations.jsonl'), db)
  system.ledger = ledger
  const happened: string[] = []
  const clients = Array.from({ length: clientCount }, (_, i) => new Client({
    name: `c${i}`,
    random: random.fork(),
    ledger,
    url: system.url,
    deadlineMs: ackTimeoutMs +
      deadlineSlackMs,
    queuedIsStored: queue === 'embedded',
    openPorts: system.openPorts,
  }))
  const steps = schedule(random.fork(), queue, trimmed)
  const ticketClients = Array.from({ length: ticketClientCount }, (_, i) => new TicketClient({
    name: `t${i}`,
    random: random.fork(),
    ledger: ledger.tickets,
    url: system.url,
    deadlineMs: ackTimeoutMs + deadlineSlackMs,
  }))
  const sweeps = setInterval(() => ledger.sweep(), sweepMs)
  let verdicts: Record<string, number> = {}
  const work = async (): Promise<void> => {
    for (const client of [...clients, ...ticketClients]) client.start()
    for (const step of steps) {
      if (happened.length > 0 && performance.now() + step.pauseMs > endAt - restMs) break
      await runStep(system, ledger, step, happened)
      if (ledger.problems.length > 0) break
    }
    await Promise.all([...clients, ...ticketClients].map(async (client) => { await client.stop() }))
    verdicts = await rest(system, ledger, clients, ticketClients, db, plant)
  }
  try {
    await orEnded(work())
  } catch (error) {
    ledger.problems.push(error instanceof Error ? error.message : String(error),
      ...ledger.owed(performance.now()).slice(0, 10).map(({ operation }) => `not stored: ${describe(operation)}`))
  }
  clearTimeout(timer)
  clearInterval(sweeps)
  for (const client of [...clients, ...ticketClients]) client.close()
  const failed = ledger.problems.length > 0 && signal?.aborted !== true
  await system.end(failed)
  await Promise.all([...clients, ...ticketClients].map(async (client) => { await client.stop() }))
  ledger.close()
  db.close()
  const statuses = new Map<number, number>()
  for (const client of clients) {
    for (const [status, count] of client.statuses) statuses.set(status, (statuses.get(status) ?? 0) + count)
  }
  const answers = [...statuses].sort().map(([status, count]) => `${count} × ${status}`).join(', ')
  const found = Object.entries(verdicts).map(([verdict, count]) => `${count} ${verdict}`).join(', ')
  const summary =
    `seed ${seed}, ${queue}: ${happened.length} faults, ${ledger.operations.length} operations (${found}; ` +
    `${ledger.excused} may be lost, ${ledger.lost} are), answers ${answers}; ${ledger.tickets.summary}; ` +
    `slowest recovery ${Math.round(system.slowestRecovery)} ms, most memory ` +
    `${Math.round(system.memory.most / 2 ** 20)} MiB (${Math.round(system.memory.growth / 2 ** 20)} more than at ` +
    `first), took ${((performance.now() - startedAt) / 1000).toFixed(1)} s`
  if (!failed) rmSync(dir, { recursive: true, force: true })
  signal?.throwIfAborted()
  if (!failed) return { summary, problems: [] }
  writeFileSync(join(dir, 'output.log'), system.output)
  return {
    summary,
    problems: [`seed ${seed}, ${queue}, ${JSON.stringify(settings)}; files are kept in ${dir}`,
      ...happened.length > 0 ? ['what befell it:', ...happened] : [],
      ...ledger.problems.length > 0 ? ['what is wrong:'] : [], ...ledger.problems],
  }
}

async function runStep (system: System, ledger: Ledger, { pauseMs, offsetMs, faults }: Step,
  happened: string[]): Promise<void> {
  await delay(pauseMs)
  await Promise.all(faults.map(async (fault, i) => {
    await delay(i * offsetMs)
    const text = `${Math.round(performance.now())} ms: ${fault.text}`
    happened.push(text)
    ledger.note(text)
    await fault.run(system)
    ledger.note(`${fault.text}: over`)
  }))
  const over = performance.now()
  await system.recovered()
  // Whoever dies later is no excuse for what should have been stored by then. What a worker had to leave in a file
  // waits for a start.
  await until('what was answered before and under a fault to be stored',
    () => ledger.owed(over).length === 0 || system.unsentFiles().length > 0)
    .catch((error: unknown) => {
      throw new Error(`not all is stored after ${faults.map(({ text }) => text).join(' and ')}`, { cause: error })
    })
  ledger.note('recovered')
}

/** Comes to rest and compares. */
async function rest (system: System, ledger: Ledger, clients: readonly Client[],
  ticketClients: readonly TicketClient[], db: Database.Database,
  plant: ChaosOptions['plant']): Promise<Record<string, number>> {
  const { problems } = ledger
  ledger.note('rest')
  system.heal()
  await system.recovered()
  // Whatever became of them until now, at rest they are told as stored, and have counted once.
  const deadline = performance.now() + settleMs
  const open = ledger.operations.filter((operation) =>
    operation.idempotencyKey !== undefined && !isRefusedWhole(operation) &&
      (verdictOf(operation) !== 'counted' || operation.id % repeatedOf === 0))
  const unsettled: number[] = []
  const { unsettled: tickets } = ledger.tickets
  await Promise.all(ticketClients.map(async (client) => {
    for (let operation = tickets.shift(); operation !== undefined; operation = tickets.shift()) {
      await client.settle(operation, deadline)
    }
  }))
  await Promise.all(clients.map(async (client) => {
    for (let operation = open.shift(); operation !== undefined; operation = open.shift()) {
      if (!await client.settle(operation, deadline)) unsettled.push(operation.id)
    }
  }))
  if (unsettled.length > 0) {
    problems.push(`not told as stored within ${settleMs} ms at rest: operations ${unsettled.slice(0, 20).join(', ')} ` +
      `(${unsettled.length})`)
  }
  if (system.unsentFiles().length > 0) {
    ledger.note('start again, for the unsent files')
    await system.stopProduct()
    await system.startProduct()
    await until('unsent files to be pushed and stored', () => system.unsentFiles().length === 0)
  }
  await until('all to be stored', async () => {
    for (const name of ['gearbox_pending_keys', 'gearbox_unstored_batches']) {
      if ((await system.figures(name)).some(({ value }) => value !== 0)) return false
    }
    return await system.queueLength() === 0
  })
  const living = new Set((await system.figures('gearbox_producer_increments')).flatMap(
    ({ labels }) => /producer="(.*)"/.exec(labels)?.[1] ?? []
  ))
  for (const { producer, gaps } of readGaps(db)) {
    if (living.has(producer)) problems.push(`worker ${producer} lives and has gaps ${gaps}`)
    else if (ledger.lostWithWorker === 0) {
      problems.push(
      `worker ${producer} is gone and has gaps ${gaps}, and nothing explains a loss`
      )
    }
  }
  const { code, output } = await system.verify()
  if (code !== 0 && ledger.lostWithWorker === 0) problems.push(`verify exits with ${code}:\n${output}`)
  await system.stopProduct()
  await system.stopOtherConsumer()
  if (await system.queueLength() !== 0) problems.push(`${await system.queueLength()} batches are left in the queue`)
  if (system.unsentFiles().length > 0) problems.push(`unsent files are left: ${system.unsentFiles().join(' ')}`)
  const integrity = db.pragma('integrity_check', { simple: true })
  if (integrity !== 'ok') problems.push(`integrity_check: ${String(integrity)}`)
  plant?.(system.databasePath)
  ledger.tickets.judge(db)
  return ledger.judge()
}

function readGaps (db: Database.Database): Array<{ producer: string, gaps: string }> {
  return db.prepare<[], { producer: string, gaps: string }>("SELECT producer, gaps FROM producers WHERE gaps <> '[]'")
    .all()
}
