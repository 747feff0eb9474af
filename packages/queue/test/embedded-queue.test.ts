// The embedded queue: it keeps every queue's promises, and some of its own.
import { once } from 'node:events'
import { chownSync, existsSync, mkdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { dirname, join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { EmbeddedConsumerQueue } from '../src/embedded/consumer-queue.ts'
import { EmbeddedProducerQueue } from '../src/embedded/producer-queue.ts'
import { frame, uint32 } from '../src/embedded/frames.ts'
import { QueueUnavailableError } from '../src/queue.ts'
import { testQueue, type QueueUnderTest } from './conformance.ts'

async function startConsumer (path: string): Promise<EmbeddedConsumerQueue> {
  const consumer = new EmbeddedConsumerQueue(path)
  await consumer.start()
  onTestFinished(async () => { await consumer.close().catch(() => {}) })
  return consumer
}

async function startProducer (path: string): Promise<EmbeddedProducerQueue> {
  const producer = new EmbeddedProducerQueue(path)
  onTestFinished(async () => { await producer.close() })
  const identified = once(producer, 'incarnation')
  await producer.start()
  await identified
  return producer
}

testQueue('the embedded queue', async (): Promise<QueueUnderTest> => {
  const path = join(temporaryDir(), 'queue')
  const consumer = await startConsumer(path)
  return {
    consumer,
    makeProducer: () => new EmbeddedProducerQueue(path),
    die: async () => { await consumer.close() },
    comeBack: async () => await startConsumer(path),
  }
})

test('a push is answered when all of it is acknowledged, and not before', async () => {
  const path = join(temporaryDir(), 'queue')
  const consumer = await startConsumer(path)
  const producer = await startProducer(path)
  let answered = false
  const pushing = producer.push([Buffer.from('a'), Buffer.from('b')],
    producer.incarnation ?? '').then(() => { answered = true })
  await until('both', () => consumer.length === 2)
  await consumer.acknowledge([Buffer.from('a')])
  // An answer to a later question comes after an answer to the push would have come.
  await producer.check()
  expect(answered).toBe(false)
  await consumer.acknowledge([Buffer.from('b')])
  await pushing
})

test('a push whose consumer dies is rejected', async () => {
  const path = join(temporaryDir(), 'queue')
  const consumer = await startConsumer(path)
  const producer = await startProducer(path)
  const pushing = expect(producer.push([Buffer.from('a')],
    producer.incarnation ?? '')).rejects.toThrow(QueueUnavailableError)
  await until('it', () => consumer.length === 1)
  await consumer.close()
  await pushing
})

test('what a dead worker pushed stays, and its acknowledgement reaches nobody', async () => {
  const path = join(temporaryDir(), 'queue')
  const consumer = await startConsumer(path)
  const producer = await startProducer(path)
  producer.push([Buffer.from('a')], producer.incarnation ?? '').catch(() => {})
  await until('it', () => consumer.length === 1)
  await producer.close()
  await consumer.lastWorkerGone()
  expect((await consumer.take()).map(String)).toEqual(['a'])
  await consumer.acknowledge(await consumer.take())
  expect(consumer.length).toBe(0)
})

test('the consumer knows when its last worker has left', async () => {
  const path = join(temporaryDir(), 'queue')
  const consumer = await startConsumer(path)
  await consumer.lastWorkerGone()
  const producers = [await startProducer(path), await startProducer(path)]
  let gone = false
  const last = consumer.lastWorkerGone().then(() => { gone = true })
  await producers[0]?.close()
  await producers[1]?.check()
  expect(gone).toBe(false)
  await producers[1]?.close()
  await last
})

test('a socket file that a killed consumer left is replaced, and its own is gone after the close', async () => {
  const path = join(temporaryDir(), 'queue')
  writeFileSync(path, '')
  const consumer = await startConsumer(path)
  await startProducer(path)
  await consumer.close()
  expect(existsSync(path)).toBe(false)
})

test.each([
  ['an HTTP request', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
  ['an empty push', Buffer.concat([uint32(0), Buffer.of(frame.push)])],
  ['a push whose element is longer than the frame',
    Buffer.concat([uint32(10), Buffer.of(frame.push), uint32(1), uint32(1000), Buffer.from('ab')])],
  ['a push that ends in the middle of a length',
    Buffer.concat([uint32(6), Buffer.of(frame.push), uint32(1), Buffer.from('ab')])],
])('%s from a stranger ends the connection, not the consumer', async (_what, bytes) => {
  const path = join(temporaryDir(), 'queue')
  const consumer = await startConsumer(path)
  const stranger = connect(path).resume()
  const closed = new Promise((resolve) => stranger.on('error', () => {}).once('close', resolve))
  stranger.write(bytes)
  await closed
  expect(await consumer.take()).toEqual([])
  await (await startProducer(path)).check()
})

// The socket's directory lies among temporary files, and programs tidy those up.

test.each([
  ['its directory', (path: string) => rmSync(dirname(path), { recursive: true })],
  ['the socket', (path: string) => rmSync(path)],
])('%s removed: connected workers go on, and new ones find it again', async (_what, remove) => {
  const path = join(temporaryDir(), 'gearbox', 'queue')
  const consumer = await startConsumer(path)
  const before = await startProducer(path)
  for (let time = 1; time <= 2; time++) {
    remove(path)
    await before.check()
    const pushing = before.push([Buffer.from('a')], before.incarnation ?? '')
    await until('it', () => consumer.length === 1)
    await consumer.acknowledge([Buffer.from('a')])
    await pushing
    await until('the socket', () => existsSync(path), 2000)
    expect(statSync(dirname(path)).mode & 0o777).toBe(0o700)
    const after = await startProducer(path)
    // It is the same consumer: nothing has to be pushed again.
    expect(after.incarnation).toBe(before.incarnation)
  }
  await consumer.close()
  expect(existsSync(path)).toBe(false)
})

test('a consumer that starts makes the directory that is gone', async () => {
  const path = join(temporaryDir(), 'gone', 'queue')
  await startConsumer(path)
  expect(statSync(dirname(path)).mode & 0o777).toBe(0o700)
  await startProducer(path)
})

test.skipIf(process.getuid?.() !== 0)('a directory that another user has made in its place is used by neither end ' +
  '(only root can play both)', async () => {
  const path = join(temporaryDir(), 'gearbox', 'queue')
  const consumer = await startConsumer(path)
  const producer = await startProducer(path)
  rmSync(dirname(path), { recursive: true })
  mkdirSync(dirname(path))
  chownSync(dirname(path), 12345, 12345)
  const trap = createServer((socket) => socket.resume())
  onTestFinished(() => { trap.close() })
  await new Promise<void>((resolve) => trap.listen(path, resolve))
  const late = new EmbeddedProducerQueue(path)
  onTestFinished(async () => { await late.close() })
  await late.start()
  await until('a refusal', () => late.unreachable?.endsWith('belongs to another user'))
  await producer.check()
  expect(statSync(dirname(path)).uid).toBe(12345)
  await expect(new EmbeddedConsumerQueue(path).start()).rejects.toThrow(/belongs to another user/)
  // Once that is gone both find each other again.
  rmSync(dirname(path), { recursive: true })
  await until('the late one to be connected', () => late.incarnation !== undefined)
  expect(late.incarnation).toBe(producer.incarnation)
  await consumer.close()
})

test('what keeps a consumer from storing reaches workers, also later ones, until it is over or the ' +
  'consumer is gone', async () => {
  const path = join(temporaryDir(), 'queue')
  const consumer = await startConsumer(path)
  const producer = await startProducer(path)
  expect(producer.storeFailure).toBe(undefined)
  await consumer.reportTrouble({ reason: 'full', moved: false })
  await until('the report', () => producer.storeFailure?.reason === 'full')
  expect(await producer.check()).toBe(undefined)
  const since = producer.storeFailure?.since
  await consumer.reportTrouble({ reason: 'moved', moved: true })
  await until('the report', () => producer.storeFailure?.reason === 'moved')
  expect(producer.storeFailure?.since).toBe(since)
  const later = await startProducer(path)
  expect(await later.check()).toBe('moved')
  await consumer.reportTrouble(undefined)
  await until('the end', () => producer.storeFailure === undefined)
  expect(await later.check()).toBe(undefined)
  await consumer.reportTrouble({ reason: 'full', moved: false })
  await until('the report', () => producer.storeFailure !== undefined)
  await consumer.close()
  await until('the end', () => producer.unreachable !== undefined)
  expect(producer.storeFailure).toBe(undefined)
})
