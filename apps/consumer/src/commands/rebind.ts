// `npm run rebind`: binds a queue to a database that it was not consumed into, on purpose. A new database is created;
// another one gets a new identity, so that it is never taken for what it was. The queue forgets the progress it
// reported.
import { resolve } from 'node:path'
import { ownerText, type Owner } from '@gearbox/protocol/owner.ts'
import type { ConsumerQueue } from '@gearbox/queue/queue.ts'
import { shownUrl } from '@gearbox/queue/redis/connection.ts'
import { inspectQueue, RedisConsumerQueue } from '@gearbox/queue/redis/consumer-queue.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { createLogger, type Logger } from '@gearbox/runtime/log/logger.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { defineCommand } from '@gearbox/runtime/process/command.ts'
import { DatabaseLock } from '@gearbox/runtime/process/database-lock.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { ConsumerLock } from '../consumer-lock.ts'
import { embeddedQueue, mismatchOf, recordedQueue } from '../ownership.ts'
import type { Identity } from '../store/identity.ts'
import { inspectDatabase, isBusy } from '../store/open.ts'
import { Store } from '../store/store.ts'

const usage = `A database that does not exist is created. What was counted into another database stays there; what waits
in the queue is counted into this one. Stop Gearbox first: it is refused while a consumer runs.

usage: npm run rebind -- DATABASE_PATH
       npm run rebind -- --embedded DATABASE_PATH   gives the queue in Redis up: npm start needs no REDIS_URL any more
       npm run rebind -- --force DATABASE_PATH      also if Redis still holds a consumer's connection: its host died`

const settings = [
  'redisUrl', 'queueName', 'idempotencyHours', 'idempotencyRowsMax', 'rejectedRowsMax', 'rejectedBytesMax', 'logLevel',
  'plugins',
] as const

type RebindConfig = Pick<Config, typeof settings[number] | 'databasePath'>

/** `npm run rebind`. */
export const command = defineCommand({
  name: 'rebind',
  summary: 'Binds the queue in Redis to this database, whichever it belonged to before.',
  usage,
  options: { embedded: { type: 'boolean' }, force: { type: 'boolean' } },
  positionals: true,
  settings,
  optionsOf: (plugins) => Object.fromEntries(plugins.flatMap(({ rebind }) => Object.entries(rebind?.options ?? {}))),
  environment: ({ values: { embedded }, positionals: [path] }) => ({
    variables: { DATABASE_PATH: namedPath(path) },
    required: embedded === true ? {} : { REDIS_URL: 'it says where the queue is' },
  }),
  run: async ({ values, positionals: [path] }, config, plugins) => {
    const databasePath = resolve(namedPath(path))
    const renewal = new Renewal(plugins, values, createLogger('rebind', config.logLevel))
    return await rebind({ ...config, databasePath }, renewal, values.embedded === true, values.force === true)
  },
})

/** Gives a database a new identity, and has plugins do what they do then. */
class Renewal {
  readonly #plugins: readonly LoadedPlugin[]
  readonly #logger: Logger
  /** Options that were given for plugins. */
  readonly #values: Readonly<Record<string, string>>
  /** What plugins have done, to be printed. */
  readonly lines: string[] = []

  constructor (plugins: readonly LoadedPlugin[], values: Readonly<Record<string, unknown>>, logger: Logger) {
    this.#plugins = plugins
    this.#logger = logger
    const given = Object.entries(values)
    this.#values = Object.fromEntries(given.filter((value): value is [string, string] => typeof value[1] === 'string'))
  }

