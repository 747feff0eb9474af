// The tables of tickets. The consumer writes them; web workers read them.
import type { Reads } from './absent.ts'

/**
 * All tables in their first version.
 * - A line is one name: how many numbers were issued, the last one that was called, and the last that may be issued.
 * - A run is the log: the numbers of one entry. `request` finds it again for clients that got a 202: for an entry that
 *   many requests share, the place of the run's first ticket among all that its worker sent; for an entry with an
 *   Idempotency-Key, a negative number made of that key.
 * - A place is kept only for numbers of which more is known than the log says: a holder (of `count` numbers), that they
 *   were given up, or that somebody asked for them with their receipt after they were called.
 * - A call is one request that called numbers, up to `last`.
 * - A gap is numbers that are never issued, as a lost database may have issued them. The one of the name '' is for
 *   names that have no row in `tickets_lines` yet.
 * - The secret of '' is what receipts are made from; the others are those of workers, by producer.
 */
const first = `
  CREATE TABLE tickets_lines(name TEXT PRIMARY KEY, issued INTEGER NOT NULL, serving INTEGER NOT NULL,
    "limit" INTEGER) STRICT, WITHOUT ROWID;
  CREATE TABLE tickets_runs(name TEXT NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL, at INTEGER NOT NULL,
    producer TEXT NOT NULL, seq INTEGER NOT NULL, entry INTEGER NOT NULL, request INTEGER,
    PRIMARY KEY(name, first)) STRICT, WITHOUT ROWID;
  CREATE INDEX tickets_runs_request ON tickets_runs(producer, request) WHERE request > 0;
  CREATE INDEX tickets_runs_keyed ON tickets_runs(request) WHERE request < 0;
  CREATE TABLE tickets_places(name TEXT NOT NULL, number INTEGER NOT NULL, count INTEGER NOT NULL, holder TEXT,
    given_up_at INTEGER, asked_at INTEGER, PRIMARY KEY(name, number)) STRICT, WITHOUT ROWID;
  CREATE INDEX tickets_places_given_up ON tickets_places(name, number) WHERE given_up_at IS NOT NULL;
  CREATE TABLE tickets_calls(name TEXT NOT NULL, last INTEGER NOT NULL, called INTEGER NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY(name, last)) STRICT, WITHOUT ROWID;
  CREATE TABLE tickets_gaps(name TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY(name, first)) STRICT, WITHOUT ROWID;
  CREATE TABLE tickets_secrets(owner TEXT PRIMARY KEY, secret TEXT NOT NULL) STRICT, WITHOUT ROWID;
`

/** One script per version. */
export const migrations: readonly string[] = [first]

/** Whether a database has them: one in which no consumer with this plugin has worked yet has none. */
export function hasTables (db: Reads): boolean {
  // The last one that the script makes.
  return db.get("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'tickets_secrets'") !== undefined
}
