// One chaos run: start, count under faults, come to rest, hold the database against what the clients were told.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { until } from '../fixtures/until.ts'
import { Client } from './client.ts'
import { schedule, type Step } from './faults.ts'
import { describe, Ledger, verdictOf } from './ledger.ts'
import { Random } from './random.ts'
import { System, type Queue } from './system.ts'

export interface ChaosOptions {
  readonly seed: number
  readonly queue: Queue
  /** From the first process's start to the last one's end, about; what is left at the end comes to rest meanwhile. */
  readonly durationMs: number
}

export interface ChaosResult {
  /** One line. */
  readonly summary: string
  /** What is wrong, with the schedule; empty if nothing is. */
  readonly problems: readonly string[]
}

const clientCount = 16

/** Of the time, what rest usually takes. */
const restMs = 6000

/** Past the longest stand-still of a worker and its ack timeout. */
const deadlineSlackMs = 9000

const settleMs = 15_000

/** Of the idempotent requests that must have counted, one of so many is repeated at rest. */
const repeatedOf = 20

const sweepMs = 500

export async function runChaos ({ seed, queue, durationMs }: ChaosOptions): Promise<ChaosResult> {
  const endAt = performance.now() + durationMs
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-chaos-'))
  const random = new Random(seed)
  const ackTimeoutMs = random.pick([1000, 2000, 5000])
  const settings = {
    ACK_TIMEOUT_MS: String(ackTimeoutMs),
    FLUSH_INTERVAL_MS: random.pick(['auto', 'auto', '20', '300']),
    COMMIT_INTERVAL_MS: random.pick(['20', '20', '0', '150']),
    WEB_WORKERS: random.pick(['2', '3']),
  }
  const system = await System.start(queue, dir, { ...settings, LOG_LEVEL: 'info' })
  const db = new Database(system.databasePath, { readonly: true })
  const ledger = new Ledger(join(dir, 'operations.jsonl'), db)
  system.ledger = ledger
  const happened: string[] = []
  const clients = Array.from({ length: clientCount }, (_, i) => new Client({
    name: `c${i}`, random: random.fork(), ledger, url: system.url, deadlineMs: ackTimeoutMs + deadlineSlackMs, queuedIsStored: queue === 'embedded', openPorts: system.openPorts,
  }))
  const steps = schedule(random.fork(), queue)
  const sweeps = setInterval(() => ledger.sweep(), sweepMs)
  let verdicts: Record<string, number> = {}
  // The product leads a process group of its own, so a Ctrl-C reaches only us.
  const interrupted = (): void => { system.end().finally(() => process.exit(1)) }
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted)
  try {
    for (const client of clients) client.start()
    for (const step of steps) {
      if (performance.now() + step.pauseMs > endAt - restMs) break
      await runStep(system, ledger, step, happened)
      if (ledger.problems.length > 0) break
    }
    await Promise.all(clients.map(async (client) => { await client.stop() }))
    verdicts = await rest(system, ledger, clients, db)
  } catch (error) {
    ledger.problems.push(error instanceof Error ? error.stack ?? error.message : String(error))
  }
  for (const client of clients) client.close()
  clearInterval(sweeps)
  await Promise.all(clients.map(async (client) => { await client.stop() }))
  await system.end()
  process.off('SIGINT', interrupted).off('SIGTERM', interrupted)
  ledger.close()
  db.close()
  const statuses = new Map<number, number>()
  for (const client of clients) for (const [status, count] of client.statuses) statuses.set(status, (statuses.get(status) ?? 0) + count)
  const answers = [...statuses].sort().map(([status, count]) => `${count} × ${status}`).join(', ')
  const found = Object.entries(verdicts).map(([verdict, count]) => `${count} ${verdict}`).join(', ')
  const summary = `seed ${seed}, ${queue}: ${happened.length} faults, ${ledger.operations.length} operations (${found}; ${ledger.excused} excused), answers ${answers}; ` +
    `slowest recovery ${Math.round(system.slowestRecovery)} ms, most memory ${Math.round(system.rss.most / 2 ** 20)} MiB`
  if (ledger.problems.length === 0) {
    rmSync(dir, { recursive: true, force: true })
    return { summary, problems: [] }
  }
  writeFileSync(join(dir, 'output.log'), system.output)
  return {
    summary,
    problems: [`seed ${seed}, ${queue}, ${JSON.stringify(settings)}; files are kept in ${dir}`, ...happened, ...ledger.problems],
  }
}

async function runStep (system: System, ledger: Ledger, { pauseMs, offsetMs, faults }: Step, happened: string[]): Promise<void> {
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
  // Whoever dies later is no excuse for what should have been stored by then. What a worker had to leave in a file waits for a start.
  await until('what was answered before and under a fault to be stored', () => ledger.owed(over).length === 0 || system.unsentFiles().length > 0)
    .catch((error: unknown) => { throw new Error(`not stored after ${faults.map(({ text }) => text).join(' and ')}:\n${ledger.owed(over).slice(0, 10).map(({ operation }) => describe(operation)).join('\n')}`, { cause: error }) })
  ledger.note('recovered')
}

/** Comes to rest and compares. */
async function rest (system: System, ledger: Ledger, clients: readonly Client[], db: Database.Database): Promise<Record<string, number>> {
  const { problems } = ledger
  ledger.note('rest')
  system.heal()
  await system.recovered()
  // Whatever became of them until now, at rest they are told as stored, and have counted once.
  const deadline = performance.now() + settleMs
  const open = ledger.operations.filter((operation) => operation.idempotencyKey !== undefined && (verdictOf(operation) !== 'counted' || operation.id % repeatedOf === 0))
  const unsettled: number[] = []
  await Promise.all(clients.map(async (client) => {
    for (let operation = open.shift(); operation !== undefined; operation = open.shift()) {
      if (!await client.settle(operation, deadline)) unsettled.push(operation.id)
    }
  }))
  if (unsettled.length > 0) problems.push(`not told as stored within ${settleMs} ms at rest: operations ${unsettled.slice(0, 20).join(', ')} (${unsettled.length})`)
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
  const living = new Set((await system.figures('gearbox_producer_increments')).flatMap(({ labels }) => /producer="(.*)"/.exec(labels)?.[1] ?? []))
  for (const { producer, gaps } of readGaps(db)) {
    if (living.has(producer)) problems.push(`worker ${producer} lives and has gaps ${gaps}`)
    else if (ledger.lostWithWorker === 0) problems.push(`worker ${producer} is gone and has gaps ${gaps}, and nothing explains a loss`)
  }
  const { code, output } = await system.verify()
  if (code !== 0 && ledger.lostWithWorker === 0) problems.push(`verify exits with ${code}:\n${output}`)
  await system.stopProduct()
  await system.stopOtherConsumer()
  if (await system.queueLength() !== 0) problems.push(`${await system.queueLength()} batches are left in the queue`)
  if (system.unsentFiles().length > 0) problems.push(`unsent files are left: ${system.unsentFiles().join(' ')}`)
  const integrity = db.pragma('integrity_check', { simple: true })
  if (integrity !== 'ok') problems.push(`integrity_check: ${String(integrity)}`)
  const rejected = db.prepare('SELECT count(*) FROM rejected').pluck().get()
  if (rejected !== 0) problems.push(`${String(rejected)} entries were rejected`)
  return ledger.judge()
}

function readGaps (db: Database.Database): Array<{ producer: string, gaps: string }> {
  return db.prepare<[], { producer: string, gaps: string }>("SELECT producer, gaps FROM producers WHERE gaps <> '[]'").all()
}
