// The embedded queue: it keeps every queue's promises, and some of its own.
import { once } from 'node:events'
import { existsSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '../../../test/fixtures/temporary.ts'
import { until } from '../../../test/fixtures/until.ts'
import { EmbeddedConsumerQueue } from '../src/embedded-consumer-queue.ts'
import { EmbeddedProducerQueue } from '../src/embedded-producer-queue.ts'
import { frame, uint32 } from '../src/frames.ts'
import { QueueUnavailableError } from '../src/queue.ts'
import { testQueue, type QueueUnderTest } from './queue-conformance.ts'

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
  const pushing = producer.push([Buffer.from('a'), Buffer.from('b')], producer.incarnation ?? '').then(() => { answered = true })
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
  const pushing = expect(producer.push([Buffer.from('a')], producer.incarnation ?? '')).rejects.toThrow(QueueUnavailableError)
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

test('a socket file that a killed consumer left is replaced, and the own one is gone after the close', async () => {
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
  ['a push whose element is longer than the frame', Buffer.concat([uint32(10), Buffer.of(frame.push), uint32(1), uint32(1000), Buffer.from('ab')])],
  ['a push that ends in the middle of a length', Buffer.concat([uint32(6), Buffer.of(frame.push), uint32(1), Buffer.from('ab')])],
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
