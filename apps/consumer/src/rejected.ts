// `npm run rejected`: lists what could not be applied, and tries it again on request.
import { existsSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { describeConfig, loadConfig } from '@gearbox/runtime/config.ts'
import { FatalError, runMain } from '@gearbox/runtime/errors.ts'
import { isBusy, Store, type Rejected } from './store.ts'

const usage = `Lists what could not be applied, one line each.

usage: npm run rejected                   lists
       npm run rejected -- --retry ID     tries that one again, and counts it if it now can be
       npm run rejected -- --retry all    tries all of them again

Reads DATABASE_PATH. Environment:
`

async function main (): Promise<number> {
  const { values } = parseArgs({ options: { help: { type: 'boolean', short: 'h' }, retry: { type: 'string', multiple: true } } })
  if (values.help === true) {
    process.stdout.write(`${usage}${describeConfig()}\n`)
    return 0
  }
  const config = loadConfig(process.env)
  if (!existsSync(config.databasePath)) throw new FatalError(`there is no database ${config.databasePath}; DATABASE_PATH names it`)
  let store: Store | undefined
  try {
    store = new Store({ ...config, path: config.databasePath })
    const rejected = store.rejected()
    if (values.retry === undefined) {
      process.stdout.write(rejected.length === 0 ? 'nothing was rejected\n' : `${rejected.map(describe).join('\n')}\n`)
      return 0
    }
    const ids = values.retry.includes('all') ? rejected.map(({ id }) => id) : values.retry.map(parseId)
    const opened = store
    const failures = ids.map((id) => retry(opened, id)).filter((failed) => failed)
    return failures.length === 0 ? 0 : 1
  } catch (error) {
    throw isBusy(error) ? new FatalError(`${config.databasePath} is locked by somebody else; try again`) : error
  } finally {
    store?.close()
  }
}

function parseId (text: string): bigint {
  if (!/^\d{1,18}$/.test(text)) throw new FatalError(`--retry takes an id from the list, or all, not ${JSON.stringify(text)}`)
  return BigInt(text)
}

/** @returns whether it failed */
function retry (store: Store, id: bigint): boolean {
  const why = store.retryRejected(id)
  process.stdout.write(`${id}: ${why === undefined ? 'counted' : `not counted, ${why}`}\n`)
  return why !== undefined
}

function describe ({ id, producer, seq, key, value, reason, at }: Rejected): string {
  const what = key === null ? 'a whole batch or request' : `${JSON.stringify(key)} ${value ?? ''}`.trim()
  return `${id}: ${reason}: ${what} (${new Date(Number(at)).toISOString()}${producer === null ? '' : `, worker ${producer}, batch ${seq}`})`
}

await runMain(main)
