// The statements that the store's transactions run, prepared once per connection. Statements of the tables `rejected`
// and `reports` are next to the classes that keep those tables.
import type Database from 'better-sqlite3'
import { none, parseSequences, type Sequences } from '@gearbox/protocol/sequences.ts'

/** No worker counts that far; an element of another program must not make a producer's row leave 64 bits. */
const tallyMax = Number.MAX_SAFE_INTEGER

/** A key and its sum, exact. */
export interface Entry { readonly key: string, readonly value: bigint }

/** What a row of `producers` says of the sequences that are stored. */
export interface ProducerRow { readonly high: number, readonly gaps: string }

/** A producer's row with the counts that its new batches add to it. */
export interface ProducerUpdate extends ProducerRow {
  readonly producer: string
  readonly requests: number
  readonly increments: number
  /** Unix ms. */
  readonly seenAt: number
}

/** An idempotent request as its batch has it: any of it may be of another type, or missing. */
export interface RawIdempotentRequest {
  readonly id: unknown
  readonly at: unknown
  readonly sums: unknown
  readonly ack: unknown
  readonly timeout: unknown
}

/** What a row of `once` says of an id: the hash of what came with it, and the result of an entry of a plugin. */
export interface OnceRow { readonly hash: string, readonly result: string | null }

/** All prepared statements of one connection. */
export type Statements = ReturnType<typeof prepareStatements>

/** The sequences of a producer's row, or none where it has no row. @throws Error if the row is damaged */
export function sequencesOf (row: ProducerRow | undefined): Sequences {
  if (row === undefined) return none
  const sequences = parseSequences({ high: row.high, gaps: JSON.parse(row.gaps) })
  if (sequences === undefined) throw new Error(`invalid gaps: ${row.gaps}`)
  return sequences
}

/** Prepares the statements on a database that has the present schema. */
export function prepareStatements (db: Database.Database) {
  return {
    ...prepareSums(db),
    ...prepareBatchReaders(db),
    ...prepareProducers(db),
    ...prepareIdempotency(db),
    countGuards: db.prepare<[], number>(`
      SELECT count(*) FROM sqlite_schema
      WHERE tbl_name = 'numbers' COLLATE NOCASE
        AND (type = 'trigger' OR (type = 'index' AND sql IS NOT NULL))`).pluck(),
    savepoint: db.prepare('SAVEPOINT entry'),
    rollbackToSavepoint: db.prepare('ROLLBACK TO entry'),
    release: db.prepare('RELEASE entry'),
    readMeta: db.prepare<[string], string | number>('SELECT value FROM meta WHERE name = ?').pluck(),
    writeMeta: db.prepare<{ name: string, value: string | number }>(`
      UPDATE meta SET value = iif(typeof(@value) = 'real', CAST(@value AS INTEGER), @value) WHERE name = @name`),
    recordQueue: db.prepare<[string]>(`
      INSERT INTO meta(name, value) VALUES ('queue', ?) ON CONFLICT(name) DO UPDATE SET value = excluded.value`),
  }
}

function insertFrom (entries: string, order: string): string {
  return `
    INSERT INTO numbers(key, value)
    SELECT entry.key, CASE entry.type WHEN 'integer' THEN entry.value ELSE 'not an integer' END
    FROM ${entries} AS entry
    WHERE true
    ${order}
    ON CONFLICT(key) DO UPDATE SET value = value + excluded.value`
}

function prepareSums (db: Database.Database) {
  const ofBatch = "json_each(iif(json_valid(@json), jsonb(@json), NULL), '$.sums')"
  const ofRun = "jsonb_each(?) AS batch, json_each(batch.value, '$.sums')"
  return {
    // The two functions share one parse of the text.
    insertBatch: db.prepare<{ json: string }>(insertFrom(ofBatch, 'ORDER BY entry.key')),
    insertRun: db.prepare<[string]>(insertFrom(ofRun, '')),
    insertRunInOrder: db.prepare<[string]>(insertFrom(ofRun, 'ORDER BY entry.key, batch.key')),
    countSums: db.prepare<[string], number>(`
      SELECT count(*) FROM json_each(?) AS batch, json_each(batch.value, '$.sums')`).pluck(),
    readTotal: db.prepare<[string], bigint>('SELECT value FROM numbers WHERE key = ?').pluck().safeIntegers(),
    writeTotal: db.prepare<[string, bigint]>(`
      INSERT INTO numbers(key, value) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET value = excluded.value`),
  }
}

