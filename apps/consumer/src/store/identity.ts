// Which database this is, which consumer of it is the newest, and which queue it is consumed from. The store and every
// one of its transactions ask here; the queue keeps the same `uuid:epoch` (see ../ownership.ts).
import { randomUUID } from 'node:crypto'
import type Database from 'better-sqlite3'
import { SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import type { Sequences } from '@gearbox/protocol/sequences.ts'
import type { Statements } from './statements.ts'

/** What a database says about itself. */
export interface Identity {
  readonly owner: Owner
  /** Where it was last consumed from: 'embedded', or which Redis; undefined where that was never written down. */
  readonly queue: string | undefined
  /** What is stored of a producer. */
  readonly sequences: (producer: string) => Sequences
}

/** The UUID and the epoch that a database has now. */
export function readOwner (db: Database.Database): Owner {
  const read = db.prepare<[string], string | number>('SELECT value FROM meta WHERE name = ?').pluck()
  return { uuid: String(read.get('uuid')), epoch: Number(read.get('epoch')) }
}

/** The identity that this process works under. It changes only by `raiseEpoch` and `renew`, once each has committed. */
export class WorkingIdentity {
  readonly #db: Database.Database
  readonly #statements: Statements
  #owner: Owner

  /** @param owner the one that this process had on an earlier connection; by default, what the database has */
  constructor (db: Database.Database, statements: Statements, owner = readOwner(db)) {
    this.#db = db
    this.#statements = statements
    this.#owner = owner
  }

  /** The UUID and epoch of this process, as the queue is to hold them. */
  get owner (): Owner {
    return this.#owner
  }

  /**
   * Makes this process the database's newest consumer; older ones find out in their next transaction.
   * @throws any SQLite error
   */
  raiseEpoch (): Owner {
    this.#owner = this.#db.transaction((): Owner => {
      const { uuid, epoch } = readOwner(this.#db)
      this.#statements.writeMeta.run({ name: 'epoch', value: epoch + 1 })
      return { uuid, epoch: epoch + 1 }
    }).immediate()
    return this.#owner
  }

  /**
   * Gives the database another UUID: it is not the one that it was copied or restored from.
   * @param inTransaction what else is done in the same transaction
   * @throws any SQLite error; whatever `inTransaction` throws
   */
  renew (inTransaction: () => void): Owner {
    this.#owner = this.#db.transaction((): Owner => {
      const owner = { uuid: randomUUID(), epoch: this.#owner.epoch + 1 }
      this.#statements.writeMeta.run({ name: 'uuid', value: owner.uuid })
      this.#statements.writeMeta.run({ name: 'epoch', value: owner.epoch })
      inTransaction()
      return owner
    }).immediate()
    return this.#owner
  }

  /**
   * To be called first in every transaction that writes.
   * @throws SupersededError if a newer consumer has opened the database
   */
  requireNewest (): void {
    const [uuid, epoch] = [this.#statements.readMeta.get('uuid'), this.#statements.readMeta.get('epoch')]
    if (uuid === this.#owner.uuid && epoch === this.#owner.epoch) return
    const epochs = `epoch ${epoch}, ours is ${this.#owner.epoch}`
    throw new SupersededError(`${this.#db.name} has been opened by a newer consumer (${epochs})`)
  }
}
