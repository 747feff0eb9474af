// Reading totals over a real socket from a real database.
import { spawnSync } from 'node:child_process'
import { mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import Database from 'better-sqlite3'
import fc from 'fast-check'
import { afterEach, beforeAll, afterAll, describe, expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { keyRange, pageByKeySql, pageByTotalSql, totalSql } from '../src/totals/reader.ts'
import { Totals } from '../src/totals/reads.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import { errorOf, increment, send, startWorker, type Reply, type Worker } from './fixtures/worker.ts'

let worker: Worker

beforeAll(async () => { worker = await startWorker() })
afterEach(() => { worker.clear() })
afterAll(async () => { await worker.end() })

const query = (parameters: Record<string, string>): string => `/totals?${new URLSearchParams(parameters)}`

async function get (path: string): Promise<Reply> {
  return await send(worker, { path })
}

interface Page {
  readonly keys: readonly string[]
  readonly next: string | null
  readonly text: string
}

async function getPage (parameters: Record<string, string>): Promise<Page> {
  const { status, text } = await get(query(parameters))
  if (status !== 200) throw new Error(`${status}: ${text}`)
  const page: { totals: Array<{ key: string }>, next: string | null } = JSON.parse(text)
  return { keys: page.totals.map(({ key }) => key), next: page.next, text }
}

/** All pages, one after the other by their `next`. */
async function getAll (parameters: Record<string, string>): Promise<string[][]> {
  const pages: string[][] = []
  for (let after: string | undefined; ;) {
    const { keys, next } = await getPage({ ...parameters, ...(after === undefined ? {} : { after }) })
    pages.push([...keys])
    if (next === null) return pages
    after = next
  }
}

/** The order of SQLite and of UTF-8, which is not that of JavaScript's strings. */
const byBytes = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b))