  /** Whether an option of a plugin was given: then it is to be done also where all belongs together already. */
  get isAskedFor (): boolean {
    return Object.keys(this.#values).length > 0
  }

  /** Opens the database, with the tables of plugins. @throws as Store */
  open (config: RebindConfig): Store {
    const pluginParts = { loaded: this.#plugins, logger: this.#logger }
    return new Store({ ...config, path: config.databasePath, pluginParts })
  }

  /** @param isNew nobody has seen its identity, so it keeps that, unless a plugin was asked to do anything */
  renew (store: Store, isNew: boolean): Owner {
    if (isNew && !this.isAskedFor) return store.owner
    return store.renew((databaseOf) => {
      for (const { plugin: { name, rebind } } of this.#plugins) {
        for (const line of rebind?.run(databaseOf(name), this.#values) ?? []) this.lines.push(line)
      }
    })
  }
}

/** The database must be named: the one of DATABASE_PATH is most often not the one that is meant. @throws FatalError */
function namedPath (path: string | undefined): string {
  if (path === undefined) throw new FatalError('name the database: npm run rebind -- DATABASE_PATH')
  return path
}

/** @returns the exit code */
async function rebind (config: RebindConfig, renewal: Renewal, embedded: boolean, force: boolean): Promise<number> {
  const { databasePath, redisUrl, queueName } = config
  try {
    const identity = inspectDatabase(databasePath)
    const done = embedded
      ? await giveUpRedis(config, renewal, identity)
      : await bind(config, renewal, identity, force)
    process.stdout.write(`${[done, ...renewal.lines].join('\n')}\n`)
    return 0
  } catch (error) {
    if (error instanceof FatalError) throw error
    if (isBusy(error)) {
      throw new FatalError(`${databasePath} is locked by another program (${reasonOf(error)}); try again`)
    }
    const what = redisUrl === undefined ? databasePath : `${shownUrl(redisUrl)} (${queueName})`
    throw new FatalError(`${what} could not be bound: ${reasonOf(error)}`)
  }
}

/** Runs something while nobody else works on the database. @throws FatalError (refused) */
async function alone<T> ({ databasePath }: RebindConfig, run: () => T | Promise<T>): Promise<T> {
  const parent = new DatabaseLock(databasePath, 'Stop it and run this again; nothing was changed')
  try {
    const consumers = ConsumerLock.takeAlone(databasePath)
    try {
      return await run()
    } finally {
      consumers.release()
    }
  } catch (error) {
    if (!isBusy(error)) throw error
    throw new FatalError(`${databasePath} is in use: a consumer works on it. ` +
      'Stop Gearbox and run this again; nothing was changed', exitCode.refused)
  } finally {
    parent.release()
  }
}

/** Binds the queue in Redis to the database. @returns what was done */
async function bind (
  config: RebindConfig, renewal: Renewal, identity: Identity | undefined, force: boolean
): Promise<string> {
  const logger = createLogger('rebind', config.logLevel)
  const options = { url: config.redisUrl ?? '', queueName: config.queueName, logger, warnOfSettings: false }
  const { waiting, consumers } = await inspectQueue(options)
  const queue = new RedisConsumerQueue(options)
  if (consumers !== undefined && consumers > 0 && !force) {
    throw new FatalError(`${queue.name} is in use: a consumer takes batches from it. Stop it and run this again; ` +
      'nothing was changed. If its host died and Redis has not noticed yet, add --force', exitCode.refused)
  }
  try {
    return await alone(config, async () => {
      await queue.start().catch((error: unknown) => {
        throw new FatalError(`${queue.name} could not be bound: ${queue.unreachable ?? reasonOf(error)}`)
      })
      const { owner, stored } = await queue.readOwner()
      const isRight = owner !== undefined && mismatchOf(owner, stored, identity) === undefined
      if (isRight && !renewal.isAskedFor) {
        return `${queue.name} belongs to ${config.databasePath} already: nothing to do`
      }
      const renewed = await bindTo(queue, owner, config, renewal, identity === undefined)
      const before = owner === undefined ? 'no database' : ownerText(owner)
      const created = identity === undefined ? ' (created)' : ''
      const batches = waiting === 1 ? '1 batch waits' : `${waiting} batches wait`
      return `${queue.name} belonged to ${before} and now belongs to ${ownerText(renewed)}, ` +
        `${config.databasePath}${created}; ${batches} in it and will be counted there` +
        (consumers === undefined ? `. ${consumersUnknown}` : '')
    })
  } finally {
    await queue.close()
  }
}

const consumersUnknown =
  'Make sure that no consumer runs elsewhere: PUBSUB NUMSUB is not allowed to this user of Redis'

async function bindTo (
  queue: ConsumerQueue, owner: Owner | undefined, config: RebindConfig, renewal: Renewal, isNew: boolean
): Promise<Owner> {
  const store = renewal.open(config)
  try {
    const renewed = renewal.renew(store, isNew)
    if (!await queue.bind(owner, renewed)) {
      throw new FatalError(`another program has bound ${queue.name} meanwhile; run this again`)
    }
    await queue.forgetProgress()
    store.recordQueue(recordedQueue(queue))
    return renewed
  } finally {
    store.close()
  }
}

/** Ends that the database belongs to a queue in Redis. @returns what was done */
async function giveUpRedis (
  config: RebindConfig, renewal: Renewal, identity: Identity | undefined
): Promise<string> {
  const { databasePath } = config
  if (identity === undefined) throw new FatalError(`there is no database ${databasePath} that belongs to a queue`)
  const { queue } = identity
  const isEmbedded = queue === undefined || queue === embeddedQueue
  if (isEmbedded && !renewal.isAskedFor) {
    return `${databasePath} belongs to no queue in Redis: nothing to do`
  }
  return await alone(config, () => {
    const store = renewal.open(config)
    try {
      // If batches are left in Redis, its queue refuses this database from now on rather than count them late.
      renewal.renew(store, false)
      store.recordQueue(embeddedQueue)
    } finally {
      store.close()
    }
    return isEmbedded
      ? `${databasePath} has a new identity`
      : `${databasePath} no longer belongs to ${queue}; what waits there stays there`
  })
}