function prepareBatchReaders (db: Database.Database) {
  const unsound = "type <> 'integer' OR typeof(value) <> 'integer'"
  return {
    isJson: db.prepare<[string], number>('SELECT json_valid(?)').pluck(),
    onceType: db.prepare<[string], string>("SELECT coalesce(json_type(?, '$.once'), 'array')").pluck(),
    unsoundSums: db.prepare<{ json: string }, number>(`
      SELECT (json_type(@json, '$.sums') IS NOT 'object') + (coalesce(json_type(@json, '$.once'), 'array') <> 'array')
        + (SELECT count(*) FROM json_each(@json, '$.sums') WHERE ${unsound})`).pluck(),
    unsoundEntries: db.prepare<[string], number>(`SELECT count(*) FROM json_each(?) WHERE ${unsound}`).pluck(),
    readSums: db.prepare<[string], Entry>("SELECT key, value FROM json_each(?, '$.sums')").safeIntegers(),
    sumsJson: db.prepare<[string], string>("SELECT ? -> '$.sums'").pluck(),
    readEntries: db.prepare<[string], Entry>('SELECT key, value FROM json_each(?)').safeIntegers(),
    readIdempotent: db.prepare<[string], RawIdempotentRequest>(`
      SELECT request ->> '$.id' AS id, request ->> '$.at' AS at,
        request ->> '$.ack' AS ack, request ->> '$.timeout' AS timeout,
        iif(json_type(request, '$.sums') = 'object', request -> '$.sums', NULL) AS sums
      FROM (SELECT iif(type = 'object', value, '{}') AS request FROM json_each(?, '$.once'))`),
  }
}

function prepareProducers (db: Database.Database) {
  return {
    readProducer: db.prepare<[string], ProducerRow>('SELECT high, gaps FROM producers WHERE producer = ?'),
    writeProducer: db.prepare<ProducerUpdate>(`
      INSERT INTO producers(producer, high, gaps, requests, increments, seen_at)
      VALUES (@producer, @high, @gaps, @requests, @increments, @seenAt)
      ON CONFLICT(producer) DO UPDATE SET high = excluded.high, gaps = excluded.gaps,
        requests = min(requests + excluded.requests, ${tallyMax}),
        increments = min(increments + excluded.increments, ${tallyMax}), seen_at = excluded.seen_at`),
    unseenProducers: db.prepare<[number], string>('SELECT producer FROM producers WHERE seen_at < ?').pluck(),
    seenProducers: db.prepare<[number], ProducerRow & { producer: string }>(
      'SELECT producer, high, gaps FROM producers WHERE seen_at >= ?'),
  }
}

function prepareIdempotency (db: Database.Database) {
  return {
    readOnce: db.prepare<[string], OnceRow>('SELECT sums_hash AS hash, result FROM once WHERE id = ?'),
    writeOnce: db.prepare<[string, string, number, number, string | null]>(
      'INSERT INTO once(id, sums_hash, at, elapsed_ms, result) VALUES (?, ?, ?, ?, ?)'),
    countOnce: db.prepare<[], number>('SELECT count(*) FROM once').pluck(),
    pruneOnce: db.prepare<{ before: number, rows: number }, { at: number, elapsed_ms: number }>(`
      DELETE FROM once WHERE id IN (SELECT id FROM once WHERE elapsed_ms < @before ORDER BY elapsed_ms LIMIT @rows)
      RETURNING at, elapsed_ms`),
  }
}
