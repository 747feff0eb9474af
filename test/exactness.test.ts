// Any mix of valid requests, over several workers, queues, gears and ack levels, gives the sums that a model in BigInt
// gives.
import { randomInt } from 'node:crypto'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import fc from 'fast-check'
import { describe, expect, onTestFinished, test } from 'vitest'
import { ackLevels, type AckLevel } from '@gearbox/protocol/ack-levels.ts'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, Program, readTotals, startAll, startCommand } from '@gearbox/test-kit/gearbox.ts'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

const int64Max = 2n ** 63n - 1n
const int64Min = -(2n ** 63n)
const keyBytesMax = 256

/** A failure prints it, with the path to its counterexample; SEED=… repeats it. */
const seed = Number(process.env.SEED ?? randomInt(2 ** 31))

interface Pair { readonly key: string, readonly delta: bigint }

/** How a text may stand in a form: each of these decodes to it. */
type Spelling = 'usual' | 'plus' | 'all hex' | 'raw'

interface RequestPlan {
  /** Keys by number: few, so that they meet again in other requests. */
  readonly pairs: ReadonlyArray<{ readonly key: number, readonly delta: bigint }>
  readonly shape: 'pairs' | 'original' | 'original reversed' | 'forced pairs'
  readonly spelling: Spelling
  readonly zeros: number
  readonly ack: AckLevel | 'default'
  /** How often it is sent with the same Idempotency-Key; 0: once, without one. */
  readonly repeats: number
}

const text = fc.string({ unit: 'grapheme', minLength: 0, maxLength: 12 })
  .filter((key) => key.isWellFormed() && !/[\x00-\x1f\x7f]/.test(key)) // eslint-disable-line no-control-regex
const longText = fc.integer({ min: 1, max: keyBytesMax - 24 }).map((length) => 'k'.repeat(length))
const keyTexts = fc.array(fc.oneof({ weight: 5, arbitrary: text },
  fc.constantFrom('__proto__', 'constructor', 'a&b=c', '%41', '+', '"\\', 'key', 'value', '\u{10ffff}', '\ufeff'),
  longText), { minLength: 2, maxLength: 5 })

const delta = fc.oneof(
  fc.bigInt({ min: -100n, max: 100n }),
  fc.bigInt({ min: int64Min, max: int64Max }),
  fc.constantFrom(0n, int64Max, int64Min, 2n ** 53n, 2n ** 53n + 1n, -(2n ** 53n) - 1n)
)

const requestPlan: fc.Arbitrary<RequestPlan> = fc.record({
  pairs: fc.array(fc.record({ key: fc.nat(4), delta }), { minLength: 1, maxLength: 12 }),
  shape: fc.constantFrom('pairs', 'pairs', 'original', 'original reversed', 'forced pairs'),
  spelling: fc.constantFrom('usual', 'plus', 'all hex', 'raw'),
  zeros: fc.integer({ min: 0, max: 30 }),
  ack: fc.constantFrom('default', ...ackLevels),
  repeats: fc.constantFrom(0, 0, 0, 1, 3),
})

function spell (value: string, spelling: Spelling): Buffer {
  if (spelling === 'usual') return Buffer.from(encodeURIComponent(value))
  if (spelling === 'plus') return Buffer.from(encodeURIComponent(value).replaceAll('%20', '+'))
  if (spelling === 'all hex') {
    return Buffer.from(Array.from(Buffer.from(value),
      (byte, i) => i % 2 === 0
        ? `%${byte.toString(16).padStart(2, '0')}`
        : `%${byte.toString(16).padStart(2, '0').toUpperCase()}`).join(''))
  }
  return Buffer.from(value.replace(/[%&=+]/g, (character) => encodeURIComponent(character)))
}

function spellDelta (delta: bigint, zeros: number, spelling: Spelling): Buffer {
  const digits = `${'0'.repeat(zeros)}${delta < 0n ? -delta : delta}`
  // Zero has a sign here whenever it has leading zeros.
  const text = delta < 0n || (delta === 0n && zeros > 0) ? `-${digits}` : digits
  return spelling === 'all hex' ? spell(text, spelling) : Buffer.from(text)
}

interface Prepared {
  readonly pairs: readonly Pair[]
  readonly query: string
  readonly body: Buffer
  readonly idempotencyKey: string | undefined
  readonly sends: number
}

