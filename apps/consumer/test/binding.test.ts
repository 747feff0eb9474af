// One database, one queue, one consumer: who is refused, and what a refusal leaves behind, namely nothing.
import { randomUUID } from 'node:crypto'
import { copyFileSync, existsSync, readdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { startCommand, type Program } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { TcpProxy } from '@gearbox/test-kit/tcp-proxy.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { int64Max } from '@gearbox/protocol/int64.ts'
import { ownerText, SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import type { Progress } from '@gearbox/protocol/progress.ts'
import { EmbeddedConsumerQueue } from '@gearbox/queue/embedded/consumer-queue.ts'
import { redisKeys } from '@gearbox/queue/redis/connection.ts'
import { RedisConsumerQueue } from '@gearbox/queue/redis/consumer-queue.ts'
import { element, producerA } from '@gearbox/test-kit/batches.ts'
import { captureLog } from '@gearbox/test-kit/captured-log.ts'
import { checkBinding, claimOwnership } from '../src/ownership.ts'
import { DatabaseMovedError } from '../src/store/database-file.ts'
import { inspectDatabase } from '../src/store/open.ts'
import { freshPath, openStore, query, totals } from './open-store.ts'

let server: RedisServer

beforeAll(async () => { server = await RedisServer.start() })
afterAll(async () => { await server.stop() })

async function startQueue (queueName: string): Promise<RedisConsumerQueue> {
  const queue =
    new RedisConsumerQueue({ url: server.url, queueName, logger: captureLog().logger, warnOfSettings: false })
  onTestFinished(async () => { await queue.close() })
  await queue.start()
  return queue
}

/** What a consumer does at its start. */
async function bindTo (queueName: string, path: string): Promise<Owner> {
  const queue = await startQueue(queueName)
  const found = await checkBinding(queue, path)
  const { store } = openStore({ path })
  await claimOwnership(queue, store, found)
  store.close()
  return store.owner
}

async function ownerIn (queueName: string): Promise<string | null> {
  const client = server.client()
  try {
    return await client.get(redisKeys(queueName).owner)
  } finally {
    client.disconnect()
  }
}

/** Files next to a database, without SQLite's own notes, which reading alone makes. */
function filesBeside (path: string): string[] | undefined {
  return existsSync(dirname(path)) ? readdirSync(dirname(path)).filter((name) => !/-(wal|shm)$/.test(name)) : undefined
}

const progress = (high: number): Progress => ({ high, gaps: [], rejected: [], omittedRejections: [] })

async function expectRefused (queueName: string, path: string, why: RegExp): Promise<void> {
  const before = await ownerIn(queueName)
  const files = filesBeside(path)
  const epoch = existsSync(path) ? query(path, "SELECT value FROM meta WHERE name = 'epoch'") : undefined
  const refusal = await checkBinding(await startQueue(queueName), path).then(() => undefined, (error: unknown) => error)
  expect(refusal).toBeInstanceOf(FatalError)
  expect(refusal).toMatchObject({ exitCode: exitCode.refused, message: expect.stringMatching(why) })
  expect(refusal).toMatchObject({ message: expect.stringContaining('npm run rebind') })
  expect(await ownerIn(queueName)).toBe(before)
  expect(filesBeside(path)).toEqual(files)
  expect(existsSync(path) ? query(path, "SELECT value FROM meta WHERE name = 'epoch'") : undefined).toEqual(epoch)
}

test('a new database and a new queue are bound, and stay so over restarts, with a higher epoch each time', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  const first = await bindTo(queueName, path)
  expect(await ownerIn(queueName)).toBe(ownerText(first))
  const second = await bindTo(queueName, path)
  expect(second).toEqual({ uuid: first.uuid, epoch: first.epoch + 1 })
  expect(await ownerIn(queueName)).toBe(ownerText(second))
})

test('a database goes on with a queue that lost all it had', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  const { uuid } = await bindTo(queueName, path)
  expect((await bindTo(randomUUID(), path)).uuid).toBe(uuid)
})

test('a new database is refused by a bound queue', async () => {
  const queueName = randomUUID()
  await bindTo(queueName, freshPath())
  await expectRefused(queueName, freshPath(), /this one is new/)
  await expectRefused(queueName, `${freshPath()}/deep/numbers.db`, /this one is new/)
})

test('another database is refused', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  await bindTo(queueName, freshPath())
  await bindTo(randomUUID(), path)
  await expectRefused(queueName, path, /belongs to database/)
})

test('a copy from before a restart is refused by its epoch', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  await bindTo(queueName, path)
  copyFileSync(path, `${path}.copy`)
  await bindTo(queueName, path)
  await expectRefused(queueName, `${path}.copy`, /restored or copied/)
})

