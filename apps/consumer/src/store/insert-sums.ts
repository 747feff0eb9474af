// Adds the sums of a whole run in one statement: SQLite's JSON functions over the batches' bytes. Why it is so:
// DESIGN.md.
import Database from 'better-sqlite3'
import { NeedsCheckingError } from './batch-reader.ts'
import type { Connection } from './connection.ts'
import { isConstraint } from './owner-triggers.ts'
import type { FreshBatch } from './run.ts'

/**
 * Where batches are longer than this on average, about 3,000 keys, a run is inserted in the order of its keys. Keys of
 * one batch are distinct, so they fall all over a large table, and in order each page of it is visited once: more than
 * twice as fast on a million rows. Short batches mostly repeat each other's keys, and to sort those costs more than it
 * saves. To sort a single one costs nothing that could be measured.
 */
const largeBatchLength = 64 * 1024

/**
 * Adds all sums of a run. Whatever SQLite finds wrong with them, the statement does not say where.
 * @param guarded whether a trigger may leave rows out
 * @throws NeedsCheckingError if not all of them can be added, or are not sums; any other SQLite error
 */
export function insertSums (connection: Connection, batches: readonly FreshBatch[], guarded: boolean): void {
  const [first] = batches
  try {
    if (first !== undefined && batches.length === 1) insertOne(connection, first, guarded)
    else insertJoined(connection, batches, guarded)
  } catch (error) {
    // DATATYPE: a total left 64 bits, or a value is no integer; any other constraint is not ours.
    // ERROR: one nests as deep as SQLite goes, and the run one deeper.
    const isOfBatch = isConstraint(error) || (error instanceof Database.SqliteError && error.code === 'SQLITE_ERROR')
    throw isOfBatch ? new NeedsCheckingError() : error
  }
}

function insertOne ({ statements, reader }: Connection, batch: FreshBatch, guarded: boolean): void {
  // What is no JSON inserts nothing; neither does a batch without sums.
  if (batch.json.includes('\0')) throw new NeedsCheckingError()
  const { changes } = statements.insertBatch.run(batch)
  if (changes === 0 && !reader.isJson(batch.json)) throw new NeedsCheckingError()
  if (guarded && changes !== statements.countSums.get(`[${batch.json}]`)) throw new NeedsCheckingError()
}

function insertJoined ({ statements, reader }: Connection, batches: readonly FreshBatch[], guarded: boolean): void {
  // Joined, one that closes braces which another opened could hide its neighbour's sums.
  if (!batches.every(({ json }) => reader.isJson(json))) throw new NeedsCheckingError()
  const run = `[${batches.map(({ json }) => json).join(',')}]`
  const areLarge = run.length > batches.length * largeBatchLength
  const { changes } = (areLarge ? statements.insertRunInOrder : statements.insertRun).run(run)
  if (guarded && changes !== statements.countSums.get(run)) throw new NeedsCheckingError()
}