describe('one total', () => {
  test.each([
    ['plain', 'foo'], ['with blanks', 'a b'], ['with a plus', 'a+b'], ['with slashes', 'a/b//c'], ['dots', '..'],
    ['a dot', '.'], ['with a percent sign', '100%'], ['that looks encoded', '%41'], ['with an ampersand', 'a&b=c'],
    ['with a question mark', 'a?b#c'],
    ['in Cyrillic', 'ключ'], ['an emoji', '🔑'], ['with quotes', '"\\'], ['that objects have', '__proto__'],
    ['constructor', 'constructor'], ['a line separator', '\u2028'], ['a byte order mark', '\uFEFF'], ['U+10FFFF',
      '\u{10FFFF}'],
    ['of 256 bytes', 'k'.repeat(256)], ['of 256 bytes of two each', 'é'.repeat(128)], ['of 256 bytes of four each',
      '🚲'.repeat(64)], ['named like a parameter', 'limit'], ['a semicolon', 'a;b'], ['a quote',
      "'; DROP TABLE numbers"],
  ])('of a key %s is found by its path and by its query', async (_name, key) => {
    expect((await increment(worker, `${encodeURIComponent(key)}=18`, '?ack=stored&form=pairs')).status).toBe(204)
    const text = `{"key":${JSON.stringify(key)},"total":18}`
    const path = key === '.' || key === '..' ? undefined : `/totals/${encodeURIComponent(key)}`
    for (const found of [path, query({ key })]) {
      if (found === undefined) continue
      const reply = await get(found)
      expect(reply).toMatchObject({ status: 200, text })
      expect(reply.headers['content-type']).toBe('application/json; charset=utf-8')
    }
  })

  test('of a key whose 256 bytes are all written as %XX is found by its path', async () => {
    worker.put('k'.repeat(256), 5n)
    expect(await get(`/totals/${'%6b'.repeat(256)}`)).toMatchObject({ status: 200 })
  })

  test.each([0n, -1n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 53n + 1n, -(2n ** 53n) - 1n, 1234567890123456789n, int64Max,
    int64Min])('of %s comes with every digit', async (total) => {
    expect((await increment(worker, `a=${total}`, '?ack=stored')).status).toBe(204)
    expect((await get('/totals/a')).text).toBe(`{"key":"a","total":${total}}`)
    expect((await get('/totals?key=a')).text).toBe(`{"key":"a","total":${total}}`)
    for (const order of ['key', 'total']) {
      expect((await get(query({ order }))).text).toBe(`{"totals":[{"key":"a","total":${total}}],"next":null}`)
    }
  })

  test.each([0n, -1n, 2n ** 53n + 1n, int64Max,
    int64Min])('of %s comes as a string where that is asked for', async (total) => {
    worker.put('a', total)
    expect((await get('/totals/a?numbers=string')).text).toBe(`{"key":"a","total":"${total}"}`)
    expect((await get('/totals?key=a&numbers=string')).text).toBe(`{"key":"a","total":"${total}"}`)
    for (const order of ['key', 'total']) {
      worker.clear()
      worker.put('a', total)
      worker.put('b', int64Min)
      expect((await get(query({ order, numbers: 'string', limit: '1' }))).text)
        .toBe(`{"totals":[{"key":"a","total":"${total}"}],"next":"${order === 'key' ? 'a' : `${total}:a`}"}`)
    }
  })

  test.each(['/totals/a', '/totals?key=a', '/totals',
    '/totals?order=total'])('as anything else is a 400 (%s)', async (path) => {
    worker.put('a', 1n)
    for (const numbers of ['', 'number', 'String', 'strings', 'true']) {
      const reply = await get(`${path}${path.includes('?') ? '&' : '?'}numbers=${numbers}`)
      expect(reply.status).toBe(400)
      expect(errorOf(reply)).toEqual({
        code: 'GBX_BAD_QUERY',
        message: `"numbers" can only be "string", not "${numbers}"`,
      })
    }
  })

  test('is a sum that no double could hold', async () => {
    for (let i = 0; i < 3; i++) await increment(worker, 'a=9007199254740993&a=-1', '?ack=stored')
    expect((await get('/totals/a')).text).toBe('{"key":"a","total":27021597764222976}')
  })

  test.each(['key=%FF', 'key=%',
    'key=a&prefix=%zz'])('a query that is not percent-encoded UTF-8 is a 400 (%s)', async (query) => {
    const reply = await get(`/totals?${query}`)
    expect(reply.status).toBe(400)
    expect(errorOf(reply).code).toBe('GBX_BAD_QUERY')
  })

  test.each(['/totals/nothing', '/totals?key=nothing', '/totals?key=', '/totals/', '/totals/a%2Fb',
    `/totals/${'x'.repeat(257)}`, `/totals/${'%D0%BA'.repeat(129)}`, `/totals/${'x'.repeat(5000)}`,
    '/totals/%00'])('of what was never stored is a 404 (%s)', async (path) => {
    worker.put('other', 1n)
    const reply = await get(path)
    expect(reply.status).toBe(404)
    const { code, message } = errorOf(reply)
    expect(code).toBe('GBX_NOT_FOUND')
    expect(message).not.toMatch(/x{65}/)
  })

  test.each(['/totals/%zz', '/totals/%', '/totals/%ED%A0%80',
    '/totals/%FF'])('of what is no text is a 400 (%s)', async (path) => {
    const reply = await get(path)
    expect(reply.status).toBe(400)
    errorOf(reply)
  })

  test('whose key is given twice is a 400', async () => {
    const reply = await get('/totals?key=a&key=b')
    expect(reply.status).toBe(400)
    expect(errorOf(reply).code).toBe('GBX_BAD_QUERY')
  })

  test('of zero is found', async () => {
    await increment(worker, 'zero=0', '?ack=stored')
    expect((await get('/totals/zero')).text).toBe('{"key":"zero","total":0}')
  })

  test('can be requested by HEAD', async () => {
    worker.put('a', 1n)
    expect(await send(worker, { method: 'HEAD', path: '/totals/a' })).toMatchObject({ status: 200, text: '' })
    expect((await send(worker, { method: 'HEAD', path: '/totals/b' })).status).toBe(404)
  })
})

