// What every queue must do, whatever it is made of. Each implementation's test runs this suite on itself.
import { once } from 'node:events'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { until } from '@gearbox/test-kit/until.ts'
import type { Progress, ResultRequest } from '@gearbox/protocol/progress.ts'
import { QueueUnavailableError, type ConsumerQueue, type ProducerQueue } from '../src/queue.ts'
import { producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'

/** One queue of its own for one test, with nothing in it. */
export interface QueueUnderTest {
  /** Started and bound. */
  readonly consumer: ConsumerQueue
  /** Made, but not started. The test closes it. */
  makeProducer: () => ProducerQueue
  /** The part that producers talk to dies without a word. */
  die: () => Promise<void>
  /** It comes back. @returns a consumer's end that works */
  comeBack: () => Promise<ConsumerQueue>
}

const mebibyte = 1024 * 1024
const never = new AbortController().signal

export function testQueue (name: string, prepare: () => Promise<QueueUnderTest>): void {
  describe(name, () => {
    async function connected (queue: QueueUnderTest): Promise<ProducerQueue> {
      const producer = queue.makeProducer()
      onTestFinished(async () => { await producer.close() })
      const identified = once(producer, 'incarnation')
      await producer.start()
      await identified
      return producer
    }

    function push (producer: ProducerQueue, ...texts: readonly string[]): Promise<'pushed' | 'moved'> {
      const pushing = producer.push(texts.map((text) => Buffer.from(text)), producer.incarnation ?? '')
      // A queue may answer only when the consumer has acknowledged, which many tests never do.
      pushing.catch(() => {})
      return pushing
    }

    /** The whole queue, once it has so many elements. */
    async function waiting (consumer: ConsumerQueue, count: number): Promise<string[]> {
      return await until(`${count} elements`, async () => {
        const run = (await consumer.take()).map(String)
        return run.length >= count ? run : undefined
      })
    }

    /** Takes a run of so many elements and acknowledges it. */
    async function acknowledgeAll (consumer: ConsumerQueue, count: number): Promise<void> {
      await waiting(consumer, count)
      await consumer.acknowledge(await consumer.take())
    }

    /** Resolves when the consumer hears what producers send: it may still be on its way to listening. */
    async function listening ({ consumer }: QueueUnderTest, producer: ProducerQueue): Promise<void> {
      await until('the consumer to listen', async () => {
        await producer.requestResults({ producer: producerB, received: [], missing: [1] })
        return consumer.takeResultRequests().length > 0
      })
      // Whoever hears this has heard all that was sent before.
      await producer.requestResults({ producer: producerB, received: [], missing: [2] })
      await until('the last', () => consumer.takeResultRequests().some(({ missing }) => missing.includes(2)))
      const stop = new AbortController()
      stop.abort()
      await consumer.waitForPush(0, stop.signal)
    }

    function buffers (...texts: readonly string[]): Buffer[] {
      return texts.map((text) => Buffer.from(text))
    }

    test('hands out elements in the order they were pushed, and keeps them until they are acknowledged', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      const pushes = [push(producer, 'a'), push(producer, 'b', 'c', 'd'), push(producer, 'e')]
      expect(await waiting(consumer, 5)).toEqual(['a', 'b', 'c', 'd', 'e'])
      expect((await consumer.take()).map(String)).toEqual(['a', 'b', 'c', 'd', 'e'])
      expect(consumer.length).toBe(5)
      expect(await producer.length()).toBe(5)
      await consumer.acknowledge(await consumer.take())
      expect(await Promise.all(pushes)).toEqual(['pushed', 'pushed', 'pushed'])
      expect(await consumer.take()).toEqual([])
      expect(consumer.length).toBe(0)
      expect(await producer.length()).toBe(0)
    })

    test('keeps every byte of an element', async () => {
      const queue = await prepare()
      const producer = await connected(queue)
      const bytes = Buffer.from(Array.from({ length: 1024 }, (_, i) => i % 256))
      producer.push([bytes], producer.incarnation ?? '').catch(() => {})
      await waiting(queue.consumer, 1)
      expect((await queue.consumer.take())[0]?.equals(bytes)).toBe(true)
    })

    test('takes nothing for another incarnation than its own', async () => {
      const queue = await prepare()
      const producer = await connected(queue)
      expect(await producer.push(buffers('a', 'b'), 'another')).toBe('moved')
      expect(await queue.consumer.take()).toEqual([])
      push(producer, 'c').catch(() => {})
      expect(await waiting(queue.consumer, 1)).toEqual(['c'])
    })

    test('several producers share it', async () => {
      const queue = await prepare()
      const producers = [await connected(queue), await connected(queue)]
      expect(producers[0]?.incarnation).toBe(producers[1]?.incarnation)
      for (const [i, producer] of producers.entries()) push(producer, `${i}.1`, `${i}.2`).catch(() => {})
      const elements = await waiting(queue.consumer, 4)
      for (const i of [0, 1]) expect(elements.filter((text) => text.startsWith(`${i}.`))).toEqual([`${i}.1`, `${i}.2`])
    })

    test('a run has at most 256 elements', async () => {
      const queue = await prepare()
      const producer = await connected(queue)
      const texts = Array.from({ length: 300 }, (_, i) => String(i))
      push(producer, ...texts).catch(() => {})
      expect(await waiting(queue.consumer, 256)).toEqual(texts.slice(0, 256))
      await queue.consumer.acknowledge(await queue.consumer.take())
      expect((await queue.consumer.take()).map(String)).toEqual(texts.slice(256))
    })

    test('a run has at most 4 MiB, and one element however large', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      const large = Array.from({ length: 5 }, (_, i) => Buffer.alloc(mebibyte, String(i)))
      const huge = Buffer.alloc(5 * mebibyte, 'h')
      producer.push(large, producer.incarnation ?? '').catch(() => {})
      producer.push([huge], producer.incarnation ?? '').catch(() => {})
      await until('all of it', async () => await producer.length() === 6)
      expect((await consumer.take()).map((element) => element.length))
        .toEqual(Array.from({ length: 4 }, () => mebibyte))
      await consumer.acknowledge(large.slice(0, 4))
      expect((await consumer.take()).map((element) => element.length)).toEqual([mebibyte])
      await consumer.acknowledge(large.slice(4))
      expect((await consumer.take()).map((element) => element.length)).toEqual([5 * mebibyte])
    })

    test('acknowledging removes elements only while the head is the next of them, byte for byte', async () => {
      const queue = await prepare()
      const { consumer } = queue
      push(await connected(queue), 'a', 'b', 'c').catch(() => {})
      await waiting(consumer, 3)
      await consumer.acknowledge(buffers('b', 'a'))
      await consumer.acknowledge(buffers('A'))
      await consumer.acknowledge(buffers('a '))
      await consumer.acknowledge([])
      expect((await consumer.take()).map(String)).toEqual(['a', 'b', 'c'])
      await consumer.acknowledge(buffers('a', 'x', 'b'))
      expect((await consumer.take()).map(String)).toEqual(['b', 'c'])
      await consumer.acknowledge(buffers('b', 'c', 'd'))
      expect(await consumer.take()).toEqual([])
      await consumer.acknowledge(buffers('b', 'c', 'd'))
    })

    test('acknowledgements that are repeated or late, in any order, remove nothing that they do not name', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      const step = fc.oneof(
        fc.record({ push: fc.array(fc.constantFrom('a', 'b', 'c'), { minLength: 1, maxLength: 4 }) }),
        fc.record({ acknowledge: fc.array(fc.constantFrom('a', 'b', 'c'), { maxLength: 4 }) }))
      await fc.assert(fc.asyncProperty(fc.array(step, { maxLength: 12 }), async (steps) => {
        const model: string[] = []
        for (const step of steps) {
          if ('push' in step) {
            push(producer, ...step.push).catch(() => {})
            model.push(...step.push)
            await waiting(consumer, model.length)
          } else {
            await consumer.acknowledge(buffers(...step.acknowledge))
            for (const text of step.acknowledge) {
              if (model[0] !== text) break
              model.shift()
            }
          }
          expect((await consumer.take()).map(String)).toEqual(model)
        }
        await consumer.acknowledge(await consumer.take())
      }), { seed, numRuns: 40 })
    })

    test('reported progress reaches its producer at once, and can be polled', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      const heard: Array<[string, Progress]> = []
      producer.on('progress', (...message) => heard.push(message))
      const first: Progress = { high: 7, gaps: [[2, 3]], rejected: [], omittedRejections: [] }
      const second: Progress = {
        high: 9,
        gaps: [],
        rejected: [{ seq: 8, key: 'ключ "\\ \u2028', reason: 'overflow' },
          { seq: 9, once: 'f00', reason: 'other body' }, { seq: 9, reason: 'unreadable' }],
        omittedRejections: [5],
      }
      expect(await producer.progress(producerA)).toBeUndefined()
      // Told until it is heard: a producer may still be on its way to listening.
      await until('the first word', async () => {
        await consumer.reportProgress(new Map([[producerA, first]]))
        return heard.length > 0
      })
      expect(heard[0]).toEqual([producerA, first])
      expect(await producer.progress(producerA)).toEqual(first)
      heard.length = 0
      await consumer.reportProgress(new Map([[producerA, second], [producerB, first]]))
      await until('both words',
        () => heard.some(([, stored]) => stored.high === 9) && heard.some(([producer]) => producer === producerB))
      expect(await producer.progress(producerA)).toEqual(second)
      expect(await producer.progress(producerB)).toEqual(first)
      await consumer.reportProgress(new Map())
      await consumer.forget([])
      await consumer.forget([producerA])
      expect(await producer.progress(producerA)).toBeUndefined()
      await consumer.forgetProgress()
      expect(await producer.progress(producerB)).toBeUndefined()
    })

    test('a push ends the wait for one', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      // The consumer may still be on its way to listening, and only a push to an empty queue wakes it.
      const stop = new AbortController()
      let woken = false
      const wait = consumer.waitForPush(60_000, stop.signal).then(() => { woken = true })
      await until('the wake-up', async () => {
        if (woken) return true
        const pushed = push(producer, 'a')
        await Promise.race([pushed, wait])
        await consumer.acknowledge(await consumer.take())
        await pushed
        return woken
      })
      await wait
    })

    test('a push that asks for its commit at once ends the wait for that, also behind others; others do not',
      async () => {
        const queue = await prepare()
        const { consumer } = queue
        const producer = await connected(queue)
        push(producer, 'a').catch(() => {})
        await waiting(consumer, 1)
        await listening(queue, producer)
        producer.push(buffers('b'), producer.incarnation ?? '', true).catch(() => {})
        await consumer.waitForHurry(60_000, never)
        await acknowledgeAll(consumer, 2)

        push(producer, 'c').catch(() => {})
        await waiting(consumer, 1)
        const startedAt = performance.now()
        await consumer.waitForHurry(30, never)
        expect(performance.now() - startedAt).toBeGreaterThanOrEqual(25)
        const stop = new AbortController()
        const aborted = consumer.waitForHurry(60_000, stop.signal)
        stop.abort()
        await aborted
      })

    test('what asked for its commit at once and was taken does not ask again; what was not taken does', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      await listening(queue, producer)
      const texts = Array.from({ length: 300 }, (_, i) => String(i))
      producer.push(texts.map((text) => Buffer.from(text)), producer.incarnation ?? '', true).catch(() => {})
      await consumer.waitForPush(60_000, never)
      await acknowledgeAll(consumer, 256)
      await consumer.waitForHurry(60_000, never)
      await acknowledgeAll(consumer, 44)
      const startedAt = performance.now()
      await consumer.waitForHurry(30, never)
      expect(performance.now() - startedAt).toBeGreaterThanOrEqual(25)
    })

    test('requests about outcomes reach the consumer, one per producer, and wake it', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      await listening(queue, producer)
      expect(consumer.takeResultRequests()).toEqual([])
      await producer.requestResults({ producer: producerA, received: [1, 2], missing: [3] })
      await consumer.waitForPush(60_000, never)
      expect(consumer.takeResultRequests()).toEqual([{ producer: producerA, received: [1, 2], missing: [3] }])
      await producer.requestResults({ producer: producerA, received: [2], missing: [3, 5] })
      await producer.requestResults({ producer: producerB, received: [], missing: [3] })
      await producer.requestResults({ producer: producerA, received: [3], missing: [4] })
      const found = new Map<string, ResultRequest>()
      await until('all of them', () => {
        for (const request of consumer.takeResultRequests()) {
          const before = found.get(request.producer) ?? { received: [], missing: [] }
          const received = [...new Set([...before.received, ...request.received])]
          const missing = [...new Set([...before.missing, ...request.missing])].filter((seq) => !received.includes(seq))
          found.set(request.producer, { producer: request.producer, received, missing })
        }
        return found.get(producerA)?.missing.includes(4)
      })
      expect([...found.values()]).toEqual([
        { producer: producerA, received: [2, 3], missing: [5, 4] },
        { producer: producerB, received: [], missing: [3] },
      ])
      expect(consumer.takeResultRequests()).toEqual([])
    })

    test('outcomes of entries come with a report, and are in no later answer to a poll', async () => {
      const queue = await prepare()
      const { consumer } = queue
      const producer = await connected(queue)
      const heard: Progress[] = []
      producer.on('progress', (_producer, stored) => heard.push(stored))
      const stored: Progress = { high: 7, gaps: [], rejected: [], omittedRejections: [] }
      const results = [
        { seq: 7, entry: 0, outcome: { result: { first: 1, text: 'ключ "\\ \u2028' } } },
        { seq: 7, entry: 1, outcome: { error: { statusCode: 409, code: 'X', message: 'no', details: { left: 0 } } } },
      ]
      await until('the report', async () => {
        await consumer.reportProgress(new Map([[producerA, { ...stored, results }]]))
        return heard.length > 0
      })
      expect(heard[0]).toEqual({ ...stored, results })
      expect(await producer.progress(producerA)).toEqual(stored)
    })

    test('a wait without a push ends with its time or an abort', async () => {
      const { consumer } = await prepare()
      const startedAt = performance.now()
      await consumer.waitForPush(30, never)
      expect(performance.now() - startedAt).toBeGreaterThanOrEqual(25)
      const stop = new AbortController()
      const wait = consumer.waitForPush(60_000, stop.signal)
      stop.abort()
      await wait
      expect(performance.now() - startedAt).toBeLessThan(10_000)
    })

    test('says why it is out of reach, from before the start until it is reached', async () => {
      const queue = await prepare()
      const producer = queue.makeProducer()
      onTestFinished(async () => { await producer.close() })
      expect(producer.unreachable).toBeTypeOf('string')
      expect(producer.incarnation).toBeUndefined()
      await expect(producer.push(buffers('a'), 'any')).rejects.toThrow(QueueUnavailableError)
      await expect(producer.check()).rejects.toThrow(QueueUnavailableError)
      await expect(producer.progress(producerA)).rejects.toThrow(QueueUnavailableError)
      await expect(producer.length()).rejects.toThrow(QueueUnavailableError)
      await expect(producer.requestResults({ producer: producerA, received: [], missing: [1] }))
        .rejects.toThrow(QueueUnavailableError)
      const identified = once(producer, 'incarnation')
      await producer.start()
      await identified
      await until('word that it is in reach', () => producer.unreachable === undefined)
      expect(producer.incarnation).toBeTypeOf('string')
      await producer.check()
    })

    test('after the other end died it connects again by itself and has another incarnation', async () => {
      const queue = await prepare()
      const producer = await connected(queue)
      const before = producer.incarnation
      await queue.die()
      await until('word that it is out of reach',
        () => producer.unreachable !== undefined && producer.incarnation === undefined)
      await expect(producer.push(buffers('lost'), before ?? '')).rejects.toThrow(QueueUnavailableError)
      await expect(producer.check()).rejects.toThrow(QueueUnavailableError)
      await expect(producer.progress(producerA)).rejects.toThrow(QueueUnavailableError)
      const consumer = await queue.comeBack()
      await until('a new incarnation', () => producer.incarnation !== undefined && producer.incarnation !== before)
      expect(await producer.push(buffers('old'), before ?? '')).toBe('moved')
      push(producer, 'new').catch(() => {})
      expect(await waiting(consumer, 1)).toEqual(['new'])
      await consumer.acknowledge(await consumer.take())
      expect(producer.unreachable).toBeUndefined()
    })

    test('a connection that is only made again leads to the same incarnation', async () => {
      const queue = await prepare()
      const first = await connected(queue)
      const before = first.incarnation
      await first.close()
      expect((await connected(queue)).incarnation).toBe(before)
    })

    test('once closed, everything asked of it fails at once and it does not come back', async () => {
      const queue = await prepare()
      const producer = await connected(queue)
      const before = producer.incarnation ?? ''
      await producer.close()
      await expect(producer.push(buffers('a'), before)).rejects.toThrow(QueueUnavailableError)
      await expect(producer.progress(producerA)).rejects.toThrow(QueueUnavailableError)
      await expect(producer.check()).rejects.toThrow(QueueUnavailableError)
      await until('the end of the connection', () => producer.incarnation === undefined)
      expect(await queue.consumer.take()).toEqual([])
      await producer.close()
    })
  })
}