/** Gives a plan the keys of its run, and bytes. `fit` may replace a delta by one that is within bounds. */
function prepare (plan: RequestPlan, keys: readonly string[], id: string, fit: (pair: Pair) => bigint): Prepared {
  const original = plan.shape.startsWith('original')
  const planned = original ? plan.pairs.slice(0, 1) : plan.pairs
  const pairs = planned.map(({ key, delta }) => {
    const pair = { key: keys[key % keys.length]!, delta }
    return { key: pair.key, delta: fit(pair) }
  })
  const spelt =
    pairs.map(({ key, delta }) => [spell(key, plan.spelling), spellDelta(delta, plan.zeros, plan.spelling)] as const)
  const fields = original
    ? [[Buffer.from('key'), spelt[0]![0]], [spell('value', plan.spelling), spelt[0]![1]]]
    : spelt
  if (plan.shape === 'original reversed') fields.reverse()
  const body = Buffer.concat(fields.flatMap(([name, value], i) =>
    [Buffer.from(i === 0 ? '' : '&'), name!, Buffer.from('='), value!]))
  const query = new URLSearchParams({
    ...(plan.ack === 'default' ? {} : { ack: plan.ack }),
    ...(plan.shape === 'forced pairs' ? { form: 'pairs' } : {}),
  })
  return {
    pairs,
    query: String(query),
    body,
    idempotencyKey: plan.repeats === 0 ? undefined : id,
    sends: Math.max(1, plan.repeats),
  }
}

/** Each time on its own connection, so that all workers get some; repeats of a request at once. */
async function send (url: string, { query, body, idempotencyKey, sends }: Prepared): Promise<Array<{
  status: number
  text: string
}>> {
  const headers = idempotencyKey === undefined ? {} : { 'idempotency-key': idempotencyKey }
  return await Promise.all(Array.from({ length: sends },
    async () => await post(`${url}/increment?${query}`, body, headers)))
}

/** Keys of a run: no other run has them, and no two are the same. */
function keysOf (run: number, texts: readonly string[]): string[] {
  return texts.map((text, i) => `${run}.${i} ${text}`)
}

async function startMode (queue: string, flushIntervalMs: string): Promise<{
  gearbox: Program & { url: string }
  databasePath: string
}> {
  const redis = queue === 'Redis' ? await RedisServer.start() : undefined
  onTestFinished(async () => { await redis?.stop() })
  const databasePath = join(temporaryDir(), 'numbers.db')
  const gearbox =
    endWithTest(await startAll({
      DATABASE_PATH: databasePath,
      REDIS_URL: redis?.url,
      FLUSH_INTERVAL_MS: flushIntervalMs,
    }))
  return { gearbox, databasePath }
}

function differences (totals: ReadonlyMap<string, bigint>, model: ReadonlyMap<string, bigint>): string[] {
  return [...new Set([...totals.keys(), ...model.keys()])].filter((key) => totals.get(key) !== model.get(key))
    .map((key) => `${JSON.stringify(key)}: ${totals.get(key)} instead of ${model.get(key)}`)
}

/** Adds to a model. */
function addTo (model: Map<string, bigint>, pairs: readonly Pair[]): void {
  for (const { key, delta } of pairs) model.set(key, (model.get(key) ?? 0n) + delta)
}

function workersHeardOf (databasePath: string): unknown {
  const db = new Database(databasePath, { readonly: true })
  try {
    return db.prepare('SELECT count(*) FROM producers WHERE increments > 0').pluck().get()
  } finally {
    db.close()
  }
}

/** What SQLite holds, once it is what it should be or has not become it; nothing is sent meanwhile. */
async function settled (databasePath: string, model: ReadonlyMap<string, bigint>): Promise<string[]> {
  await until('the totals to be the model\'s', () => differences(readTotals(databasePath), model).length === 0,
    5000).catch(() => {})
  return differences(readTotals(databasePath), model)
}