describe('pages', () => {
  test('of an empty database are empty', async () => {
    for (const order of ['key', 'total']) expect((await get(query({ order }))).text).toBe('{"totals":[],"next":null}')
  })

  test('by key go on behind the last one, and end with null', async () => {
    for (const key of ['d', 'a', 'c', 'b', 'e', 'f']) worker.put(key, 1n)
    expect(await getAll({ limit: '2' })).toEqual([['a', 'b'], ['c', 'd'], ['e', 'f']])
    expect(await getAll({ limit: '4' })).toEqual([['a', 'b', 'c', 'd'], ['e', 'f']])
    expect(await getAll({ limit: '6' })).toEqual([['a', 'b', 'c', 'd', 'e', 'f']])
    expect(await getAll({})).toEqual([['a', 'b', 'c', 'd', 'e', 'f']])
    expect((await getPage({ after: 'bb', limit: '2' })).keys).toEqual(['c', 'd'])
    expect((await getPage({ after: 'f' })).text).toBe('{"totals":[],"next":null}')
  })

  test('by total begin with the largest and break ties by key', async () => {
    const totals: ReadonlyArray<readonly [string, bigint]> = [['small', int64Min], ['large', int64Max], ['b', 5n],
      ['c', 5n], ['a', 5n], ['zero', 0n], ['minus', -5n], ['é:1', 5n]]
    for (const [key, total] of totals) worker.put(key, total)
    const order = ['large', 'a', 'b', 'c', 'é:1', 'zero', 'minus', 'small']
    for (const limit of [1, 2, 3, 7, 8, 9]) {
      const pages = await getAll({ order: 'total', limit: String(limit) })
      expect(pages.flat()).toEqual(order)
      expect(pages).toHaveLength(Math.ceil(order.length / limit))
    }
    expect((await getPage({ order: 'total', limit: '2' })).text)
      .toBe('{"totals":[{"key":"large","total":9223372036854775807},{"key":"a","total":5}],"next":"5:a"}')
  })

  test('go on where they were while totals change', async () => {
    for (const key of ['a', 'b', 'c']) worker.put(key, 1n)
    const first = await getPage({ limit: '2' })
    worker.put('aa', 1n)
    expect((await getPage({ limit: '2', after: first.next! })).keys).toEqual(['c'])
  })

  test('have 100 totals, or as many as asked for up to 1000', async () => {
    const db = new Database(worker.config.databasePath)
    db.exec('WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1001) INSERT INTO numbers ' +
      "SELECT printf('k%04d', i), i FROM n")
    db.close()
    for (const order of ['key', 'total']) {
      expect((await getPage({ order })).keys).toHaveLength(100)
      expect((await getPage({ order, limit: '1' })).keys).toHaveLength(1)
      expect((await getPage({ order, limit: '1000' })).keys).toHaveLength(1000)
      expect((await getAll({ order, limit: '1000' })).map(({ length }) => length)).toEqual([1000, 1])
    }
  })

  test.each([
    { limit: '0' }, { limit: '1001' }, { limit: '-1' }, { limit: '1.5' }, { limit: 'ten' }, { limit: '' },
    { limit: '1e400' }, { limit: 'Infinity' }, { limit: '-Infinity', order: 'total' }, { limit: 'NaN' },
    { order: 'value' }, { order: '' }, { order: 'total', after: 'foo' }, { order: 'total', after: '5' },
    { order: 'total', after: '9223372036854775808:a' }, { order: 'total', after: '-9223372036854775809:a' },
    { order: 'total', after: `${'9'.repeat(5000)}:a` }, { after: 'k'.repeat(4097) },
    { order: 'total', after: '1.5:a' }, { order: 'total', after: ' 5:a' },
  ])('asked for with %o are a 400', async (parameters) => {
    const reply = await get(query(parameters))
    expect(reply.status).toBe(400)
    const { code, message } = errorOf(reply)
    expect(code).toBe('GBX_BAD_QUERY')
    expect(message).not.toMatch(/9{65}|k{65}/)
  })

  test('by total take any text of a key in "after"', async () => {
    worker.put('a:b\nc', 5n)
    worker.put('z', 5n)
    expect((await getPage({ order: 'total', limit: '1' })).next).toBe('5:a:b\nc')
    expect((await getPage({ order: 'total', after: '5:a:b\nc' })).keys).toEqual(['z'])
    expect((await getPage({ order: 'total', after: '5:' })).keys).toEqual(['a:b\nc', 'z'])
  })

  test('of a prefix have only its keys', async () => {
    const keys = ['', 'a', 'ab', 'b', '%', '%a', '_', 'A', '\uD7FF', '\uD7FFa', '\uD7FF\u{10FFFF}', '\uE000',
      '\u{10FFFF}', '\u{10FFFF}a', '\u{10FFFF}\u{10FFFF}', 'x\u{10FFFF}', 'x\u{10FFFF}\u{10FFFF}y', 'y', 'é', 'e\u0301',
      '\u007f', '\uFFFF', '\u{10000}']
    for (const [i, key] of keys.entries()) if (key !== '') worker.put(key, BigInt(i))
    for (const prefix of keys) {
      const expected = keys.filter((key) => key !== '' && key.startsWith(prefix)).sort(byBytes)
      for (const order of ['key', 'total']) {
        expect((await getAll({ prefix, order, limit: '2' })).flat().sort(byBytes)).toEqual(expected)
      }
      expect((await getAll({ prefix, limit: '3' })).flat()).toEqual(expected)
    }
  })

  test('are those of a plain list, whatever the keys and totals', async () => {
    const text = fc.array(fc.constantFrom('a', 'b', '\uD7FF', '\uE000', '\u{10FFFF}', '\u{10000}', '\uFFFF', ':'),
      { minLength: 1, maxLength: 4 }).map((characters) => characters.join(''))
    const total = fc.oneof(fc.bigInt({ min: -2n, max: 2n }), fc.constantFrom(int64Min, int64Max, 2n ** 53n + 1n))
    await fc.assert(fc.asyncProperty(fc.dictionary(text, total, { maxKeys: 30, noNullPrototype: true }),
      fc.oneof(fc.constant(''), text), fc.integer({ min: 1, max: 10 }), fc.constantFrom('key',
        'total'), async (dictionary, prefix, limit, order) => {
        worker.clear()
        const totals = Object.entries(dictionary)
        for (const [key, value] of totals) worker.put(key, value)
        const expected = totals.filter(([key]) => key.startsWith(prefix))
          .sort(([a, m], [b, n]) => order === 'key' || m === n ? byBytes(a, b) : m < n ? 1 : -1).map(([key]) => key)
        const pages = await getAll({ prefix, order, limit: String(limit) })
        expect(pages.flat()).toEqual(expected)
        expect(pages.slice(0, -1).every(({ length }) => length === limit)).toBe(true)
      }), { numRuns: 40 })
  })
})

