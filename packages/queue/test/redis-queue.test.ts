// The queue in Redis: it keeps every queue's promises on a real server, whatever server and network do.
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import type { Redis } from 'ioredis'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { TcpProxy } from '@gearbox/test-kit/tcp-proxy.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { Store } from '@gearbox/consumer/store/store.ts'
import { ownerText, SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import { QueueUnavailableError } from '../src/queue.ts'
import { redisKeys } from '../src/redis/connection.ts'
import { RedisConsumerQueue } from '../src/redis/consumer-queue.ts'
import { RedisProducerQueue } from '../src/redis/producer-queue.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { captureLog, type CapturedLog } from '@gearbox/test-kit/captured-log.ts'
import { testQueue, type QueueUnderTest } from './conformance.ts'

let server: RedisServer

beforeAll(async () => { server = await RedisServer.start() })
afterAll(async () => { await server.stop() })

const ours: Owner = { uuid: randomUUID(), epoch: 5 }

function makeProducer (url: string, queueName: string, log: CapturedLog = captureLog()): RedisProducerQueue {
  const producer = new RedisProducerQueue({ url, queueName, logger: log.logger, warnOfSettings: true })
  onTestFinished(async () => { await producer.close() })
  return producer
}

async function startProducer (url: string, queueName: string,
  log: CapturedLog = captureLog()): Promise<RedisProducerQueue> {
  const producer = makeProducer(url, queueName, log)
  const identified = once(producer, 'incarnation')
  await producer.start()
  await identified
  await until('word that it is in reach', () => producer.unreachable === undefined)
  return producer
}

function makeConsumer (url: string, queueName: string): RedisConsumerQueue {
  const consumer = new RedisConsumerQueue({ url, queueName, logger: captureLog().logger, warnOfSettings: false })
  onTestFinished(async () => { await consumer.close() })
  return consumer
}

async function startUnbound (url: string, queueName: string): Promise<RedisConsumerQueue> {
  const consumer = makeConsumer(url, queueName)
  await consumer.start()
  return consumer
}

async function startConsumer (url: string, queueName: string, owner: Owner = ours): Promise<RedisConsumerQueue> {
  const consumer = await startUnbound(url, queueName)
  expect(await consumer.bind((await consumer.readOwner()).owner, owner)).toBe(true)
  return consumer
}

function client (redis: RedisServer): Redis {
  const client = redis.client()
  client.on('error', () => {})
  onTestFinished(() => client.disconnect())
  return client
}

async function ownServer (settings: readonly string[] = []): Promise<RedisServer> {
  const own = await RedisServer.start(settings)
  onTestFinished(async () => { await own.stop() })
  return own
}

async function proxyTo (redis: RedisServer): Promise<TcpProxy> {
  const proxy = await TcpProxy.start(redis.port)
  onTestFinished(async () => { await proxy.close() })
  return proxy
}

function buffers (...texts: readonly string[]): Buffer[] {
  return texts.map((text) => Buffer.from(text))
}

async function push (producer: RedisProducerQueue, ...texts: readonly string[]): Promise<'pushed' | 'moved'> {
  return await producer.push(buffers(...texts), producer.incarnation ?? '')
}

testQueue('the queue in Redis', async (): Promise<QueueUnderTest> => {
  const queueName = randomUUID()
  return {
    consumer: await startConsumer(server.url, queueName),
    makeProducer: () => makeProducer(server.url, queueName),
    die: async () => { await server.kill() },
    comeBack: async () => {
      await server.startAgain()
      return await startConsumer(server.url, queueName)
    },
  }
})

test('what was pushed outlives a kill of Redis', async () => {
  const queueName = randomUUID()
  const redis = await ownServer()
  const producer = await startProducer(redis.url, queueName)
  await push(producer, 'a', 'b')
  await redis.kill()
  await redis.startAgain()
  const consumer = await startConsumer(redis.url, queueName)
  expect((await consumer.take()).map(String)).toEqual(['a', 'b'])
})

// Generation

test.each(['missing',
  'another'])('with a generation that is %s a push appends nothing and says moved', async (found) => {
  const queueName = randomUUID()
  const keys = redisKeys(queueName)
  const redis = client(server)
  const producer = await startProducer(server.url, queueName)
  const before = producer.incarnation ?? ''
  if (found === 'missing') await redis.del(keys.generation)
  else await redis.set(keys.generation, 'of somebody else')
  expect(await producer.push(buffers('a', 'b'), before)).toBe('moved')
  expect(await redis.llen(keys.batches)).toBe(0)
  expect(producer.incarnation).not.toBe(before)
  const generation = await redis.get(keys.generation)
  if (found === 'another') expect(generation).toBe('of somebody else')
  expect(producer.incarnation).toMatch(new RegExp(`/${generation}$`))
  expect(await push(producer, 'a')).toBe('pushed')
})

test('a generation is adopted and never overwritten, however many find none', async () => {
  const queueName = randomUUID()
  const producers = await Promise.all(Array.from({ length: 5 }, async () => await startProducer(server.url, queueName)))
  const redis = client(server)
  const generation = await redis.get(redisKeys(queueName).generation)
  expect(new Set(producers.map(({ incarnation }) => incarnation)).size).toBe(1)
  await redis.del(redisKeys(queueName).generation)
  await Promise.all(producers.map(async (producer) => await producer.progress(producerA)))
  expect(new Set(producers.map(({ incarnation }) => incarnation)).size).toBe(1)
  expect(await redis.get(redisKeys(queueName).generation)).not.toBe(generation)
})

test('a FLUSHALL is noticed by asking what is stored, without a push', async () => {
  const redis = await ownServer()
  const producer = await startProducer(redis.url, 'gearbox')
  const before = producer.incarnation
  await client(redis).flushall()
  const changed = once(producer, 'incarnation')
  await producer.progress(producerA)
  await changed
  expect(producer.incarnation).not.toBe(before)
  expect(producer.incarnation).toBeDefined()
})

test('a primary that was a replica meanwhile is noticed by polling, although no connection was closed', async () => {
  const [redis, other] = [await ownServer(), await ownServer()]
  const producer = await startProducer(redis.url, 'gearbox')
  const before = producer.incarnation
  const admin = client(redis)
  await client(other).set(redisKeys('gearbox').generation, (await admin.get(redisKeys('gearbox').generation))!)
  await producer.pollProgress(producerA)
  expect(producer.incarnation).toBe(before)
  await admin.replicaof('127.0.0.1', other.port)
  await until('a replica', async () => (await admin.info('replication')).includes('master_link_status:up'))
  await admin.replicaof('NO', 'ONE')
  await producer.pollProgress(producerA)
  expect(producer.unreachable).toBeUndefined()
  expect(producer.incarnation).not.toBe(before)
  expect(producer.incarnation?.split('/').at(-1), 'the generation').toBe(before?.split('/').at(-1))
})

test('a poll says how many batches wait, of all producers', async () => {
  const queueName = randomUUID()
  const producer = await startProducer(server.url, queueName)
  expect(await producer.pollProgress(producerA)).toEqual({ stored: undefined, length: 0 })
  await push(producer, 'a', 'b')
  expect(await producer.pollProgress(producerA)).toEqual({ stored: undefined, length: 2 })
})

test('what is missing in the queue is found among thousands of batches, large ones and unreadable ones', async () => {
  const queueName = randomUUID()
  const producer = await startProducer(server.url, queueName)
  const never = new AbortController().signal
  const many = Array.from({ length: 1500 },
    (_, i) => element({ producer: i % 3 === 0 ? producerB : producerA, seq: i + 1, sums: { a: 1 } }))
  const large = [1501, 1502].map((seq) => element({ seq, sums: { ['"producer":"x","seq":7,'.repeat(10)]: 1 } }))
  const padded = Buffer.concat([large[0]!.subarray(0, -1), Buffer.from(`,"x":"${'x'.repeat(5_000_000)}"}`)])
  for (const group of [many, [padded, large[1]!], buffers('not a batch', '')]) {
    expect(await producer.push(group, producer.incarnation!)).toBe('pushed')
  }
  const asked = [1, 2, 3, 4, 7, 1499, 1500, 1501, 1502, 1503]
  expect([...await producer.missing(producerA, asked, never)]).toEqual([1, 4, 7, 1503])
  expect([...await producer.missing(producerB, [4], never)]).toEqual([])
  expect([...await producer.missing(producerA, [], never)]).toEqual([])
  await client(server).del(redisKeys(queueName).batches)
  expect([...await producer.missing(producerA, [2, 3], never)]).toEqual([2, 3])
  await expect(producer.missing(producerA, [2], AbortSignal.abort())).rejects.toThrow(QueueUnavailableError)
})

test('a push wakes the consumer where the list was empty, and only there', async () => {
  const queueName = randomUUID()
  const keys = redisKeys(queueName)
  const producer = await startProducer(server.url, queueName)
  const consumer = await startConsumer(server.url, queueName)
  const listener = client(server)
  const heard: string[] = []
  listener.on('message', (_channel, message) => { heard.push(message) })
  await listener.subscribe(keys.wake)
  for (const elements of [['a', 'b'], ['c']]) {
    expect(await producer.push(buffers(...elements), producer.incarnation!)).toBe('pushed')
  }
  await consumer.acknowledge(await consumer.take())
  expect(await push(producer, 'd')).toBe('pushed')
  // Whoever hears this has heard all that was published before.
  await client(server).publish(keys.wake, 'last')
  await until('the last message', () => heard.includes('last'))
  expect(heard).toEqual(['', '', 'last'])
})

test('a push that asks for its commit at once says so on the channel, whether or not the list was empty', async () => {
  const queueName = randomUUID()
  const keys = redisKeys(queueName)
  const producer = await startProducer(server.url, queueName)
  const listener = client(server)
  const heard: string[] = []
  listener.on('message', (_channel, message) => { heard.push(message) })
  await listener.subscribe(keys.wake)
  for (const hurry of [true, false, true]) {
    expect(await producer.push(buffers('a'), producer.incarnation!, hurry)).toBe('pushed')
  }
  await client(server).publish(keys.wake, 'last')
  await until('the last message', () => heard.includes('last'))
  expect(heard).toEqual(['now', 'now', 'last'])
})

test('a request about outcomes that no consumer listens to fails, so that it is sent again', async () => {
  const producer = await startProducer(server.url, randomUUID())
  await expect(producer.requestResults({ producer: producerA, received: [1], missing: [] }))
    .rejects.toThrow('no consumer listens')
})

test('whatever a stranger publishes on the channel, a consumer wakes up and goes on', async () => {
  const queueName = randomUUID()
  const keys = redisKeys(queueName)
  const consumer = await startConsumer(server.url, queueName)
  const producer = await startProducer(server.url, queueName)
  const stranger = client(server)
  await until('the consumer to listen', async () => await stranger.publish(keys.wake, '') > 0)
  for (const message of ['[', '{}', '"now"', `{"producer":"${producerA}","missing":"x"}`, 'x'.repeat(1_000_000)]) {
    await stranger.publish(keys.wake, message)
  }
  await producer.requestResults({ producer: producerB, received: [], missing: [1] })
  const requests = await until('the request', () => {
    const found = consumer.takeResultRequests()
    return found.some(({ producer }) => producer === producerB) ? found : undefined
  })
  expect(requests).toContainEqual({ producer: producerB, received: [], missing: [1] })
  await consumer.waitForPush(60_000, new AbortController().signal)
})

test('a consumer whose owner Redis lost does not sleep before what is there', async () => {
  const redis = await ownServer()
  const producer = await startProducer(redis.url, 'gearbox')
  const consumer = await startConsumer(redis.url, 'gearbox')
  const other = client(redis)
  await until('the consumer to listen',
    async () => (await other.pubsub('NUMSUB', redisKeys('gearbox').wake)).at(1) === 1)
  await other.flushall()
  await producer.progress(producerA)
  expect(await push(producer, 'a')).toBe('pushed')
  // Without an end: only a push, or something that is there, can end it.
  const wait = async (): Promise<void> => { await consumer.waitForPush(2 ** 31 - 1, new AbortController().signal) }
  await wait()
  expect(await consumer.take()).toEqual([])
  await wait()
  expect(await consumer.take()).toEqual(buffers('a'))
})

// Owner

test('binding compares and sets: the one who read another owner loses', async () => {
  const queueName = randomUUID()
  const consumers = [await startUnbound(server.url, queueName), await startUnbound(server.url, queueName)]
  expect((await consumers[0]!.readOwner()).owner).toBeUndefined()
  expect(await consumers[0]!.bind(undefined, ours)).toBe(true)
  expect(await consumers[1]!.bind(undefined, { ...ours, epoch: 6 })).toBe(false)
  expect((await consumers[1]!.readOwner()).owner).toEqual(ours)
  expect(await consumers[1]!.bind(ours, { ...ours, epoch: 6 })).toBe(true)
})

test('a consumer that is not bound takes and acknowledges nothing', async () => {
  const consumer = await startUnbound(server.url, randomUUID())
  await expect(consumer.take()).rejects.toThrow(QueueUnavailableError)
  await expect(consumer.acknowledge(buffers('a'))).rejects.toThrow(QueueUnavailableError)
})

test('an owner that Redis lost is written again', async () => {
  const queueName = randomUUID()
  const keys = redisKeys(queueName)
  const redis = client(server)
  const consumer = await startConsumer(server.url, queueName)
  await push(await startProducer(server.url, queueName), 'a')
  await redis.del(keys.owner)
  await until('its turn', async () => (await consumer.take()).length === 1)
  expect(await redis.get(keys.owner)).toBe(ownerText(ours))
  await redis.del(keys.owner)
  await consumer.acknowledge(buffers('a'))
  expect(await redis.get(keys.owner)).toBe(ownerText(ours))
  expect((await consumer.take()).map(String)).toEqual(['a'])
})

test('a lower epoch of the same database is overwritten', async () => {
  const queueName = randomUUID()
  const keys = redisKeys(queueName)
  const redis = client(server)
  const consumer = await startConsumer(server.url, queueName)
  await redis.set(keys.owner, ownerText({ ...ours, epoch: 4 }))
  await consumer.take()
  expect(await redis.get(keys.owner)).toBe(ownerText(ours))
})

test.each([
  ['a higher epoch', { ...ours, epoch: 6 }],
  ['another database', { uuid: randomUUID(), epoch: 1 }],
])('%s supersedes a running consumer, which then removes nothing more', async (_what, newer) => {
  const queueName = randomUUID()
  const keys = redisKeys(queueName)
  const redis = client(server)
  const consumer = await startConsumer(server.url, queueName)
  await push(await startProducer(server.url, queueName), 'a')
  await redis.set(keys.owner, ownerText(newer))
  await expect(consumer.take()).rejects.toThrow(SupersededError)
  await expect(consumer.acknowledge(buffers('a'))).rejects.toThrow(SupersededError)
  expect(await redis.get(keys.owner)).toBe(ownerText(newer))
  expect(await redis.llen(keys.batches)).toBe(1)
})

test('an owner that is none of ours is left alone', async () => {
  const queueName = randomUUID()
  const consumer = await startConsumer(server.url, queueName)
  await client(server).set(redisKeys(queueName).owner, 'somebody')
  await expect(consumer.take()).rejects.toThrow(SupersededError)
  await expect(consumer.readOwner()).rejects.toThrow(SupersededError)
})

// Memory

test('at maxmemory pushes fail, but the consumer can bind, take and acknowledge, and then pushes ' +
  'work again', async () => {
  const redis = await ownServer(['--maxmemory', '8mb'])
  const producer = await startProducer(redis.url, 'gearbox')
  let pushed = 0
  const fill = async (bytes: number): Promise<void> => {
    for (;;) {
      await producer.push([Buffer.alloc(bytes, `${pushed} `)], producer.incarnation ?? '')
      pushed++
    }
  }
  // The smaller ones fill what a large command's own buffers took.
  for (const bytes of [512 * 1024, 16 * 1024, 256]) await expect(fill(bytes)).rejects.toThrow(QueueUnavailableError)
  expect(pushed).toBeGreaterThan(2)
  expect(await producer.length()).toBe(pushed)

  const consumer = await startConsumer(redis.url, 'gearbox', { ...ours, epoch: 1 })
  expect(await consumer.bind({ ...ours, epoch: 1 }, ours)).toBe(true)
  // What buffers took a moment ago may be free by now: with less memory it is full for sure.
  await client(redis).config('SET', 'maxmemory', '4mb')
  // Telling keeps it in a hash, which takes memory; the word itself goes out.
  const heard = once(producer, 'progress')
  await expect(consumer.reportProgress(new Map(
    [[producerA, { high: 1, gaps: [], rejected: [], omittedRejections: [] }]]
  ))).rejects.toThrow(QueueUnavailableError)
  await heard
  for (let run = await consumer.take(); run.length > 0; run = await consumer.take()) {
    await consumer.acknowledge(run)
    pushed -= run.length
  }
  expect(pushed).toBe(0)
  await until('a push that works', async () => await push(producer, 'a') === 'pushed')
})

// Time

/** Everything that can be asked of a queue settles in time, whether it works or not. */
async function expectAllSettled (producer: RedisProducerQueue, consumer: RedisConsumerQueue,
  incarnation: string): Promise<number> {
  const startedAt = performance.now()
  const stored = { high: 1, gaps: [], rejected: [], omittedRejections: [] }
  const results = await Promise.allSettled([
    producer.push(buffers('a'), incarnation), producer.progress(producerA), producer.check(), producer.length(),
    consumer.take(), consumer.acknowledge(buffers('a')), consumer.reportProgress(new Map([[producerA, stored]])),
    consumer.forget([producerA]),
    consumer.readOwner(), consumer.bind(ours, ours), consumer.forgetProgress(),
  ])
  expect(performance.now() - startedAt).toBeLessThan(3500)
  const reasons = results.flatMap((result): unknown[] => result.status === 'rejected' ? [result.reason] : [])
  for (const reason of reasons) expect(reason).toBeInstanceOf(QueueUnavailableError)
  return reasons.length
}

test('when Redis stops answering, everything fails within about 3 s, and works again when it is back', async () => {
  const redis = await ownServer()
  const producer = await startProducer(redis.url, 'gearbox')
  const consumer = await startConsumer(redis.url, 'gearbox')
  const incarnation = producer.incarnation ?? ''
  process.kill(redis.pid, 'SIGSTOP')
  try {
    for (let round = 1; round <= 2; round++) expect(await expectAllSettled(producer, consumer, incarnation)).toBe(11)
    expect(producer.unreachable).toBeTypeOf('string')
  } finally {
    process.kill(redis.pid, 'SIGCONT')
  }
  await until('the same incarnation', () => producer.incarnation === incarnation)
  expect(await push(producer, 'b')).toBe('pushed')
  await until('the consumer', async () => (await consumer.take()).map(String).includes('b'))
})

test('a consumer that starts while Redis does not answer is told so in time', async () => {
  const redis = await ownServer()
  const proxy = await proxyTo(redis)
  proxy.blackHole()
  const consumer = makeConsumer(proxy.url, 'gearbox')
  const startedAt = performance.now()
  await expect(consumer.start()).rejects.toThrow(QueueUnavailableError)
  expect(performance.now() - startedAt).toBeLessThan(3500)
  proxy.heal()
  await until('the queue', async () => await consumer.bind(undefined, ours))
})

test('when the network swallows everything, everything fails within about 3 s, and works again when ' +
  'it is back', async () => {
  const proxy = await proxyTo(server)
  const queueName = randomUUID()
  const producer = await startProducer(proxy.url, queueName)
  const consumer = await startConsumer(proxy.url, queueName)
  const incarnation = producer.incarnation ?? ''
  proxy.blackHole()
  for (let round = 1; round <= 2; round++) expect(await expectAllSettled(producer, consumer, incarnation)).toBe(11)
  proxy.heal()
  await until('the same incarnation', () => producer.incarnation === incarnation)
  expect(await push(producer, 'b')).toBe('pushed')
  await until('the consumer', async () => (await consumer.take()).map(String).includes('b'))
})

// Lost replies and late commands

test('a push whose reply is lost fails; the same bytes pushed again are there twice, and count once', async () => {
  const proxy = await proxyTo(server)
  const queueName = randomUUID()
  const producer = await startProducer(proxy.url, queueName)
  const consumer = await startConsumer(server.url, queueName)
  const [first, second] = [element({ seq: 1, sums: { foo: 1 } }), element({ seq: 2, sums: { foo: 10 } })]
  // Redis learns the script by the first push; later ones are carried out at the first try.
  expect(await producer.push([first], producer.incarnation ?? '')).toBe('pushed')
  const incarnation = producer.incarnation ?? ''
  proxy.loseReplyTo('"seq":2')
  await expect(producer.push([second], incarnation)).rejects.toThrow(QueueUnavailableError)
  expect(proxy.done).toBe(true)
  await until('the connection', () => producer.incarnation !== undefined)
  expect(producer.incarnation).toBe(incarnation)
  expect(await producer.push([second], incarnation)).toBe('pushed')
  const run = await consumer.take()
  expect(run).toEqual([first, second, second])

  const store = new Store({ path: `${temporaryDir()}/numbers.db`, idempotencyHours: 24, idempotencyRowsMax: 1000 })
  onTestFinished(() => store.close())
  expect(store.apply(run)).toMatchObject({ batches: 2, duplicates: 1, gaps: [] })
})

test('a push that is cut in half leaves nothing behind', async () => {
  const proxy = await proxyTo(server)
  const queueName = randomUUID()
  const producer = await startProducer(proxy.url, queueName)
  const consumer = await startConsumer(server.url, queueName)
  await push(producer, 'a')
  const incarnation = producer.incarnation ?? ''
  proxy.cutIn('cut here')
  await expect(push(producer, 'cut here', 'and here')).rejects.toThrow(QueueUnavailableError)
  expect(proxy.done).toBe(true)
  await until('the connection', () => producer.incarnation !== undefined)
  expect(await producer.push(buffers('b'), incarnation)).toBe('pushed')
  expect((await consumer.take()).map(String)).toEqual(['a', 'b'])
})

test('an acknowledgement that arrives after its connection died and all was taken over removes nothing', async () => {
  const proxy = await proxyTo(server)
  const queueName = randomUUID()
  const producer = await startProducer(server.url, queueName)
  const consumer = await startConsumer(proxy.url, queueName)
  await push(producer, 'a', 'b')
  const run = await consumer.take()
  // Redis learns the script.
  await consumer.acknowledge([])
  proxy.holdBack()
  await expect(consumer.acknowledge(run)).rejects.toThrow(QueueUnavailableError)
  expect(proxy.heldBytes).toBeGreaterThan(0)
  await until('the connection', async () => (await consumer.take()).length === 2)
  await consumer.acknowledge(await consumer.take())
  await push(producer, 'c', 'd')
  proxy.release()
  // Whatever Redis was sent before this it has carried out before this.
  await until('the late command', () => proxy.heldBytes === 0)
  await producer.check()
  expect((await consumer.take()).map(String)).toEqual(['c', 'd'])
})

test('after a reconnect no command is sent again behind our back', async () => {
  const proxy = await proxyTo(server)
  const queueName = randomUUID()
  const producer = await startProducer(proxy.url, queueName)
  await push(producer, 'a')
  const incarnation = producer.incarnation ?? ''
  proxy.loseReplyTo('once only')
  await expect(push(producer, 'once only')).rejects.toThrow(QueueUnavailableError)
  await until('the connection', () => producer.incarnation === incarnation)
  await producer.check()
  expect(await producer.length()).toBe(2)
})

// Settings

test.each([
  ['appendonly is off', ['--appendonly', 'no']],
  ['appendfsync is everysec', ['--appendfsync', 'everysec']],
  ['maxmemory-policy is allkeys-lru', ['--maxmemory-policy', 'allkeys-lru']],
  ['CONFIG GET is not allowed', ['--rename-command', 'CONFIG', '']],
])('%s: not durable, and one warning that says so, also after a reconnect', async (problem, settings) => {
  const redis = await ownServer(settings)
  const proxy = await proxyTo(redis)
  const log = captureLog()
  const producer = await startProducer(proxy.url, 'gearbox', log)
  expect(producer.durable).toBe(false)
  proxy.cutAll()
  await until('the cut', () => producer.incarnation === undefined)
  await until('the reconnect', () => producer.incarnation !== undefined)
  expect(log.messages(40)).toEqual([expect.stringContaining(problem)])
})

test('with the settings of our own set-up it is durable and nothing is warned of', async () => {
  const log = captureLog()
  expect((await startProducer(server.url, randomUUID(), log)).durable).toBe(true)
  expect(log.messages(40)).toEqual([])
})

test('a password in the URL is not shown', () => {
  expect(makeConsumer(`redis://user:secret@127.0.0.1:${server.port}`, 'gearbox').name)
    .toBe(`redis://127.0.0.1:${server.port} (gearbox)`)
})
