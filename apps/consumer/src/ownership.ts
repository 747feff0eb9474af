// One database, one queue, one consumer. Before it writes anything a consumer makes sure that this database and this
// queue belong together; then it claims both, and older consumers of the same database find out. Called by opening.ts,
// and in part by `npm start` and `npm run rebind`.
import { ownerText, type Owner } from '@gearbox/protocol/owner.ts'
import { isSubset, none, type Sequences } from '@gearbox/protocol/sequences.ts'
import type { ConsumerQueue } from '@gearbox/queue/queue.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { DatabaseMovedError } from './store/database-file.ts'
import type { Identity } from './store/identity.ts'
import { inspectDatabase, isBusy } from './store/open.ts'
import type { Store } from './store/store.ts'

/** What a database that is consumed into without Redis has written down as its queue. */
export const embeddedQueue = 'embedded'

/** A path as a shell takes it. */
function shellQuoted (path: string): string {
  return /^[\w./@%+=:,-]+$/.test(path) ? path : `'${path.replaceAll("'", "'\\''")}'`
}

/** The command that binds a database to the queue in Redis, or with '--embedded ' to none. */
function rebindCommand (path: string, options = ''): string {
  return `npm run rebind -- ${options}${shellQuoted(path)}`
}

/** The queue as a database writes it down: 'embedded', or which Redis. */
export function recordedQueue (queue: ConsumerQueue): string {
  return queue.keepsBatches ? queue.name : embeddedQueue
}

/**
 * Refuses to go on without Redis where the database belongs to one: what waits there would be missing.
 * @throws FatalError (refused) that says what to do
 */
export function requireEmbedded (identity: Identity | undefined, databasePath: string): void {
  if (identity?.queue === undefined || identity.queue === embeddedQueue) return
  throw new FatalError(`${databasePath} belongs to the queue in Redis, ${identity.queue}, and REDIS_URL is unset: ` +
    'set it, or give that queue up, with all that waits in it, by: ' + rebindCommand(databasePath, '--embedded '),
  exitCode.refused)
}

/**
 * Refuses a database that is not the one this queue was consumed into. Writes nothing.
 * @param before the database that this installation's consumer had before it was started again: it is waited for
 * @returns the queue's owner as it was read
 * @throws FatalError (refused) that says why and how to bind them on purpose; DatabaseMovedError; QueueUnavailableError
 */
export async function checkBinding (
  queue: ConsumerQueue, databasePath: string, before?: Owner
): Promise<Owner | undefined> {
  const { owner, stored } = await queue.readOwner()
  // After the queue: what that reports was committed before, so a consumer still at work can't make this look like an
  // old copy.
  const identity = before === undefined ? inspectDatabase(databasePath) : requireSame(databasePath, before)
  if (!queue.keepsBatches) requireEmbedded(identity, databasePath)
  const why = mismatchOf(owner, stored, identity)
  if (why === undefined) return owner
  throw new FatalError(`${databasePath} and ${queue.name} don't belong together: ${why}. ` +
    `To count what waits, and all that comes, into ${databasePath}, run: ${rebindCommand(databasePath)}`,
  exitCode.refused)
}

/**
 * Why a queue and a database don't belong together; undefined if they do.
 * @param identity undefined of a new database
 */
export function mismatchOf (
  owner: Owner | undefined, stored: ReadonlyMap<string, Sequences>, identity: Identity | undefined
): string | undefined {
  if (owner !== undefined) {
    const owned = `the queue belongs to database ${ownerText(owner)}, and this one is`
    if (identity === undefined) return `${owned} new`
    if (owner.uuid !== identity.owner.uuid) return `${owned} ${ownerText(identity.owner)}`
    if (owner.epoch > identity.owner.epoch) {
      return `the queue has seen this database at epoch ${owner.epoch}, and it is at epoch ${identity.owner.epoch}: ` +
        'it was restored or copied'
    }
  }
  for (const [producer, reported] of stored) {
    if (isSubset(reported, identity?.sequences(producer) ?? none)) continue
    return `the queue reports increments as stored (worker ${producer}, up to ${reported.high}) ` +
      'that this database does not have: it was restored or copied'
  }
  return undefined
}

/**
 * @throws DatabaseMovedError unless it is the database of before; FatalError never: whatever else is there may go again
 */
function requireSame (path: string, before: Owner): Identity {
  let found: Identity | undefined
  try {
    found = inspectDatabase(path)
  } catch (error) {
    throw isBusy(error) ? error : new DatabaseMovedError(reasonOf(error))
  }
  if (found === undefined) throw new DatabaseMovedError(`${path}: there is no database`)
  if (found.owner.uuid !== before.uuid) throw new DatabaseMovedError(`${path}: another database is in its place`)
  if (found.owner.epoch < before.epoch) throw new DatabaseMovedError(`${path}: an older copy is in its place`)
  return found
}

/**
 * Becomes the newest consumer of a checked pair.
 * @param found the queue's owner as `checkBinding` read it
 * @throws FatalError (refused) if another consumer was faster; QueueUnavailableError
 */
export async function claimOwnership (queue: ConsumerQueue, store: Store, found: Owner | undefined): Promise<void> {
  const owner = store.raiseEpoch()
  let expected = found
  while (!await queue.bind(expected, owner)) {
    expected = (await queue.readOwner()).owner
    // One that raised the epoch before us can't write any more: if we left too, nobody would consume.
    if (expected !== undefined && (expected.uuid !== owner.uuid || expected.epoch > owner.epoch)) {
      throw new FatalError(`another consumer has claimed ${queue.name} meanwhile`, exitCode.refused)
    }
  }
  store.recordQueue(recordedQueue(queue))
}
