// Counts the keys of a database for key-counter.ts, once. The table is read in slices, each a separate snapshot
// of about 3 ms: a snapshot of the whole table would keep every checkpoint from cutting back the WAL for as long as the
// count takes.
import { parentPort, workerData } from 'node:worker_threads'
import type Database from 'better-sqlite3'
import { openForReading } from '@gearbox/runtime/open-for-reading.ts'

const sliceKeys = 20_000

/**
 * After a slice it rests this many times as long as the slice took, so that counting takes a tenth of a core at most.
 */
const restFactor = 9

const busyTimeoutMs = 250

interface Slice { readonly keys: number, readonly last: string | null }

function count (path: string): number {
  const db = openForReading(path, busyTimeoutMs)
  try {
    const slice = (condition: string): Database.Statement<unknown[], Slice> => db.prepare(`
      SELECT count(*) AS keys, max(key) AS last
      FROM (SELECT key FROM numbers ${condition} ORDER BY key LIMIT ${sliceKeys})`)
    const next = slice('WHERE key > ?')
    let found = slice('').get()
    let keys = 0
    while (found !== undefined && found.last !== null) {
      const startedAt = performance.now()
      keys += found.keys
      if (found.keys < sliceKeys) break
      found = next.get(found.last)
      rest((performance.now() - startedAt) * restFactor)
    }
    return keys
  } finally {
    db.close()
  }
}

/** This thread has nothing else to do. */
function rest (ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)
}

parentPort?.postMessage(count(String(workerData)))