test('a copy from before the last batches is refused by what was reported as stored', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  const queue = await startQueue(queueName)
  const { store } = openStore({ path })
  await claimOwnership(queue, store, await checkBinding(queue, path))
  store.apply([element({ seq: 1, sums: { a: 1 } })])
  store.close()
  copyFileSync(path, `${path}.copy`)
  const again = openStore({ path }).store
  again.apply([element({ seq: 2, sums: { a: 1 } })])
  again.close()
  await queue.reportProgress(new Map([[producerA, progress(2)]]))
  expect(await checkBinding(queue, path)).toBeDefined()
  await expectRefused(queueName, `${path}.copy`, /does not have/)
})

test('a new database is refused by an unbound queue that reports stored increments', async () => {
  const queueName = randomUUID()
  const queue = await startQueue(queueName)
  await queue.reportProgress(new Map([[producerA, progress(1)]]))
  await expectRefused(queueName, freshPath(), /does not have/)
})

test('of two consumers that start at once the newer goes on and the older ends', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  const queues = [await startQueue(queueName), await startQueue(queueName)]
  const { store } = openStore({ path })
  const found = await Promise.all(queues.map(async (queue) => await checkBinding(queue, path)))
  const other = openStore({ path }).store
  await claimOwnership(queues[0]!, store, found[0])
  // Its database no longer lets the first one write: if it left as well, nobody would consume.
  await claimOwnership(queues[1]!, other, found[1])
  await expect(queues[0]!.take()).rejects.toThrow(SupersededError)
  expect(() => store.apply([])).toThrow(SupersededError)
  expect(await queues[1]!.take()).toEqual([])
})

// As programs

function run (command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): Program {
  const program = startCommand(command, args, env)
  onTestFinished(async () => { await program.end() })
  return program
}

async function push (queueName: string, ...elements: readonly Buffer[]): Promise<void> {
  const client = server.client()
  await client.rpush(redisKeys(queueName).batches, ...elements)
  client.disconnect()
}

test('the consumer stores what waits, refuses another database with 69, and a rebind lets that one go on', async () => {
  const [queueName, path, other] = [randomUUID(), freshPath(), freshPath()]
  const env = { REDIS_URL: server.url, QUEUE_NAME: queueName }
  await push(queueName, element({ seq: 1, sums: { foo: 1 } }))
  const consumer = run('consumer', [path], env)
  await until('the total', () => existsSync(path) && totals(path)['foo'] === 1n)
  consumer.kill('SIGTERM')
  expect(await consumer.exited).toBe(0)

  const refused = run('consumer', [other], env)
  expect(await refused.exited).toBe(exitCode.refused)
  expect(refused.output.trimEnd().split('\n')).toHaveLength(1)
  expect(refused.output).toContain(`npm run rebind -- ${other}\n`)
  expect(existsSync(other)).toBe(false)

  await push(queueName, element({ seq: 2, sums: { foo: 10 } }))
  const rebind = run('rebind', [other], env)
  expect(await rebind.exited).toBe(0)
  expect(rebind.output).toContain(`now belongs to ${await ownerIn(queueName)}, ${other} (created); 1 batch waits in it`)
  const again = run('rebind', [other], env)
  expect(await again.exited).toBe(0)
  expect(again.output).toContain('already: nothing to do')
  const second = run('consumer', [other], env)
  await until('the total', () => totals(other)['foo'] === 10n)
  second.kill('SIGTERM')
  expect(await second.exited).toBe(0)
  expect(totals(path)).toEqual({ foo: 1n })
  expect(await run('consumer', [path], env).exited).toBe(exitCode.refused)
})

test('a rebind is refused while a consumer runs, and changes nothing', async () => {
  const [queueName, path, other] = [randomUUID(), freshPath(), freshPath()]
  const env = { REDIS_URL: server.url, QUEUE_NAME: queueName }
  const consumer = run('consumer', [path], env)
  await consumer.printed(/consuming from/)
  const owner = await ownerIn(queueName)
  for (const [args, env, says] of [
    [[path], { REDIS_URL: server.url, QUEUE_NAME: queueName }, 'a consumer takes batches from it'],
    [[other], { REDIS_URL: server.url, QUEUE_NAME: queueName }, 'a consumer takes batches from it'],
    // The database alone, whatever the queue says.
    [['--force', path], { REDIS_URL: server.url, QUEUE_NAME: queueName }, 'a consumer works on it'],
    [[path], { REDIS_URL: server.url, QUEUE_NAME: randomUUID() }, 'a consumer works on it'],
    [['--embedded', path], {}, 'a consumer works on it'],
  ] as const) {
    const refused = run('rebind', args, env)
    expect(await refused.exited, args.join(' ')).toBe(exitCode.refused)
    expect(refused.output.trimEnd().split('\n')).toHaveLength(1)
    expect(refused.output).toContain(says)
  }
  expect(await ownerIn(queueName)).toBe(owner)
  expect(existsSync(other)).toBe(false)
  await push(queueName, element({ sums: { a: 1 } }))
  await until('the total', () => totals(path)['a'] === 1n)
  // A killed one holds nothing up.
  consumer.kill('SIGKILL')
  await consumer.exited
  await until('Redis to notice', async () => await run('rebind', [path], env).exited === 0)
})

