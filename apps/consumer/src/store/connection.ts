// All that is bound to one open connection: its prepared statements and the parts that use them. The store makes
// another one when it reopens the database.
import type Database from 'better-sqlite3'
import type { Owner } from '@gearbox/protocol/owner.ts'
import { BatchReader } from './batch-reader.ts'
import { DatabaseClock } from './clock.ts'
import type { OpenFiles } from './database-file.ts'
import { IdempotentRequests } from './idempotency.ts'
import { WorkingIdentity } from './identity.ts'
import { OwnerTriggers } from './owner-triggers.ts'
import { ConsumerPlugins, type PluginOptions } from './plugins/consumer-plugins.ts'
import { RejectedEntries, type RejectedLimits } from './rejections.ts'
import { Reports } from './reports.ts'
import { Results } from './results.ts'
import { prepareStatements, type Statements } from './statements.ts'
import { Totals } from './totals.ts'

/** Limits of what the database keeps besides totals, and the plugins that work in its transactions. */
export interface ConnectionOptions extends RejectedLimits {
  readonly idempotencyRowsMax: number
  /** Default: none. */
  readonly pluginParts?: PluginOptions
}

/** What this process knew on the connection before. */
interface Before {
  readonly owner: Owner
  readonly clock: DatabaseClock
}

/** An open connection with its parts. Its owner closes `db`. */
export class Connection {
  readonly db: Database.Database
  readonly files: OpenFiles
  readonly statements: Statements
  readonly identity: WorkingIdentity
  readonly clock: DatabaseClock
  readonly reader: BatchReader
  readonly totals: Totals
  readonly triggers: OwnerTriggers
  readonly rejected: RejectedEntries
  readonly reports: Reports
  readonly results: Results
  readonly plugins: ConsumerPlugins
  readonly idempotency: IdempotentRequests

  /** @throws any SQLite error; `db` stays open then */
  constructor (db: Database.Database, files: OpenFiles, options: ConnectionOptions, before?: Before) {
    this.db = db
    this.files = files
    this.statements = prepareStatements(db)
    this.rejected = new RejectedEntries(db, options)
    this.reports = new Reports(db)
    this.results = new Results(db)
    this.plugins = new ConsumerPlugins(db, options.pluginParts)
    this.identity = new WorkingIdentity(db, this.statements, before?.owner)
    const elapsedMs = Number(this.statements.readMeta.get('elapsed_ms'))
    this.clock = new DatabaseClock(Math.max(elapsedMs, before?.clock.now() ?? 0))
    this.reader = new BatchReader(this.statements)
    this.totals = new Totals(this.statements)
    this.triggers = new OwnerTriggers(db, this.statements)
    this.idempotency = new IdempotentRequests(
      this.statements, this.reader, this.totals, this.clock, options.idempotencyRowsMax)
  }

  /**
   * Runs a write in its own transaction. What fails in it is rolled back, in the database and in the parts.
   * @throws SupersededError if a newer consumer has opened the database; whatever `body` throws; any SQLite error
   */
  write<T> (body: () => T): T {
    const { state } = this.idempotency
    try {
      const result = this.db.transaction(() => {
        this.identity.requireNewest()
        return body()
      }).immediate()
      this.results.committed()
      return result
    } catch (error) {
      this.idempotency.restore(state)
      this.rejected.forgetCounts()
      this.results.rolledBack()
      throw error
    }
  }
}
