// Entries that plugins' routes submit, from the call to the outcome, on a queue in memory.
import { readEntries } from '@gearbox/protocol/batch.ts'
import { entryBytesMax, type EntryOutcome, type Json, type PluginEntry } from '@gearbox/protocol/plugin-entry.ts'
import type { MemoryQueue } from '@gearbox/queue/memory.ts'
import { loadConfig } from '@gearbox/runtime/config.ts'
import type { Submitted } from '@gearbox/runtime/plugin.ts'
import { producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { expect, onTestFinished, test } from 'vitest'
import type { Flusher } from '../src/deliver/flusher.ts'
import { Submissions, type EntryOptions } from '../src/submit/submissions.ts'
import { setUp } from './fixtures/flusher.ts'

interface Submitting {
  readonly queue: MemoryQueue
  readonly flusher: Flusher
  readonly submissions: Submissions
  submit (data: Json | (() => Json | undefined), options?: EntryOptions): Promise<Submitted>
  /** Waits until a batch is in the queue. @returns its entries */
  batch (seq: number): Promise<PluginEntry[]>
  /** Reports that all up to `seq` is stored, with outcomes of entries of batch `seq`, by their numbers. */
  answer (seq: number, ...outcomes: ReadonlyArray<EntryOutcome | undefined>): void
}

function submitting (env: NodeJS.ProcessEnv = {}): Submitting {
  const limits = loadConfig({ DATABASE_PATH: 'unused.db', ...env })
  const { queue, flusher } = setUp({ ackTimeoutMs: limits.ackTimeoutMs })
  const submissions = new Submissions({ flusher, queue, producer: producerA, limits })
  onTestFinished(() => submissions.stop())
  return {
    queue,
    flusher,
    submissions,
    submit: async (data, options) => await submissions.submit('tickets', data, options),
    batch: async (seq) => await until(`batch ${seq}`, () => {
      const element = queue.list.find((element) => JSON.parse(element.toString()).seq === seq)
      return element === undefined ? undefined : entriesOf(element)
    }),
    answer: (seq, ...outcomes) => {
      const results = outcomes.flatMap((outcome, entry) => outcome === undefined ? [] : { seq, entry, outcome })
      queue.reportProgress(producerA, { high: seq, results })
    },
  }
}

function entriesOf (element: Buffer): PluginEntry[] {
  const entries = readEntries(element)
  if (typeof entries === 'string') throw new Error(entries)
  return entries
}

/** Nothing is counted as waiting any more. */
function expectNothing ({ flusher, submissions }: Submitting): void {
  expect(submissions.unsettled).toBe(0)
  expect([flusher.pendingReplies, flusher.replyBytes, flusher.pendingKeys, flusher.pendingBytes]).toEqual([0, 0, 0, 0])
}

test('an entry is sent, and its result returns when it is stored', async () => {
  const all = submitting()
  const { submit, batch, answer, flusher } = all
  const submitted = submit({ name: 'lifeboat', count: 2 })
  expect(flusher.pendingReplies).toBe(1)
  expect(await batch(1)).toEqual([{ plugin: 'tickets', data: { name: 'lifeboat', count: 2 } }])
  answer(1, { result: { first: 41 } })
  expect(await submitted).toEqual({ state: 'stored', result: { first: 41 } })
  expectNothing(all)
})

test('each of several entries gets its own outcome, whatever else is reported', async () => {
  const all = submitting()
  const { queue, submit, batch, answer } = all
  queue.hold()
  const first = submit('first')
  await until('the attempt', () => queue.attempts.length === 1)
  const others = [submit('a'), submit('b'), submit('c')]
  queue.release()
  expect((await batch(2)).map(({ data }) => data)).toEqual(['a', 'b', 'c'])
  queue.reportProgress(producerB, { high: 2, results: [{ seq: 2, entry: 0, outcome: { result: 'of another' } }] })
  answer(2, undefined, undefined, undefined, { result: 'of none' })
  answer(2, undefined, { result: 'B' }, { error: { statusCode: 409, code: 'X', message: 'no', details: { left: 0 } } })
  expect(await others[1]).toEqual({ state: 'stored', result: 'B' })
  await expect(others[2]).rejects.toMatchObject({ statusCode: 409, code: 'X', message: 'no', details: { left: 0 } })
  answer(2, { result: 'A' }, { result: 'another B' }, { result: 'another C' })
  expect(await others[0]).toEqual({ state: 'stored', result: 'A' })
  answer(1, { result: 1 })
  expect(await first).toEqual({ state: 'stored', result: 1 })
  expectNothing(all)
})

test('an outcome that was lost is asked for once a second at most, and what was received is reported with it',
  async () => {
    const all = submitting()
    const { queue, submit, batch, answer } = all
    const first = submit('first')
    await batch(1)
    answer(1, { result: 1 })
    await first
    await until('the report', () => queue.requests.length === 1)
    expect(queue.requests[0]).toEqual({ producer: producerA, received: [1], missing: [] })
    const startedAt = performance.now()
    const lost = submit('lost')
    await batch(2)
    const known = submit('known')
    await batch(3)
    // A poll learns of it, as the message was lost.
    queue.reportProgress(producerA, { high: 3, results: [{ seq: 2, entry: 0, outcome: { result: 2 } }] },
      { received: false })
    answer(3, { result: 3 })
    expect(await known).toEqual({ state: 'stored', result: 3 })
    await until('the request', () => queue.requests.length === 2)
    expect(queue.requests[1]).toEqual({ producer: producerA, received: [3], missing: [2] })
    expect(performance.now() - startedAt).toBeGreaterThan(800)
    answer(3, undefined)
    answer(2, { result: 2 })
    expect(await lost).toEqual({ state: 'stored', result: 2 })
    expectNothing(all)
  })

test('a request about outcomes that fails is sent again, with all that it had', async () => {
  const { queue, submit, batch, answer } = submitting()
  const asked: Json[] = []
  queue.requestResults = async (request) => {
    asked.push({ ...request })
    if (asked.length === 1) throw new Error('cut')
  }
  const first = submit('first')
  await batch(1)
  answer(1, { result: 1 })
  await first
  await until('the second request', () => asked.length === 2)
  expect(asked[1]).toEqual(asked[0])
})

test('many batches within a second are reported in one message', async () => {
  const { queue, submit, batch, answer } = submitting()
  for (let seq = 1; seq <= 50; seq++) {
    const submitted = submit(seq)
    await batch(seq)
    answer(seq, { result: seq })
    await submitted
  }
  await until('all of them', () => queue.requests.flatMap(({ received }) => received).length === 50)
  expect(queue.requests.length).toBeLessThan(10)
})

test('a queue that lost its memory gets the entry again, and its outcome settles once', async () => {
  const all = submitting()
  const { queue, submit, batch, answer } = all
  let settled = 0
  const submitted = submit('x').finally(() => { settled++ })
  await batch(1)
  queue.forget()
  const again = await batch(1)
  expect(again.map(({ data }) => data)).toEqual(['x'])
  answer(1, { result: 'once' })
  answer(1, { result: 'twice' })
  expect(await submitted).toEqual({ state: 'stored', result: 'once' })
  expect(settled).toBe(1)
  expectNothing(all)
})

test('what is not stored in time is pending, and its outcome comes later', async () => {
  const all = submitting({ ACK_TIMEOUT_MS: '100' })
  const { flusher, submit, answer, batch } = all
  const outcomes = await Promise.all([submit('a'), submit('b'), submit('ignored')])
  expect(flusher.pendingReplies).toBe(0)
  expect(flusher.replyBytes).toBeGreaterThan(0)
  await batch(1)
  answer(1, { result: 'A' }, { error: { statusCode: 409, code: 'X', message: 'no' } },
    { error: { statusCode: 409, code: 'X', message: 'no' } })
  const [a, b] = outcomes
  if (a.state !== 'pending' || b.state !== 'pending') throw new Error(`${a.state} ${b.state}`)
  expect(await a.late).toBe('A')
  await expect(b.late).rejects.toMatchObject({ statusCode: 409, code: 'X' })
  expectNothing(all)
})

test('data is made when its batch is encoded, so that it has all that came until then', async () => {
  const { queue, submit, batch, answer } = submitting()
  queue.hold()
  const first = submit('first')
  await until('the attempt', () => queue.attempts.length === 1)
  const names: string[] = []
  let calls = 0
  const joined = submit(() => {
    calls++
    return [...names]
  })
  for (const name of ['a', 'b', 'c']) names.push(name)
  expect(calls).toBe(0)
  queue.release()
  expect((await batch(2)).map(({ data }) => data)).toEqual([['a', 'b', 'c']])
  expect(calls).toBe(1)
  answer(2, { result: 7 })
  expect(await joined).toEqual({ state: 'stored', result: 7 })
  answer(1, { result: 1 })
  await first
})

test('where nothing is left to do nothing is sent, and where the data can not be made its route throws', async () => {
  const all = submitting()
  const { queue, submit, batch, answer } = all
  const sent = submit('sent')
  const dropped = submit(() => undefined)
  const broken = submit(() => { throw new Error('broken') })
  const long = submit(() => 'x'.repeat(entryBytesMax))
  const last = submit('last')
  expect(await dropped).toEqual({ state: 'dropped' })
  await expect(broken).rejects.toThrow('broken')
  await expect(long).rejects.toMatchObject({ code: 'GBX_BODY_TOO_LARGE' })
  expect((await batch(1)).map(({ data }) => data)).toEqual(['sent', 'last'])
  answer(1, { result: 1 }, { result: 2 })
  expect(await Promise.all([sent, last])).toEqual([{ state: 'stored', result: 1 }, { state: 'stored', result: 2 }])
  expect(queue.list).toHaveLength(1)
  expectNothing(all)
})

test('a promise is not sent as data, and one that fails does not end the process', async () => {
  const all = submitting()
  const failing = (): Json => Promise.reject(new Error('late')) as unknown as Json
  await expect(all.submit(failing())).rejects.toThrow('tickets submitted a promise')
  await expect(all.submit(failing)).rejects.toThrow('tickets submitted a promise')
  expectNothing(all)
})

test('data that is too long or is not JSON is refused before anything is sent', async () => {
  const all = submitting()
  await expect(all.submit('x'.repeat(entryBytesMax))).rejects.toMatchObject({ code: 'GBX_BODY_TOO_LARGE' })
  const deep: Json = JSON.parse(`${'['.repeat(1000)}${']'.repeat(1000)}`)
  await expect(all.submit(deep)).rejects.toMatchObject({
    statusCode: 400, code: 'GBX_BAD_REQUEST', message: 'what is submitted may be nested 99 levels deep at most',
  })
  const noJson: Json = Object.create({ toJSON: () => undefined })
  await expect(all.submit(noJson)).rejects.toThrow(TypeError)
  expectNothing(all)
  expect(all.queue.attempts).toHaveLength(0)
})

test('what travels alone is in its own batch behind the others', async () => {
  const { queue, submit, batch, answer } = submitting()
  queue.hold()
  const first = submit('first')
  await until('the attempt', () => queue.attempts.length === 1)
  const correction = submit({ key: 'foo', total: '1' }, { alone: true })
  const other = submit('other')
  queue.release()
  expect((await batch(2)).map(({ data }) => data)).toEqual(['other'])
  expect((await batch(3)).map(({ data }) => data)).toEqual([{ key: 'foo', total: '1' }])
  for (const seq of [1, 2, 3]) answer(seq, { result: seq })
  expect(await Promise.all([first, other, correction])).toMatchObject([{ result: 1 }, { result: 2 }, { result: 3 }])
})

// Idempotency

test('a repeat of what is on its way shares its outcome, and another body is refused at once', async () => {
  const all = submitting()
  const { queue, submit, batch, answer } = all
  const key = { idempotencyKey: 'k', scope: 'POST /tickets/lifeboat' }
  const first = submit({ name: 'lifeboat', count: 1 }, key)
  const [entry] = await batch(1)
  expect(entry).toMatchObject({ id: expect.stringMatching(/^[0-9a-f]{64}$/), at: expect.any(Number) })
  const repeat = submit({ count: 1, name: 'lifeboat' }, key)
  await expect(submit({ name: 'lifeboat', count: 2 }, key))
    .rejects.toMatchObject({ code: 'GBX_OTHER_BODY', statusCode: 422 })
  answer(1, { result: 42 })
  expect(await Promise.all([first, repeat])).toEqual([{ state: 'stored', result: 42 }, { state: 'stored', result: 42 }])
  // Once it is settled only the database knows it: it is sent again, under the same id.
  const later = submit({ name: 'lifeboat', count: 1 }, key)
  expect((await batch(2))[0]?.id).toBe(entry?.id)
  answer(2, { result: 42 })
  expect(await later).toEqual({ state: 'stored', result: 42 })
  expect(queue.list).toHaveLength(2)
  expectNothing(all)
})

test('a key means something else per caller, scope and plugin', async () => {
  const { queue, submissions, batch } = submitting()
  const keys: ReadonlyArray<[plugin: string, options: EntryOptions]> = [
    ['tickets', { idempotencyKey: 'k' }],
    ['tickets', { idempotencyKey: 'k', scope: 's' }],
    ['tickets', { idempotencyKey: 'k', caller: 's' }],
    ['tickets', { idempotencyKey: 'ks' }],
    ['tickets2', { idempotencyKey: 'k' }],
    ['tickets', { idempotencyKey: 'k', caller: '1:k', scope: '' }],
  ]
  queue.hold()
  for (const [plugin, options] of keys) submissions.submit(plugin, null, options).catch(() => {})
  queue.release()
  const ids = (await batch(1)).map(({ id }) => id)
  expect(new Set(ids).size).toBe(keys.length)
  await expect(submissions.submit('tickets', null, { idempotencyKey: 'a b' }))
    .rejects.toMatchObject({ code: 'GBX_BAD_IDEMPOTENCY_KEY' })
})

test('entries whose data is made later are not shared: the database finds out whether they are repeats', async () => {
  const { submit, batch, answer } = submitting()
  const both = [submit(() => 1, { idempotencyKey: 'k' }), submit(() => 1, { idempotencyKey: 'k' })]
  const [one, other] = await batch(1)
  expect(one?.id).toBe(other?.id)
  answer(1, { result: 1 }, { result: 1 })
  expect(await Promise.all(both)).toEqual([{ state: 'stored', result: 1 }, { state: 'stored', result: 1 }])
})

// Limits

test('at PENDING_REQUESTS_MAX waiting replies the next one is refused, and nothing of it is sent', async () => {
  const { submissions, submit, batch, answer } = submitting({ PENDING_REQUESTS_MAX: '2' })
  const first = submit('a')
  const release = submissions.holdReply(100)
  await expect(submit('refused')).rejects.toMatchObject({ code: 'GBX_OVERLOADED', statusCode: 503 })
  expect(() => submissions.holdReply(1)).toThrow(expect.objectContaining({ code: 'GBX_OVERLOADED' }))
  release()
  release()
  const second = submit('b')
  await expect(submit('refused')).rejects.toMatchObject({ code: 'GBX_OVERLOADED' })
  expect((await batch(1)).map(({ data }) => data)).toEqual(['a', 'b'])
  answer(1, { result: 1 }, { result: 2 })
  await Promise.all([first, second])
})

test('entries that nobody waits for any more are limited too', async () => {
  const { submit } = submitting({ PENDING_REQUESTS_MAX: '2', ACK_TIMEOUT_MS: '100' })
  expect(await Promise.all([submit('a'), submit('b')])).toMatchObject([{ state: 'pending' }, { state: 'pending' }])
  await expect(submit('refused')).rejects.toMatchObject({ code: 'GBX_OVERLOADED' })
})

test('PENDING_BYTES_MAX and PENDING_KEYS_MAX hold for entries', async () => {
  const { queue, submit, submissions } = submitting({ PENDING_BYTES_MAX: '60000', PENDING_KEYS_MAX: '2' })
  queue.hold()
  submit('first').catch(() => {})
  await until('the attempt', () => queue.attempts.length === 1)
  submit('x'.repeat(20_000)).catch(() => {})
  await expect(submit('x'.repeat(20_000))).rejects.toMatchObject({ code: 'GBX_OVERLOADED', statusCode: 503 })
  expect(() => submissions.holdReply(20_000)).toThrow(expect.objectContaining({ code: 'GBX_OVERLOADED' }))
  submit('small').catch(() => {})
  await expect(submit('small')).rejects.toThrow(/PENDING_KEYS_MAX/)
})

test('while the queue has failed for longer than ACK_TIMEOUT_MS nothing is accepted', async () => {
  const { queue, flusher, submit, submissions } = submitting({ ACK_TIMEOUT_MS: '100' })
  queue.disconnect()
  await until('the failure', () => flusher.failingMs > 100)
  await expect(submit('a')).rejects.toMatchObject({ code: 'GBX_QUEUE_UNREACHABLE', statusCode: 503 })
  expect(() => submissions.holdReply(1)).toThrow(expect.objectContaining({ code: 'GBX_QUEUE_UNREACHABLE' }))
  expect(flusher.pendingKeys).toBe(0)
})

test('100,000 replies wait for one entry, the next one is refused, and then nothing waits', async () => {
  const all = submitting()
  const { flusher, submissions, submit, batch, answer } = all
  const release: Array<() => void> = []
  const submitted = submit(() => ({ count: release.length }))
  for (let i = 0; i < 99_999; i++) release.push(submissions.holdReply(1000))
  expect(flusher.pendingReplies).toBe(100_000)
  expect(() => submissions.holdReply(1000)).toThrow(expect.objectContaining({ code: 'GBX_OVERLOADED' }))
  expect((await batch(1)).map(({ data }) => data)).toEqual([{ count: 99_999 }])
  answer(1, { result: { first: 1 } })
  expect(await submitted).toEqual({ state: 'stored', result: { first: 1 } })
  for (const each of release) each()
  expectNothing(all)
})

// Stop

test('at the stop all that wait are pending, and what is not known by then rejects; it is still sent', async () => {
  const all = submitting()
  const { queue, flusher, submissions, submit } = all
  queue.hold()
  const first = submit('first')
  await until('the attempt', () => queue.attempts.length === 1)
  const second = submit('second')
  submissions.stop()
  const outcomes = await Promise.all([first, second])
  for (const outcome of outcomes) {
    if (outcome.state !== 'pending') throw new Error(outcome.state)
    await expect(outcome.late).rejects.toMatchObject({ statusCode: 500 })
  }
  await expect(submit('third')).rejects.toMatchObject({ code: 'GBX_STOPPING', statusCode: 503 })
  queue.release()
  expect(await flusher.finish(AbortSignal.timeout(10_000))).toEqual([])
  expect(queue.list.flatMap((element) => entriesOf(element).map(({ data }) => data))).toEqual(['first', 'second'])
  expectNothing(all)
})
