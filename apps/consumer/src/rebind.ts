// `npm run rebind`: binds a queue to a database that it was not consumed into, on purpose. The database gets a new identity,
// so that a consumer of the old one leaves, and the queue forgets what it told as stored.
import { existsSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { ownerText } from '@gearbox/queue/queue.ts'
import { RedisConsumerQueue } from '@gearbox/queue/redis-consumer-queue.ts'
import { describeConfig, loadConfig } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf, runMain } from '@gearbox/runtime/errors.ts'
import { createLogger } from '@gearbox/runtime/logger.ts'
import { Store } from './store.ts'

const usage = `Binds the queue in Redis to this database, whichever it belonged to before.
What was counted into the other database stays there; what waits in the queue is counted into this one.

usage: npm run rebind -- DATABASE_PATH

Environment:
`

async function main (): Promise<number> {
  const { values, positionals } = parseArgs({ options: { help: { type: 'boolean', short: 'h' } }, allowPositionals: true })
  if (values.help === true) {
    process.stdout.write(`${usage}${describeConfig()}\n`)
    return 0
  }
  const path = positionals[0]
  if (path === undefined) throw new FatalError('name the database: npm run rebind -- DATABASE_PATH')
  const config = loadConfig({ ...process.env, DATABASE_PATH: path }, { REDIS_URL: 'it says where the queue is' })
  if (!existsSync(config.databasePath)) throw new FatalError(`there is no database ${config.databasePath}; a new one is bound by the consumer itself`)
  const queue = new RedisConsumerQueue({ url: config.redisUrl ?? '', queueName: config.queueName, logger: createLogger('rebind', config.logLevel), warnOfSettings: false })
  let store: Store | undefined
  try {
    store = new Store({ ...config, path: config.databasePath })
    await queue.start()
    const { owner } = await queue.readOwner()
    const renewed = store.renew()
    if (!await queue.bind(owner, renewed)) throw new FatalError(`${queue.name} was bound by somebody else meanwhile; run this again`)
    await queue.forgetStored()
    process.stdout.write(`${queue.name} belonged to ${owner === undefined ? 'no database' : ownerText(owner)} and now belongs to ${ownerText(renewed)}, ${config.databasePath}\n`)
    return 0
  } catch (error) {
    throw error instanceof FatalError ? error : new FatalError(`${queue.name} could not be bound: ${queue.unreachable ?? reasonOf(error)}`)
  } finally {
    await queue.close()
    store?.close()
  }
}

await runMain(main)
