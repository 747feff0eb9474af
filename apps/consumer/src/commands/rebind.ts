// `npm run rebind`: binds a queue to a database that it was not consumed into, on purpose. A new database is created; another one gets
// a new identity, so that it is never taken for what it was. The queue forgets what it told as stored.
import { ownerText, type Owner } from '@gearbox/protocol/owner.ts'
import type { ConsumerQueue } from '@gearbox/queue/queue.ts'
import { inspectQueue, RedisConsumerQueue } from '@gearbox/queue/redis/consumer-queue.ts'
import { shownUrl } from '@gearbox/queue/redis/connection.ts'
import { isSubset } from '@gearbox/protocol/sequences.ts'
import { loadConfig, type Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { createLogger } from '@gearbox/runtime/log/logger.ts'
import { defineCommand } from '@gearbox/runtime/process/command.ts'
import { DatabaseLock } from '@gearbox/runtime/process/database-lock.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { recordedQueue } from '../ownership.ts'
import { ConsumerLock } from '../consumer-lock.ts'
import type { Identity } from '../store/identity.ts'
import { inspectDatabase, isBusy } from '../store/open.ts'
import { Store } from '../store/store.ts'

const usage = `A database that does not exist is created. What was counted into another database stays there; what waits in the queue is
counted into this one. Stop Gearbox first: it is refused while a consumer runs.

usage: npm run rebind -- DATABASE_PATH
       npm run rebind -- --embedded DATABASE_PATH   gives the queue in Redis up: from now on npm start needs no REDIS_URL
       npm run rebind -- --force DATABASE_PATH      also if Redis still holds a consumer's connection: its host died`

/** `npm run rebind`. */
export const command = defineCommand({
  name: 'rebind',
  summary: 'Binds the queue in Redis to this database, whichever it belonged to before.',
  usage,
  options: { embedded: { type: 'boolean' }, force: { type: 'boolean' } },
  positionals: true,
  settings: ['redisUrl', 'queueName', 'logLevel'],
  run: async ({ values, positionals }) => await rebind(positionals[0], values.embedded === true, values.force === true),
})

async function rebind (path: string | undefined, embedded: boolean, force: boolean): Promise<number> {
  if (path === undefined) throw new FatalError('name the database: npm run rebind -- DATABASE_PATH')
  const config = loadConfig({ ...process.env, DATABASE_PATH: path }, embedded ? {} : { REDIS_URL: 'it says where the queue is' })
  try {
    const identity = inspectDatabase(config.databasePath)
    process.stdout.write(`${embedded ? await giveUpRedis(config, identity) : await bind(config, identity, force)}\n`)
    return 0
  } catch (error) {
    if (error instanceof FatalError) throw error
    if (isBusy(error)) throw new FatalError(`${config.databasePath} is locked by another program (${reasonOf(error)}); try again`)
    const what = config.redisUrl === undefined ? config.databasePath : `${shownUrl(config.redisUrl)} (${config.queueName})`
    throw new FatalError(`${what} could not be bound: ${reasonOf(error)}`)
  }
}

function inUse ({ databasePath }: Config, why: string): string {
  return `${databasePath} is in use: ${why}. Stop Gearbox and run this again; nothing was changed`
}

/** Runs something while nobody else works on the database. @throws FatalError (refused) */
async function alone<T> (config: Config, run: () => T | Promise<T>): Promise<T> {
  const parent = new DatabaseLock(config.databasePath, 'Stop it and run this again; nothing was changed')
  try {
    const consumers = ConsumerLock.takeAlone(config.databasePath)
    try {
      return await run()
    } finally {
      consumers.release()
    }
  } catch (error) {
    throw isBusy(error) ? new FatalError(inUse(config, 'a consumer works on it'), exitCode.refused) : error
  } finally {
    parent.release()
  }
}

/** @returns what was done */
async function bind (config: Config, identity: Identity | undefined, force: boolean): Promise<string> {
  const options = { url: config.redisUrl ?? '', queueName: config.queueName, logger: createLogger('rebind', config.logLevel), warnOfSettings: false }
  const { waiting, consumers } = await inspectQueue(options)
  const queue = new RedisConsumerQueue(options)
  if (consumers !== undefined && consumers > 0 && !force) {
    const hint = 'If its host died and Redis has not noticed yet, add --force'
    throw new FatalError(`${queue.name} is in use: a consumer takes batches from it. Stop it and run this again; nothing was changed. ${hint}`, exitCode.refused)
  }
  try {
    return await alone(config, async () => {
      await queue.start().catch((error: unknown) => { throw new FatalError(`${queue.name} could not be bound: ${queue.unreachable ?? reasonOf(error)}`) })
      const { owner, stored } = await queue.readOwner()
      const together = owner !== undefined && identity !== undefined && owner.uuid === identity.owner.uuid && owner.epoch <= identity.owner.epoch &&
        [...stored].every(([producer, told]) => isSubset(told, identity.sequences(producer)))
      if (together) return `${queue.name} belongs to ${config.databasePath} already: nothing to do`
      const renewed = await bindTo(queue, owner, config, identity === undefined)
      return `${queue.name} belonged to ${owner === undefined ? 'no database' : ownerText(owner)} and now belongs to ${ownerText(renewed)}, ${config.databasePath}` +
        `${identity === undefined ? ' (created)' : ''}; ${waiting} ${waiting === 1 ? 'batch waits' : 'batches wait'} in it and will be counted there` +
        (consumers === undefined ? '. Make sure that no consumer runs elsewhere: PUBSUB NUMSUB is not allowed to this user of Redis' : '')
    })
  } finally {
    await queue.close()
  }
}

async function bindTo (queue: ConsumerQueue, owner: Owner | undefined, config: Config, isNew: boolean): Promise<Owner> {
  const store = new Store({ ...config, path: config.databasePath })
  try {
    // A new one has an identity that nobody has seen.
    const renewed = isNew ? store.owner : store.renew()
    if (!await queue.bind(owner, renewed)) throw new FatalError(`${queue.name} was bound by somebody else meanwhile; run this again`)
    await queue.forgetProgress()
    store.recordQueue(recordedQueue(queue))
    return renewed
  } finally {
    store.close()
  }
}

/** @returns what was done */
async function giveUpRedis (config: Config, identity: Identity | undefined): Promise<string> {
  if (identity === undefined) throw new FatalError(`there is no database ${config.databasePath} that belongs to a queue`)
  if (identity.queue === undefined || identity.queue === 'embedded') return `${config.databasePath} belongs to no queue in Redis: nothing to do`
  return await alone(config, () => {
    const store = new Store({ ...config, path: config.databasePath })
    try {
      // If batches are left in Redis, its queue refuses this database from now on rather than count them late.
      store.renew()
      store.recordQueue('embedded')
    } finally {
      store.close()
    }
    return `${config.databasePath} no longer belongs to ${identity.queue}; what waits there stays there`
  })
}
