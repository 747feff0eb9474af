// One database, one queue, one consumer. Before it writes anything a consumer makes sure that this database and this
// queue belong together, then takes the place of any older consumer of the same database.
import { ownerText, type ConsumerQueue, type Owner } from '@gearbox/queue/queue.ts'
import { isSubset, none } from '@gearbox/queue/sequences.ts'
import { exitCode, FatalError } from '@gearbox/runtime/errors.ts'
import { readIdentity, type Store } from './store.ts'

const rebind = 'If you mean it, run: npm run rebind -- DATABASE_PATH'

/**
 * Refuses a database that is not the one this queue was consumed into. Writes nothing.
 * @returns the queue's owner as it was read
 * @throws FatalError (refused) that says why and how to bind them on purpose; QueueUnavailableError
 */
export async function checkBinding (queue: ConsumerQueue, databasePath: string): Promise<Owner | undefined> {
  const { owner, stored } = await queue.readOwner()
  // After the queue: whatever that tells was committed before, so a consumer still at work can't make this look like an old copy.
  const identity = readIdentity(databasePath)
  const refuse = (why: string): FatalError => new FatalError(`${databasePath} and ${queue.name} don't belong together: ${why}. ${rebind}`, exitCode.refused)
  if (owner !== undefined && identity === undefined) {
    throw refuse(`the queue belongs to database ${ownerText(owner)}, and this one is new`)
  }
  if (owner !== undefined && identity !== undefined) {
    if (owner.uuid !== identity.owner.uuid) throw refuse(`the queue belongs to database ${ownerText(owner)}, and this one is ${ownerText(identity.owner)}`)
    if (owner.epoch > identity.owner.epoch) {
      throw refuse(`the queue has seen this database at epoch ${owner.epoch}, and it is at epoch ${identity.owner.epoch}: it was restored or copied`)
    }
  }
  for (const [producer, told] of stored) {
    if (!isSubset(told, identity?.sequences(producer) ?? none)) {
      throw refuse(`the queue tells of increments stored (worker ${producer}, up to ${told.high}) that this database does not have: it was restored or copied`)
    }
  }
  return owner
}

/** Becomes the newest consumer of a checked pair. @throws FatalError (refused) if another consumer was faster; QueueUnavailableError */
export async function takeOver (queue: ConsumerQueue, store: Store, found: Owner | undefined): Promise<void> {
  const owner = store.raiseEpoch()
  let expected = found
  while (!await queue.bind(expected, owner)) {
    expected = (await queue.readOwner()).owner
    // One that raised the epoch before us can't write any more: if we left too, nobody would consume.
    if (expected !== undefined && (expected.uuid !== owner.uuid || expected.epoch > owner.epoch)) {
      throw new FatalError(`${queue.name} was taken over by another consumer meanwhile`, exitCode.refused)
    }
  }
}
