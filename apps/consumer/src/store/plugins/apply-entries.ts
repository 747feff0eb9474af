// Applies the entries of plugins, one by one in savepoints, in the transaction of their run and after its sums. Each
// gets an outcome, which is written in the same transaction.
import { createHash } from 'node:crypto'
import type { Header } from '@gearbox/protocol/batch.ts'
import {
  isOutcome, resultBytesMax, type EntryError, type Json, type PluginEntry,
} from '@gearbox/protocol/plugin-entry.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import type { Connection } from '../connection.ts'
import type { FreshBatch, Run } from '../run.ts'
import { refusePromise, RunAbandonedError } from './consumer-plugins.ts'
import { correctionsName } from './corrections.ts'
import type { EntryOutcomeText } from './tally.ts'

/**
 * Entries of one plugin in one batch that may end the transaction. Each of them makes the whole run begin again, so
 * after as many the others fail without being tried.
 */
const endingMax = 10

/** An entry has ended the transaction by itself. It is not to be tried again. */
export class EntryEndedTransactionError extends RunAbandonedError {
  readonly entry: string

  constructor (entry: string) {
    super(`an entry has ended the transaction: ${entry}`)
    this.entry = entry
  }
}

/**
 * Applies the entries of a batch.
 * @param ending entries that have ended a transaction before
 * @throws EntryEndedTransactionError at another one of those; RunAbandonedError; nothing may be executed then
 */
export function applyEntries (
  connection: Connection, run: Run, { header, entries = [] }: FreshBatch, ending: ReadonlySet<string>
): void {
  const ended = new Map<string, number>()
  for (const [i, entry] of entries.entries()) {
    const { plugin } = entry
    const name = `${header.producer} ${header.seq} entry ${i} of ${plugin}`
    const hasEnded = ending.has(name)
    const endedBefore = ended.get(plugin) ?? 0
    if (hasEnded) ended.set(plugin, endedBefore + 1)
    const attempt = hasEnded || endedBefore >= endingMax
      ? failed(plugin, 'entries of it ended the transaction')
      : applyOne(connection, run, header, entry, i, name)
    connection.results.write(header.producer, header.seq, i, attempt.text, connection.clock.now())
    run.ofPlugins.addOutcome(header.producer, header.seq, i, plugin, attempt)
  }
}

function applyOne (
  connection: Connection, run: Run, header: Header, entry: PluginEntry, i: number, name: string
): EntryOutcomeText {
  const { plugins, idempotency } = connection
  const { plugin, data, id, at: acceptedAt = header.at } = entry
  if (!plugins.has(plugin)) {
    return refused({ statusCode: 503, code: 'GBX_NO_PLUGIN', message: `the consumer has no plugin ${plugin}` })
  }
  if (id === undefined) return applyInSavepoint(connection, run, header, entry, i, name)
  const hash = hashOf(plugin, data)
  if (hash === undefined) return failed(plugin, 'its data is nested too deep')
  const at = Math.min(acceptedAt, run.now)
  const seen = idempotency.find(id, hash, at, run.now)
  if (seen !== undefined) return 'reason' in seen ? refused(errorOf[seen.reason]) : repeated(seen.result)
  const attempt = applyInSavepoint(connection, run, header, entry, i, name)
  if ('result' in attempt.outcome) idempotency.recordEntry(id, hash, at, JSON.stringify(attempt.outcome.result))
  return attempt
}

function applyInSavepoint (
  { statements, plugins }: Connection, run: Run, header: Header, { plugin, data }: PluginEntry, i: number, name: string
): EntryOutcomeText {
  const { producer, seq } = header
  statements.savepoint.run()
  let attempt: EntryOutcomeText
  try {
    const applied = { data, producer, seq, entry: i, at: Math.min(header.at, run.now) }
    attempt = succeeded(plugin, plugins.apply(plugin, applied, run.now))
  } catch (error) {
    attempt = threw(plugin, error)
  }
  if (!plugins.endCall()) throw new EntryEndedTransactionError(name)
  if ('error' in attempt.outcome) statements.rollbackToSavepoint.run()
  statements.release.run()
  if ('result' in attempt.outcome) run.ofPlugins.addChange(plugin, attempt.outcome.result, correctedKey(plugin, data))
  return attempt
}

function correctedKey (plugin: string, data: Json): string | undefined {
  if (plugin !== correctionsName || typeof data !== 'object' || data === null || !('key' in data)) return undefined
  return typeof data.key === 'string' ? data.key : undefined
}

const errorOf = {
  'other body': {
    statusCode: 422,
    code: 'GBX_OTHER_BODY',
    message: 'this Idempotency-Key was already used with a different body; nothing of this one was done',
  },
  'too late': {
    statusCode: 422,
    code: 'GBX_TOO_LATE',
    message: 'this Idempotency-Key came so late that it may be a repeat; nothing of it was done',
  },
} as const

function repeated (text: string): EntryOutcomeText {
  return { outcome: { result: JSON.parse(text) }, text: `{"result":${text}}` }
}

function refused (error: EntryError): EntryOutcomeText {
  const outcome = { error }
  return { outcome, text: JSON.stringify(outcome) }
}

/** The plugin has returned something. Its copy is what counts: the plugin may change the object later. */
function succeeded (plugin: string, result: unknown): EntryOutcomeText {
  refusePromise(result)
  return keep({ result }) ?? failed(plugin, `its result is no JSON of at most ${resultBytesMax} bytes`)
}

function threw (plugin: string, error: unknown): EntryOutcomeText {
  try {
    // By its name, as a plugin from elsewhere may have another copy of the class.
    if (error instanceof Error && error.name === 'EntryRefusedError' && 'entryError' in error) {
      const { entryError } = error
      return keep({ error: entryError }) ?? failed(plugin, 'what it refused an entry with is no error reply')
    }
    return failed(plugin, reasonOf(error))
  } catch {
    // Its fields can be the plugin's own code, which throws in turn.
    return failed(plugin, 'it threw what can not be read')
  }
}

/** @returns undefined if it is not an outcome that can be kept */
function keep (value: { readonly result: unknown } | { readonly error: unknown }): EntryOutcomeText | undefined {
  let text: string
  let outcome: unknown
  try {
    text = JSON.stringify(value)
    outcome = JSON.parse(text)
  } catch {
    return undefined
  }
  return isOutcome(outcome) && Buffer.byteLength(text) <= resultBytesMax ? { outcome, text } : undefined
}

function failed (plugin: string, failure: string): EntryOutcomeText {
  const message = `the plugin ${plugin} failed; the consumer's log says why. Nothing of this was done`
  return { ...refused({ statusCode: 500, code: 'GBX_PLUGIN_FAILED', message }), failure }
}

/** The same for the same data of a plugin, in whatever order its fields were written; undefined if it is too deep. */
function hashOf (plugin: string, data: Json): string | undefined {
  try {
    return createHash('sha256').update(`${plugin} ${canonical(data)}`).digest('hex')
  } catch (error) {
    // It has more levels than the stack.
    if (error instanceof RangeError) return undefined
    throw error
  }
}

function canonical (value: Json): string {
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  const fields = Object.entries(value).sort(([one], [other]) => one < other ? -1 : 1)
  return `{${fields.map(([name, field]) => `${JSON.stringify(name)}:${canonical(field)}`).join(',')}}`
}