describe('a cache', () => {
  const ask = async (path: string, tag?: string): Promise<Reply> =>
    await send(worker, { path, headers: tag === undefined ? {} : { 'If-None-Match': tag } })

  test.each(['/totals/cached', '/totals?key=cached', '/totals?prefix=c', '/totals?order=total'])(
    'can keep %s until the next commit, whoever makes it', async (path) => {
      await increment(worker, 'cached=1', '?ack=stored')
      const tags = new Set<string>()
      for (let i = 0; i < 3; i++) {
        const { status, headers: { etag, 'cache-control': control } } = await ask(path)
        expect([status, control]).toEqual([200, 'max-age=0, must-revalidate'])
        expect(etag).toMatch(/^"[0-9a-f-]{36}\.[0-9a-f]{40}"$/)
        expect(tags, 'it never comes back').not.toContain(etag)
        tags.add(etag!)
        const again = await ask(path, `"x", W/${etag}`)
        expect([again.status, again.text, again.headers.etag]).toEqual([304, '', etag])
        expect((await ask(path, [...tags].slice(0, -1).join(', '))).status).toBe(200)
        if (i === 1) worker.put('cached by another program', 1n)
        else await increment(worker, 'cached=1', '?ack=stored')
      }
    })

  test('is told nothing of errors', async () => {
    const { status, headers } = await ask('/totals/none')
    expect([status, headers.etag, headers['cache-control']]).toEqual([404, undefined, undefined])
  })

  test('keeps replies apart by key, and for as long as TOTALS_MAX_AGE_S says', async () => {
    const other = await startWorker({ API_KEYS: 'k', TOTALS_MAX_AGE_S: '7', CORS_ORIGINS: 'https://friend.example' })
    onTestFinished(async () => { await other.end() })
    const headers = { Authorization: 'Bearer k' }
    await increment(other, 'a=1', '?ack=stored', headers)
    const reply = await send(other, { path: '/totals/a', headers })
    expect(reply.headers)
      .toMatchObject({ 'cache-control': 'max-age=7, must-revalidate', vary: 'Origin, Authorization' })
    const stranger = { 'If-None-Match': reply.headers.etag! }
    expect((await send(other, { path: '/totals/a', headers: stranger })).status).toBe(401)
  })

  test('gets another tag when the database has begun its WAL again', async () => {
    await increment(worker, 'a=1', '?ack=stored')
    const { headers: { etag: before } } = await ask('/totals/a')
    const db = new Database(worker.config.databasePath)
    db.pragma('wal_checkpoint(TRUNCATE)')
    db.close()
    expect((await ask('/totals/a', before!)).status, 'nothing was stored').toBeOneOf([200, 304])
    await increment(worker, 'a=1', '?ack=stored')
    const { status, headers: { etag: after } } = await ask('/totals/a', before!)
    expect(status).toBe(200)
    expect(after).not.toBe(before)
  })
})