describe.each(['the embedded queue', 'Redis'])('with %s', (queue) => {
  test.each([{ flushIntervalMs: 'auto', numRuns: 25 },
    {
      flushIntervalMs: '200',
      numRuns: 8,
    }])('all valid requests add up, flush interval $flushIntervalMs', async ({ flushIntervalMs, numRuns }) => {
    const { gearbox, databasePath } = await startMode(queue, flushIntervalMs)
    const model = new Map<string, bigint>()
    let run = 0
    await fc.assert(fc.asyncProperty(keyTexts,
      fc.array(requestPlan, { minLength: 1, maxLength: 12 }), async (texts, plans) => {
        run++
        const keys = keysOf(run, texts)
        // In whatever order the batches arrive, a total stays within 64 bits if all that goes up and all that goes down
        // do.
        const [up, down] = [new Map<string, bigint>(), new Map<string, bigint>()]
        const fit = ({ key, delta }: Pair): bigint => {
          const [side, most] = delta > 0n ? [up, int64Max] : [down, int64Min]
          const sum = (side.get(key) ?? 0n) + delta
          if (delta > 0n ? sum > most : sum < most) return 0n
          side.set(key, sum)
          return delta
        }
        const requests = plans.map((plan, i) => prepare(plan, keys, `${run}.${i}`, fit))
        const replies = await Promise.all(requests.map(async (request) => await send(gearbox.url, request)))
        for (const [i, request] of requests.entries()) {
          addTo(model, request.pairs)
          for (const { status, text } of replies[i]!) expect(status, text).toBe(plans[i]!.ack === 'memory' ? 202 : 204)
        }
        expect(await settled(databasePath, model)).toEqual([])
      }), { seed, numRuns, endOnFailure: true })
    expect(workersHeardOf(databasePath), 'workers').toBe(2)
  })

  test('where totals leave 64 bits, what is stored and what is rejected add up to all that was answered', async () => {
    const { gearbox, databasePath } = await startMode(queue, 'auto')
    /** All that was not refused. */
    const model = new Map<string, bigint>()
    let run = 0
    let refusals = 0
    const bigDelta = fc.oneof({
      weight: 3,
      arbitrary: fc.constantFrom(int64Max, int64Min, int64Max - 1n, 2n ** 62n, -(2n ** 62n)),
    }, { weight: 2, arbitrary: delta })
    const bigPlan: fc.Arbitrary<RequestPlan> = fc.record({
      pairs: fc.array(fc.record({ key: fc.nat(2), delta: bigDelta }), { minLength: 1, maxLength: 4 }),
      shape: fc.constantFrom('pairs', 'original'),
      spelling: fc.constant('usual'),
      zeros: fc.constant(0),
      ack: fc.constantFrom('stored', 'stored', 'queued', 'memory'),
      // Of a repeat it would depend on the order of arrival whether it is refused too.
      repeats: fc.constantFrom(0, 0, 0, 1),
    })
    await fc.assert(fc.asyncProperty(fc.array(bigPlan, { minLength: 2, maxLength: 14 }), async (plans) => {
      run++
      const keys = keysOf(run, ['a', 'b', 'c'])
      const requests = plans.map((plan, i) => prepare(plan, keys, `${run}.${i}`, ({ delta }) => delta))
      const replies = await Promise.all(requests.map(async (request) => await send(gearbox.url, request)))
      for (const [i, { pairs }] of requests.entries()) {
        const plan = plans[i]!
        const own = new Map<string, bigint>()
        addTo(own, pairs)
        const leaves = [...own.values()].some((sum) => sum > int64Max || sum < int64Min)
        const refused = new Set<string>()
        for (const { status, text } of replies[i]!) {
          if (leaves) {
            expect(status).toBe(422)
            expect(text).toMatch(/"GBX_SUM_OVERFLOW"/)
          } else if (status === 422) {
            refusals++
            // The embedded queue's "queued" is "stored".
            expect(plan.ack === 'stored' || (plan.ack === 'queued' && queue !== 'Redis')).toBe(true)
            const { code, message } = JSON.parse(text) as { code: string, message: string }
            expect(code).toBe('GBX_TOTAL_OVERFLOW')
            const named = keys.filter((key) => message.includes(JSON.stringify(key)))
            expect(named.length, message).toBeGreaterThan(0)
            expect(named.filter((key) => !own.has(key))).toEqual([])
            // An idempotent one is refused whole.
            for (const key of plan.repeats > 0 ? own.keys() : named) refused.add(key)
          } else {
            // What others were promised is not refused to anybody who is summed with it: then it is on its way.
            expect(plan.ack === 'memory' ? [202] : [202, 204], text).toContain(status)
          }
        }
        if (!leaves) addTo(model, pairs.filter(({ key }) => !refused.has(key)))
      }
      expect(await settledWithRejected(databasePath, model)).toEqual([])
    }), { seed, numRuns: 25, endOnFailure: true })
    expect(refusals, 'requests that were told of a refusal').toBeGreaterThan(0)
  })
})