test('a rebind by force supersedes the consumer that runs, which ends with 69', async () => {
  const [queueName, path, other] = [randomUUID(), freshPath(), freshPath()]
  const env = { REDIS_URL: server.url, QUEUE_NAME: queueName }
  const consumer = run('consumer', [path], env)
  await consumer.printed(/consuming from/)
  expect(await run('rebind', ['--force', other], env).exited).toBe(0)
  expect(await consumer.exited).toBe(exitCode.refused)
  expect(consumer.output).toContain('another consumer has superseded this one')
})

test('a second consumer of the same database supersedes the first', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  const env = { REDIS_URL: server.url, QUEUE_NAME: queueName }
  const first = run('consumer', [path], env)
  await first.printed(/consuming from/)
  const second = run('consumer', [path], env)
  expect(await first.exited).toBe(exitCode.refused)
  await push(queueName, element({ sums: { a: 1 } }))
  await until('the total', () => totals(path)['a'] === 1n)
  second.kill('SIGTERM')
  expect(await second.exited).toBe(0)
})

test('rebind names what it lacks', async () => {
  const unnamed = run('rebind', [], { REDIS_URL: server.url })
  expect(await unnamed.exited).toBe(1)
  expect(unnamed.output).toContain('npm run rebind -- DATABASE_PATH')
  const { store, path } = openStore()
  store.close()
  const unset = run('rebind', [path])
  expect(await unset.exited).toBe(exitCode.config)
  expect(unset.output).toContain('REDIS_URL')
  const unreachable = run('rebind', [path], { REDIS_URL: `redis://127.0.0.1:${await freePort()}` })
  expect(await unreachable.exited).toBe(1)
  expect(unreachable.output).toContain('could not be bound')
  // It was given no new identity for nothing.
  expect(query(path, "SELECT CAST(value AS INTEGER) FROM meta WHERE name = 'epoch'")).toEqual([[0n]])
})

test('rejected lists what was refused and tries it again', async () => {
  const { store, path } = openStore()
  const env = { DATABASE_PATH: path }
  const empty = run('rejected', [], env)
  expect(await empty.exited).toBe(0)
  expect(empty.output).toBe('nothing was rejected\n')

  store.apply([element({ seq: 1, sums: { full: int64Max } }), element({ seq: 2, sums: { full: 5 } }), Buffer.from('x')])
  const list = run('rejected', [], env)
  expect(await list.exited).toBe(0)
  const overflow = /^(\d+): overflow: "full" 5 .*batch 2/m.exec(list.output)?.[1]
  const unreadable = /^(\d+): unreadable: /m.exec(list.output)?.[1]

  const early = run('rejected', ['--retry', `${overflow}`], env)
  expect(await early.exited).toBe(1)
  expect(early.output).toContain('would leave 64 bits')
  store.apply([element({ seq: 3, sums: { full: -5 } })])
  const all = run('rejected', ['--retry', 'all'], env)
  expect(await all.exited).toBe(1)
  expect(all.output).toContain(`${overflow}: counted`)
  expect(all.output).toContain(`${unreadable}: not counted`)
  expect(totals(path)).toEqual({ full: int64Max })
  const wrong = run('rejected', ['--retry', 'one'], env)
  expect(await wrong.exited).toBe(1)
  expect(wrong.output).toContain('--retry takes an id')
  const nowhere = run('rejected', [], { DATABASE_PATH: freshPath() })
  expect(await nowhere.exited).toBe(1)
  expect(nowhere.output).toContain('there is no database')
})