describe('a read costs what it returns:', () => {
  const keys = 200_000
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-test-'))
  const path = join(dir, 'numbers.db')
  const totals = new Totals(path)

  beforeAll(() => {
    const db = new Database(path)
    db.pragma('journal_mode = WAL')
    db.exec(`CREATE TABLE numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
      WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${keys})
      INSERT INTO numbers SELECT printf('k%07d', i), i FROM n`)
    db.close()
  })
  afterAll(() => {
    totals.close()
    rmSync(dir, { recursive: true, force: true })
  })

  function planOf (sql: string, parameters: object): string[] {
    const db = new Database(path, { readonly: true })
    try {
      const plan = db.prepare<unknown[], { detail: string }>(`EXPLAIN QUERY PLAN ${sql}`).all(parameters)
      return plan.map(({ detail }) => detail)
    } finally {
      db.close()
    }
  }

  test.each([['', undefined], ['', 'k0100000'], ['k01', undefined], ['k01', 'k0100000'],
    ['\u{10FFFF}', undefined]])('by a search between two keys (prefix %j, after %j)', (prefix, after) => {
    const parameters = { ...keyRange(prefix, after), limit: 1, total: null, key: null }
    expect(planOf(pageByKeySql, parameters)).toEqual(['SEARCH numbers USING PRIMARY KEY (key>? AND key<?)'])
    expect(planOf(pageByTotalSql, parameters)).toEqual(['SEARCH numbers USING PRIMARY KEY (key>? AND key<?)',
      'USE TEMP B-TREE FOR ORDER BY'])
    expect(planOf(totalSql, ['k01'])).toEqual(['SEARCH numbers USING PRIMARY KEY (key=?)'])
  })

  test('wherever a page starts, and whatever is behind its prefix', async () => {
    /** The least of several runs, which other load on the machine disturbs least. */
    const leastMs = async (page: { prefix?: string, after?: string }): Promise<number> => {
      let least = Infinity
      for (let i = 0; i < 20; i++) {
        const begun = performance.now()
        await totals.list({ prefix: '', after: undefined, limit: 1, order: 'key', ...page })
        least = Math.min(least, performance.now() - begun)
      }
      return least
    }
    const first = await leastMs({})
    // Going through the keys before or behind takes hundreds of times as long as the first page.
    for (const page of [
      { after: 'k0199990' }, { after: 'k0100000' }, { prefix: 'k00000001' }, { prefix: 'a' },
      { prefix: 'k000', after: 'k01' },
      { prefix: 'k0150', after: 'a' }, { prefix: 'z' }, { after: 'z' }, { after: `k01${'x'.repeat(10_000)}` },
    ]) expect(await leastMs(page), JSON.stringify(page).slice(0, 80)).toBeLessThan(first * 20)
  })

  test('no more pages by total wait than are made before their connections would be cut off', async () => {
    const page = { prefix: '', after: undefined, limit: 1, order: 'total' } as const
    const results = await Promise.allSettled(Array.from({ length: 14 }, async () => await totals.list(page)))
    expect(results.map(({ status }) => status)).toEqual(Array.from({ length: 14 },
      (_, i) => i < 12 ? 'fulfilled' : 'rejected'))
    expect(results.at(-1)).toMatchObject({ reason: { code: 'GBX_OVERLOADED' } })
    expect((await totals.list(page)).totals).toHaveLength(1)
  })

  test('also a page by total of a prefix, and next to the event loop', async () => {
    const page = await totals.list({ prefix: 'k019999', after: undefined, limit: 2, order: 'total' })
    expect(page).toEqual({
      totals: [{ key: 'k0199999', total: 199_999n }, { key: 'k0199998', total: 199_998n }],
      next: '199998:k0199998',
    })
    let turns = 0
    const counting = setInterval(() => { turns++ }, 0)
    for (let i = 0; i < 5; i++) await totals.list({ prefix: '', after: undefined, limit: 1000, order: 'total' })
    clearInterval(counting)
    expect(turns).toBeGreaterThan(5)
  })
})

