// The totals in a database, now or at some time before, read without ever writing to it.
import { closeSync, mkdirSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import Database from 'better-sqlite3'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'

/** @throws FatalError */
export function openDatabase (path: string): Database.Database {
  try {
    const db = new Database(path, { readonly: true, fileMustExist: true })
    db.prepare('SELECT key, value FROM numbers LIMIT 1').get()
    return db
  } catch (error) {
    throw new FatalError(`no totals can be read from ${path}: ${reasonOf(error)}`, 2)
  }
}

/** Every key and its total, as they stand at one moment. @throws FatalError for a total that is no integer */
export function * totalsOf (db: Database.Database): Generator<[key: string, total: bigint]> {
  const rows = db.prepare<[], { key: unknown, value: unknown }>('SELECT key, value FROM numbers').safeIntegers()
    .iterate()
  for (const { key, value } of rows) {
    if (typeof key !== 'string' || typeof value !== 'bigint') {
      throw new FatalError(`${db.name} has a row that is no key and integer: ${String(key)}, ${String(value)}`, 2)
    }
    yield [key, value]
  }
}

/** Increments that the consumer could not apply: how many wait in `rejected`. */
export function countRejected (db: Database.Database): bigint {
  const table = db.prepare("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'rejected'").get()
  return table === undefined
    ? 0n
    : db.prepare<[], bigint>('SELECT count(*) FROM rejected').pluck().safeIntegers().get() ?? 0n
}

/** Writes down every total for a later comparison. @returns how many they are @throws FatalError */
export function saveBaseline (db: Database.Database, path: string): number {
  const entries = [...totalsOf(db)].map(([key, total]) => `${JSON.stringify(key)}:"${total}"`)
  try {
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, `{${entries.join(',\n')}}\n`)
  } catch (error) {
    throw new FatalError(`the baseline can't be written: ${reasonOf(error)}`, 2)
  }
  return entries.length
}

/** @param path what saveBaseline wrote, or a database: a copy made before the attack */
export function readBaseline (path: string): Map<string, bigint> {
  if (isDatabase(path)) {
    const db = openDatabase(path)
    try {
      return new Map(totalsOf(db))
    } finally {
      db.close()
    }
  }
  try {
    const totals: unknown = JSON.parse(readFileSync(path, 'utf8'))
    if (typeof totals !== 'object' || totals === null) throw new Error('it is no JSON object')
    return new Map(Object.entries(totals).map(([key, total]) => [key, BigInt(String(total))]))
  } catch (error) {
    throw new FatalError(`${path} is no baseline: ${reasonOf(error)}`, 2)
  }
}

function isDatabase (path: string): boolean {
  const magic = Buffer.alloc(15)
  try {
    const file = openSync(path, 'r')
    readSync(file, magic)
    closeSync(file)
  } catch (error) {
    throw new FatalError(`the baseline can't be read: ${reasonOf(error)}`, 2)
  }
  return magic.toString('latin1') === 'SQLite format 3'
}

export interface DrainOptions {
  /** Web workers, or one of npm start, whose /metrics tell what still waits. */
  readonly urls: readonly string[]
  readonly apiKey: string | undefined
  /** For so long the database must not have changed. */
  readonly quietMs: number
  readonly deadlineMs: number
}

const pollMs = 100

/** Resolves when nothing waits any more and the database has come to rest. @throws FatalError at the deadline */
export async function drained (db: Database.Database, {
  urls,
  apiKey,
  quietMs,
  deadlineMs,
}: DrainOptions): Promise<void> {
  const deadline = performance.now() + deadlineMs
  // Changes with every commit of another connection.
  const version = (): unknown => db.pragma('data_version', { simple: true })
  let last = version()
  let quietSince = performance.now()
  for (;;) {
    const waiting = (await Promise.all(urls.map(async (url) => await waitingAt(url, apiKey)))).find(
      (what) => what !== undefined
    )
    const now = version()
    if (waiting !== undefined || now !== last) quietSince = performance.now()
    last = now
    if (performance.now() - quietSince >= quietMs) return
    if (performance.now() > deadline) {
      throw new FatalError(`after ${deadlineMs} ms ${waiting ?? 'the database still changes'}: is something still ` +
        'sending, or the consumer down?', 2)
    }
    await delay(Math.min(pollMs, quietMs))
  }
}

const waitingMetrics = ['gearbox_pending_keys', 'gearbox_unstored_batches', 'gearbox_queue_length']

/** What still waits to be stored; undefined: nothing. */
async function waitingAt (url: string, apiKey: string | undefined): Promise<string | undefined> {
  let text: string
  try {
    const response = await fetch(`${url.replace(/\/$/, '')}/metrics`,
      { headers: apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }, signal: AbortSignal.timeout(5000) })
    text = await response.text()
    if (response.status !== 200) throw new Error(`${response.status} ${text.slice(0, 200)}`)
  } catch (error) {
    throw new FatalError(`${url}/metrics can't be read: ${reasonOf(error)} ` +
      `(${error instanceof Error && error.cause !== undefined ? reasonOf(error.cause) : 'no more is known'}). ` +
      'Without --url the database alone is watched', 2)
  }
  const values =
    waitingMetrics.map((name) => [name, new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, 'm').exec(text)?.[1]] as const)
  if (values.every(([, value]) => value === undefined)) {
    throw new FatalError(`${url}/metrics has none of ${waitingMetrics.join(', ')}`, 2)
  }
  const waiting = values.filter(([, value]) => value !== undefined && Number(value) !== 0)
  return waiting.length === 0 ? undefined : waiting.map(([name, value]) => `${name} is ${value}`).join(', ')
}