/** The sums of `numbers` and `rejected` together, compared with a model. */
async function settledWithRejected (databasePath: string, model: ReadonlyMap<string, bigint>): Promise<string[]> {
  const found = (): string[] => {
    const totals = readTotals(databasePath)
    addTo(totals, readRejected(databasePath))
    return differences(totals, model)
  }
  await until('all to be stored or rejected', () => found().length === 0, 5000).catch(() => {})
  return found()
}

function readRejected (databasePath: string): Pair[] {
  const db = new Database(databasePath, { readonly: true })
  try {
    const rows = db.prepare<[], { reason: string, key: string, value: bigint | null, sums: string | null }>(
      'SELECT reason, key, value, sums FROM rejected'
    ).safeIntegers().all()
    return rows.flatMap(({ reason, key, value, sums }) => {
      expect(reason).toBe('overflow')
      if (sums === null) return [{ key, delta: value ?? 0n }]
      return db.prepare<[string], Pair>('SELECT key, value AS delta FROM json_each(?)').safeIntegers().all(sums)
    })
  } finally {
    db.close()
  }
}

test('a stored request is in the database when its answer comes, and so is a queued one with the ' +
  'embedded queue', async () => {
  const { gearbox, databasePath } = await startMode('the embedded queue', 'auto')
  for (let i = 1; i <= 50; i++) {
    const { status } = await post(`${gearbox.url}/increment?ack=${i % 2 === 0 ? 'stored' : 'queued'}`, 'foo=1')
    expect(status).toBe(204)
    expect(readTotals(databasePath).get('foo')).toBe(BigInt(i))
  }
})

test('a stored request is in the database when its answer comes, with Redis', async () => {
  const { gearbox, databasePath } = await startMode('Redis', 'auto')
  for (let i = 1; i <= 30; i++) {
    expect((await post(`${gearbox.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    expect(readTotals(databasePath).get('foo')).toBe(BigInt(i))
  }
})

test('what was accepted in memory reaches the database within the flush interval, with no ' +
  'further request', async () => {
  const { gearbox, databasePath } = await startMode('the embedded queue', '300')
  for (let i = 1; i <= 4; i++) {
    expect((await post(`${gearbox.url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
    const sentAt = performance.now()
    await until('the total', () => readTotals(databasePath).get('foo') === BigInt(i))
    expect(performance.now() - sentAt).toBeLessThan(2000)
  }
})

test('an idempotent request that was refused, repeated, and tried again by hand counts whole and once', async () => {
  const { gearbox, databasePath } = await startMode('the embedded queue', 'auto')
  const add = async (body: string, headers: Record<string, string> = {}): Promise<{ status: number, text: string }> =>
    await post(`${gearbox.url}/increment?ack=stored`, body, headers)
  expect((await add(`foo=${int64Max}`)).status).toBe(204)
  for (let repeats = 1; repeats <= 3; repeats++) {
    const { status, text } = await add('foo=10&bar=1', { 'idempotency-key': 'k' })
    expect(status).toBe(422)
    expect(text).toMatch(/GBX_TOTAL_OVERFLOW.*foo/)
    expect(text, 'it is refused whole').not.toMatch(/other pairs were counted/)
  }
  expect(readTotals(databasePath)).toEqual(new Map([['foo', int64Max]]))
  expect((await add(`foo=-${int64Max}`)).status).toBe(204)
  expect((await add('foo=10&bar=1', { 'idempotency-key': 'k' })).status).toBe(204)
  expect(readTotals(databasePath)).toEqual(new Map([['foo', 10n], ['bar', 1n]]))
  gearbox.kill('SIGTERM')
  expect(await gearbox.exited).toBe(0)
  await startCommand('rejected', ['--retry', 'all'], { DATABASE_PATH: databasePath }).exited
  expect(readTotals(databasePath)).toEqual(new Map([['foo', 10n], ['bar', 1n]]))
})
