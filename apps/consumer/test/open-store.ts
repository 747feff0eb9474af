// A store on a real file that only this test has, and queries of what is in it.
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { onTestFinished } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { captureLog } from '@gearbox/test-kit/captured-log.ts'
import { Store } from '../src/store/store.ts'

export interface StoreSettings {
  readonly path?: string
  readonly idempotencyHours?: number
  readonly idempotencyRowsMax?: number
  readonly plugins?: readonly LoadedPlugin[]
}

export function freshPath (): string {
  return join(temporaryDir(), 'numbers.db')
}

export function openStore ({
  path = freshPath(),
  idempotencyHours = 24,
  idempotencyRowsMax = 1000,
  plugins = [],
}: StoreSettings = {}): { store: Store, path: string } {
  const options = { loaded: plugins, logger: captureLog().logger }
  const store = new Store({ path, idempotencyHours, idempotencyRowsMax, pluginParts: options })
  onTestFinished(() => store.close())
  return { store, path }
}

/** Rows of a query, each as a list of its columns; every integer is a bigint. */
export function query (path: string, sql: string): unknown[][] {
  const db = new Database(path, { readonly: true })
  try {
    return db.prepare<[], unknown[]>(sql).safeIntegers().raw().all()
  } finally {
    db.close()
  }
}

export function totals (path: string): { [key: string]: bigint } {
  return Object.fromEntries(query(path,
    'SELECT key, value FROM numbers ORDER BY key').map(([key, value]) => [String(key), BigInt(String(value))]))
}