test('a consumer waits for a Redis that comes up later, says so once, and stops in time meanwhile', async () => {
  const proxy = await TcpProxy.start(server.port)
  onTestFinished(async () => { await proxy.close() })
  proxy.refuse()
  const [queueName, path] = [randomUUID(), freshPath()]
  const env = { REDIS_URL: proxy.url, QUEUE_NAME: queueName }
  await push(queueName, element({ sums: { a: 1 } }))
  const consumer = run('consumer', [path], env)
  await consumer.printed(/can't be used/)
  const impatient = run('consumer', [path], env)
  await impatient.printed(/can't be used/)
  impatient.kill('SIGTERM')
  expect(await impatient.exited).toBe(0)
  expect(existsSync(path)).toBe(false)
  proxy.heal()
  await until('the total', () => existsSync(path) && totals(path)['a'] === 1n)
  expect(consumer.output.match(/can't be used/g)).toHaveLength(1)
  consumer.kill('SIGTERM')
  expect(await consumer.exited).toBe(0)
})

test('a consumer outlives connections that break at every step of being made again', async () => {
  const proxy = await TcpProxy.start(server.port)
  onTestFinished(async () => { await proxy.close() })
  const [queueName, path] = [randomUUID(), freshPath()]
  const consumer = run('consumer', [path], { REDIS_URL: proxy.url, QUEUE_NAME: queueName })
  await consumer.printed(/consuming from/)
  const client = server.client()
  onTestFinished(() => client.disconnect())
  const listens = async (): Promise<boolean> => {
    if (consumer.child.exitCode !== null) throw new Error(consumer.output)
    return (await client.pubsub('NUMSUB', redisKeys(queueName).wake)).at(1) === 1
  }
  for (const command of ['subscribe', 'setname', 'persistence', 'subscribe']) {
    await until('the consumer to listen', listens)
    proxy.loseReplyTo(command)
    proxy.cutAll()
    await until(`a ${command} that gets no reply`, () => proxy.done)
  }
  await until('the consumer to listen', listens)
  await push(queueName, element({ sums: { a: 1 } }))
  await until('the total', () => existsSync(path) && totals(path)['a'] === 1n)
  consumer.kill('SIGTERM')
  expect(await consumer.exited).toBe(0)
})

test('a consumer without REDIS_URL ends with 78 and says which variable it is', async () => {
  const consumer = run('consumer', [freshPath()])
  expect(await consumer.exited).toBe(exitCode.config)
  expect(consumer.output).toContain('REDIS_URL must be set')
})

test('a database that belongs to a queue in Redis is not gone on with without it, unless that ' +
  'is given up', async () => {
  const [queueName, path] = [randomUUID(), freshPath()]
  await bindTo(queueName, path)
  expect(inspectDatabase(path)?.queue).toBe(`redis://127.0.0.1:${server.port} (${queueName})`)
  const queue = new EmbeddedConsumerQueue(`${path}.socket`)
  await expect(checkBinding(queue, path)).rejects.toThrow(/REDIS_URL is unset.*npm run rebind -- --embedded /)
  const rebind = run('rebind', ['--embedded', path])
  expect(await rebind.exited).toBe(0)
  expect(rebind.output).toContain('what waits there stays there')
  expect(await checkBinding(queue, path)).toBe(undefined)
  const again = run('rebind', ['--embedded', path])
  expect(await again.exited).toBe(0)
  expect(again.output).toContain('nothing to do')
  // What was left in Redis is not counted late.
  await expectRefused(queueName, path, /belongs to database/)
})

test('a database of which nobody wrote down a queue goes on with any, and writes it down', async () => {
  const { store, path } = openStore()
  store.close()
  expect(inspectDatabase(path)?.queue).toBe(undefined)
  const queue = new EmbeddedConsumerQueue(`${path}.socket`)
  const again = openStore({ path }).store
  await claimOwnership(queue, again, await checkBinding(queue, path))
  again.close()
  expect(inspectDatabase(path)?.queue).toBe('embedded')
  // On to Redis nobody has to be asked.
  await bindTo(randomUUID(), path)
  expect(inspectDatabase(path)?.queue).toMatch(/^redis:/)
})

test('a consumer that takes a dead one\'s place waits for its database instead of another', async () => {
  const { store, path } = openStore()
  const queue = new EmbeddedConsumerQueue(`${path}.socket`)
  const before = store.raiseEpoch()
  store.close()
  expect(await checkBinding(queue, path, before)).toBe(undefined)
  await expect(checkBinding(queue, path, { ...before, epoch: before.epoch + 1 })).rejects.toThrow(DatabaseMovedError)
  await expect(checkBinding(queue, path, { ...before, uuid: randomUUID() })).rejects.toThrow(DatabaseMovedError)
  await expect(checkBinding(queue, freshPath(), before)).rejects.toThrow(DatabaseMovedError)
  await expect(checkBinding(queue, dirname(path), before)).rejects.toThrow(DatabaseMovedError)
})
