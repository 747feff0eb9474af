// `npm run rejected`: lists what was promised and could not be applied, tries it again or discards it on request.
import { existsSync } from 'node:fs'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { createLogger } from '@gearbox/runtime/log/logger.ts'
import { printLines } from '@gearbox/runtime/log/output.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { defineCommand } from '@gearbox/runtime/process/command.ts'
import { isBusy } from '../store/open.ts'
import type { Rejected } from '../store/rejections.ts'
import { Store } from '../store/store.ts'

const usage = `One line each: id, reason, keys with their sums, when it was accepted, and by which worker.
What was refused is not in the list: its client knows.

usage: npm run rejected                     lists
       npm run rejected -- --retry ID       tries that one again, and counts it if it now can be
       npm run rejected -- --retry all      tries all of them again
       npm run rejected -- --discard ID     removes that one: it will never be counted
       npm run rejected -- --discard all    removes all of them`

/** Rows that are read at once: one may have a thousand keys. */
const pageRows = 100

const idMax = 2n ** 63n - 1n

const settings = [
  'databasePath', 'idempotencyHours', 'idempotencyRowsMax', 'rejectedRowsMax', 'rejectedBytesMax', 'plugins',
] as const

/** `npm run rejected`. */
export const command = defineCommand({
  name: 'rejected',
  summary: 'Lists what was promised (2xx) and could not be applied; tries it again, or discards it.',
  usage,
  options: { retry: { type: 'string', multiple: true }, discard: { type: 'string', multiple: true } },
  settings,
  run: async ({ values }, config, plugins) => await listOrSettle(values, config, plugins),
})

/** The options as they were given; without either, all are listed. */
interface Choice {
  readonly retry?: readonly string[] | undefined
  readonly discard?: readonly string[] | undefined
}

/** @returns the exit code */
async function listOrSettle (
  { retry, discard }: Choice, config: Pick<Config, typeof settings[number]>, plugins: readonly LoadedPlugin[]
): Promise<number> {
  if (retry !== undefined && discard !== undefined) throw new FatalError('--retry or --discard, not both at once')
  const [texts, option] = retry === undefined ? [discard, '--discard'] : [retry, '--retry']
  const ids = texts === undefined || texts.includes('all') ? undefined : texts.map((text) => parseId(text, option))
  if (!existsSync(config.databasePath)) {
    throw new FatalError(`there is no database ${config.databasePath}; DATABASE_PATH names it`)
  }
  let store: Store | undefined
  try {
    // Plugins follow what is counted.
    const loaded = retry === undefined ? [] : plugins
    const pluginParts = { loaded, logger: createLogger('rejected', 'warn') }
    store = new Store({ ...config, path: config.databasePath, pluginParts })
    if (texts === undefined) {
      await printLines(list(store))
      return 0
    }
    return await settle(store, ids ?? allIds(store), retry === undefined ? discardEntry : retryEntry)
  } catch (error) {
    throw isBusy(error) ? new FatalError(`${config.databasePath} is locked by another program; try again`) : error
  } finally {
    store?.close()
  }
}

/** Prints what became of each entry. @returns the exit code: 1 if any failed */
async function settle (store: Store, ids: Iterable<bigint>, act: (store: Store, id: bigint) => Done): Promise<number> {
  let failures = 0
  const lines = function * (): Generator<string> {
    for (const id of ids) {
      const { text, failed } = act(store, id)
      if (failed) failures++
      yield `${id}: ${text}`
    }
  }
  await printLines(lines())
  return failures === 0 ? 0 : 1
}

function parseId (text: string, option: string): bigint {
  const id = /^\d{1,19}$/.test(text) ? BigInt(text) : undefined
  if (id === undefined || id > idMax) {
    throw new FatalError(`${option} takes an id from the list, or all, not ${JSON.stringify(text.slice(0, 64))}`)
  }
  return id
}

function * rows (store: Store): Generator<Rejected> {
  for (let after = 0n; ;) {
    const page = store.rejected(after, pageRows)
    if (page.length === 0) return
    yield * page
    after = page.at(-1)!.id
  }
}

function * allIds (store: Store): Generator<bigint> {
  for (const { id } of rows(store)) yield id
}

function * list (store: Store): Generator<string> {
  let any = false
  for (const row of rows(store)) {
    any = true
    yield describe(row)
  }
  if (!any) yield 'nothing was rejected'
}

interface Done { readonly text: string, readonly failed: boolean }

function retryEntry (store: Store, id: bigint): Done {
  const why = store.retryRejected(id)
  return { text: why === undefined ? 'counted' : `not counted, ${why}`, failed: why !== undefined }
}

function discardEntry (store: Store, id: bigint): Done {
  const failed = !store.discardRejected(id)
  return { text: failed ? 'there is no such entry' : 'discarded', failed }
}

function describe ({ id, producer, seq, reason, at, entries, batchBytes }: Rejected): string {
  const what = entries === undefined
    ? batchBytes === null ? 'nothing that can be counted' : `a batch of ${batchBytes} bytes`
    : entries.map(({ key, value }) => `${JSON.stringify(key)} ${value}`).join(', ')
  const from = producer === null ? '' : `, worker ${producer}, batch ${seq}`
  return `${id}: ${reason}: ${what} (${describeTime(at)}${from})`
}

/** What another program wrote into the queue may have a time that is not a date. */
function describeTime (at: bigint): string {
  const date = new Date(Number(at))
  return Number.isNaN(date.getTime()) ? `at ${at}` : date.toISOString()
}