test('pages of a prefix leave out what "after" is before or behind', async () => {
  for (const key of ['a', 'b1', 'b2', 'b2\u0001', 'c']) worker.put(key, 1n)
  const keysOf = async (parameters: Record<string, string>): Promise<readonly string[]> =>
    (await getPage(parameters)).keys
  expect(await keysOf({ prefix: 'b', after: 'a' })).toEqual(['b1', 'b2', 'b2\u0001'])
  expect(await keysOf({ prefix: 'b', after: 'b1' })).toEqual(['b2', 'b2\u0001'])
  expect(await keysOf({ prefix: 'b', after: 'b2' })).toEqual(['b2\u0001'])
  expect(await keysOf({ prefix: 'b', after: 'b2\0' })).toEqual(['b2\u0001'])
  expect(await keysOf({ prefix: 'b', after: 'c' })).toEqual([])
  expect(await keysOf({ prefix: 'b', after: '\u{10FFFF}' })).toEqual([])
  expect(await keysOf({ prefix: '', after: '\uFFFF' })).toEqual([])
  expect(await keysOf({ prefix: 'b2', after: 'b2' })).toEqual(['b2\u0001'])
})

describe('a worker that finds', () => {
  const paths = ['/totals/a', '/totals?key=a', '/totals', '/totals?order=total']

  async function startReader (path: string): Promise<Worker> {
    const reader = await startWorker({ DATABASE_PATH: path }, new OpenQueue())
    onTestFinished(reader.end)
    return reader
  }

  function makeDatabase (path: string, total: bigint): void {
    const db = new Database(path)
    db.pragma('journal_mode = WAL')
    db.exec('CREATE TABLE numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID')
    db.prepare('INSERT INTO numbers VALUES (?, ?)').run('a', total)
    db.close()
  }

  async function expectNone (reader: Worker): Promise<void> {
    for (const path of paths) {
      const reply = await send(reader, { path })
      expect(reply.status).toBe(503)
      expect(errorOf(reply).code).toBe('GBX_NO_DATABASE')
    }
  }

  test('no database says so, and reads it once it is there', async () => {
    const path = join(temporaryDir(), 'numbers.db')
    const reader = await startReader(path)
    await expectNone(reader)
    makeDatabase(path, 7n)
    for (const found of paths) {
      expect(await send(reader, { path: found }))
        .toMatchObject({ status: 200, text: expect.stringContaining('{"key":"a","total":7}') })
    }
  })

  test('no database refuses wrong queries all the same', async () => {
    const reader = await startReader(join(temporaryDir(), 'nothing', 'numbers.db'))
    await expectNone(reader)
    for (const query of ['limit=0', 'order=total&after=a']) {
      expect((await send(reader, { path: `/totals?${query}` })).status).toBe(400)
    }
  })

  test.each([['no database', 'hello, world'],
    ['an empty file', '']])('a file that is %s says that there is none', async (_name, content) => {
    const path = join(temporaryDir(), 'numbers.db')
    writeFileSync(path, content)
    await expectNone(await startReader(path))
  })

  test('a FIFO says that there is none: to open it would block the worker for ever', async () => {
    const path = join(temporaryDir(), 'numbers.db')
    makeDatabase(path, 7n)
    const reader = await startReader(path)
    rmSync(path)
    spawnSync('mkfifo', [path])
    await expectNone(reader)
  })

  test('another database in the place of the one it read reads that one', async () => {
    const dir = temporaryDir()
    const path = join(dir, 'numbers.db')
    makeDatabase(path, 1n)
    const reader = await startReader(path)
    for (const found of paths) expect((await send(reader, { path: found })).text).toContain('"total":1}')
    makeDatabase(join(dir, 'restored.db'), 2n)
    renameSync(join(dir, 'restored.db'), path)
    for (const found of paths) {
      await until(`the new total at ${found}`,
        async () => (await send(reader, { path: found })).text.includes('"total":2}'))
    }
    for (const file of [path, `${path}-wal`, `${path}-shm`]) rmSync(file, { force: true })
    await until('the file to be missed', async () => (await send(reader, { path: '/totals/a' })).status === 503)
    await expectNone(reader)
    makeDatabase(path, 3n)
    for (const found of paths) expect((await send(reader, { path: found })).text).toContain('"total":3}')
  })
})

test('reads see what is stored while it is written', async () => {
  let last = 0
  const writing = (async () => {
    for (let i = 0; i < 50; i++) await increment(worker, 'a=1', '?ack=stored')
  })()
  await until('the last total', async () => {
    const { status, text } = await get('/totals/a')
    if (status === 404) return false
    expect(status).toBe(200)
    const { total }: { total: number } = JSON.parse(text)
    expect(total).toBeGreaterThanOrEqual(last)
    last = total
    return total === 50
  })
  await writing
})
