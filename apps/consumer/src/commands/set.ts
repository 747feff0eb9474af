// `npm run gearbox -- set KEY VALUE`: sets a total in the database, or removes it, while the consumer goes on.
import { existsSync } from 'node:fs'
import { parseInt64 } from '@gearbox/protocol/int64.ts'
import { keyProblem } from '@gearbox/protocol/key.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { createLogger } from '@gearbox/runtime/log/logger.ts'
import { EntryRefusedError, type LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { defineCommand } from '@gearbox/runtime/process/command.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { isBusy } from '../store/open.ts'
import { Store } from '../store/store.ts'

const usage = `What workers have accepted and the consumer has not stored yet is added to the new total.
Every correction is kept in the table corrections.
Exit code 0: done; 1: there is no such total, or it is not what --if-total says, and nothing was changed.

usage: npm run gearbox -- set KEY VALUE      sets the total of KEY
       npm run gearbox -- set KEY --delete   removes it

  --if-total  only if the total is exactly this`

const settings = [
  'databasePath', 'idempotencyHours', 'idempotencyRowsMax', 'rejectedRowsMax', 'rejectedBytesMax', 'plugins',
] as const

/** What is to be done. */
interface Correction {
  readonly key: string
  /** Null: the total is removed. */
  readonly total: string | null
  readonly if?: string
}

/** `npm run gearbox -- set`. */
export const command = defineCommand({
  name: 'set',
  summary: 'Sets the total of a key, or removes it.',
  usage,
  options: { delete: { type: 'boolean' }, 'if-total': { type: 'string' } },
  positionals: true,
  settings,
  run: async ({ values, positionals }, config, plugins) =>
    set(parse(positionals, values.delete === true, values['if-total']), config, plugins),
})

/** @returns the exit code */
function set (
  correction: Correction, config: Pick<Config, typeof settings[number]>, loaded: readonly LoadedPlugin[]
): number {
  const { databasePath } = config
  if (!existsSync(databasePath)) {
    throw new FatalError(`there is no database ${databasePath}; DATABASE_PATH names it`)
  }
  let store: Store | undefined
  try {
    store = new Store({ ...config, path: databasePath, pluginParts: { loaded, logger: createLogger('set', 'warn') } })
    const { before, after } = store.correct({ ...correction, by: 'gearbox set' })
    process.stdout.write(`${JSON.stringify(correction.key)}: ${shown(before)} → ${shown(after)}\n`)
    return 0
  } catch (error) {
    if (isBusy(error)) throw new FatalError(`${databasePath} is locked by another program; try again`)
    if (!(error instanceof EntryRefusedError)) throw error
    process.stderr.write(`gearbox: ${error.message}\n`)
    return 1
  } finally {
    store?.close()
  }
}

/** @throws FatalError (usage) */
function parse (words: readonly string[], isDelete: boolean, required: string | undefined): Correction {
  const [key, value, ...more] = words
  if (key === undefined || more.length > 0 || (value === undefined) !== isDelete) {
    throw new FatalError('name a key and its new total, or a key and --delete: npm run gearbox -- set KEY VALUE',
      exitCode.usage)
  }
  if (!isDelete) checkKey(key)
  return {
    key,
    total: value === undefined ? null : integer('VALUE', value),
    ...(required === undefined ? {} : { if: integer('--if-total', required) }),
  }
}

/** Nobody could count with a key that counting would refuse. @throws FatalError (usage) */
function checkKey (key: string): void {
  const problem = keyProblem(key)
  if (problem === undefined) return
  throw new FatalError(`the key ${JSON.stringify(key.slice(0, 64))} ${problem}`, exitCode.usage)
}

/** @returns the integer, written as the database would write it @throws FatalError (usage) */
function integer (name: string, text: string): string {
  const value = parseInt64(text)
  if (value !== undefined) return String(value)
  throw new FatalError(`${name} must be a whole number within 64 bits, not ${JSON.stringify(text.slice(0, 64))}`,
    exitCode.usage)
}

function shown (total: string | null): string {
  return total ?? 'no total'
}
