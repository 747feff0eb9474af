// Routes of plugins in a worker: what holds for them as for all routes, and what their context does.
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { definePlugin, refuse, replyError, type LoadedPlugin, type Plugin, type WebContext } from
  '@gearbox/runtime/plugin.ts'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import { errorOf, formType, send, startWorker, type Reply, type Worker } from './fixtures/worker.ts'

const form = {
  type: 'object',
  properties: { text: { type: 'string', maxLength: 10 }, votes: { type: 'integer', minimum: 1 } },
} as const

let context: WebContext<object> | undefined

const poll = definePlugin({
  name: 'poll',
  web: (app, given) => {
    context = given
    const counts = { needs: 'count' } as const
    app.post<{ Params: { key: string }, Querystring: { ack?: 'stored' } }>('/poll/:key', {
      config: counts,
      schema: {
        summary: 'Votes',
        querystring: { type: 'object', properties: { ack: { type: 'string', enum: ['stored'] } } },
        body: form,
      },
    }, async (request) => {
      const how = { ...request.query, ...given.idempotency(request) }
      const outcome = await given.increment({ [request.params.key]: 1 }, how)
      return { outcome, body: request.body }
    })
    app.get('/poll', { config: { needs: 'read', public: 'live' } }, async () => given.database.all(
      'SELECT key, value FROM numbers ORDER BY key'))
    app.get('/poll/query', { config: { needs: 'none' } }, async () => given.database.all('SELECT * FROM poll_votes'))
    app.get('/poll/wrong', { config: { needs: 'none' } }, async () => given.database.all('SELEKT 1'))
    app.get('/poll/write', { config: { needs: 'none' } }, async () => given.database.all(
      'DELETE FROM numbers RETURNING 1'))
    app.get('/poll/many', { config: { needs: 'none' } }, async () => given.database.all(`
      WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n`).length)
    app.get('/poll/throws', { config: { needs: 'none' } }, async () => { throw new Error('hunter2') })
    app.get('/poll/full', { config: { needs: 'none' } }, async () => {
      throw replyError(409, 'GBX_SOLD_OUT', 'there are none left', { left: 0 })
    })
    app.get('/poll/refused', { config: { needs: 'none' } }, async () => { throw refuse(410, 'GBX_GONE', 'it is over') })
    app.get('/poll/forgotten', async () => 'for admin keys')
    app.put('/poll/:key', { config: counts, schema: { body: form } }, async (_request, reply) => { reply.code(204) })
  },
})

function loaded (...plugins: readonly Plugin[]): LoadedPlugin[] {
  return plugins.map((plugin) => ({ plugin, settings: {} }))
}

async function startOne (env: NodeJS.ProcessEnv, ...plugins: readonly Plugin[]): Promise<Worker> {
  const worker = await startWorker(env, undefined, loaded(...plugins))
  onTestFinished(async () => { await worker.end() })
  return worker
}

describe('a route of a plugin', () => {
  let worker: Worker
  beforeAll(async () => { worker = await startWorker({ BASE_PATH: '/gearbox' }, undefined, loaded(poll)) })
  afterAll(async () => { await worker.end() })

  const ask = async (method: string, path: string, body?: string | Buffer, headers: Record<string, string> = {}) =>
    await send(worker, {
      method,
      path: `/gearbox${path}`,
      headers: { ...(body === undefined ? {} : { 'Content-Type': formType }), ...headers },
      ...(body === undefined ? {} : { body }),
    })

  test('counts with the promise of a POST, below BASE_PATH', async () => {
    const reply = await ask('POST', '/poll/foo?ack=stored', 'text=hi&votes=2')
    expect([reply.status, JSON.parse(reply.text)])
      .toEqual([200, { outcome: 'reached', body: { text: 'hi', votes: 2 } }])
    expect(worker.totals().get('foo')).toBe(1n)
    expect((await send(worker, { method: 'POST', path: '/poll/foo' })).status).toBe(404)
    const once = { 'Idempotency-Key': 'k1' }
    for (let i = 0; i < 3; i++) expect((await ask('POST', '/poll/once?ack=stored', undefined, once)).status).toBe(200)
    expect(worker.totals().get('once')).toBe(1n)
    const wrong = await ask('POST', '/poll/once', undefined, { 'Idempotency-Key': 'a b' })
    expect(errorOf(wrong)).toMatchObject({ code: 'GBX_BAD_IDEMPOTENCY_KEY' })
  })

  test.each<[body: string | Buffer, fields: unknown]>([
    ['text=a+b%20%C3%A9', { text: 'a b é' }],
    ['text=', { text: '' }],
    ['text==%3D', { text: '==' }],
    ['te%78t=x&votes=07', { text: 'x', votes: 7 }],
    [Buffer.from('text=é'), { text: 'é' }],
    ['', {}],
  ])('decodes a form as an increment is decoded: %j', async (body, fields) => {
    const reply = await ask('POST', '/poll/form', body)
    expect(JSON.parse(reply.text)).toMatchObject({ body: fields })
  })

  test.each<[body: string | Buffer, message: RegExp]>([
    ['text', /field 1 \("text"\): has no "="/],
    ['&', /field 1 \(""\): is empty/],
    ['text=a&', /field 2 \(""\): is empty/],
    ['=a', /field 1 \(""\): has no name/],
    ['text=%', /field 1 \("%"\): has a value with a "%"/],
    ['text=%4', /"%4"/],
    ['te%zz=1', /has a name with a "%"/],
    ['text=%ff', /field 1 \("%ff"\): has a value that is not UTF-8/],
    [Buffer.from([0x74, 0x3d, 0xff]), /not UTF-8/],
    ['text=a&text=b', /field 2 \("text"\): is given twice/],
    ['txet=a', /unknown field "txet"; did you mean "text"\?/],
    ['__proto__=a', /unknown field "__proto__"/],
    ['constructor=a', /unknown field "constructor"/],
    ['votes=0x10', /"votes" must be a whole number, not "0x10"/],
    ['votes=1e2', /"votes" must be a whole number/],
    ['votes=0', /"votes" must be >= 1, not "0"/],
    ['text=12345678901', /"text" must NOT have more than 10 characters, not "12345678901"/],
    [`${'x=1&'.repeat(1000)}x=1`, /more than 1000 fields|unknown field|given twice/],
  ])('refuses a form that is not right: %j', async (body, message) => {
    const error = errorOf(await ask('PUT', '/poll/form', body))
    expect(error.message).toMatch(message)
    expect(error.code).toMatch(/^GBX_(?:BAD_REQUEST|TOO_MANY_PAIRS)$/)
  })

  test.each<[headers: Record<string, string>, status: number]>([
    [{ 'Content-Type': 'application/json' }, 415],
    [{ 'Content-Type': `${formType}; charset=latin1` }, 415],
    [{ 'Content-Encoding': 'gzip' }, 415],
    [{ Origin: 'https://evil.example' }, 403],
    [{ Host: 'evil.example' }, 421],
    [{ 'Content-Length': '70000' }, 413],
  ])('refuses a write with the head %j', async (headers, status) => {
    const body = headers['Content-Length'] === undefined ? 'text=a' : `text=${'a'.repeat(69_995)}`
    expect((await ask('PUT', '/poll/x', body, headers)).status).toBe(status)
  })

  test('refuses unknown query parameters, methods and paths as everywhere', async () => {
    expect(errorOf(await ask('GET', '/poll?x=1'))).toMatchObject({ code: 'GBX_BAD_QUERY' })
    expect(errorOf(await ask('POST', '/poll/a?akc=stored'))).toMatchObject({
      message: expect.stringContaining('did you mean "ack"?'),
    })
    const reply = await ask('DELETE', '/poll/a')
    expect([reply.status, reply.headers.allow]).toEqual([405, 'POST, PUT'])
  })

  test('that throws answers 500 and tells nothing, and others go on', async () => {
    const reply = await ask('GET', '/poll/throws')
    expect(errorOf(reply)).toEqual({ code: 'GBX_INTERNAL', message: 'something went wrong; the log says what' })
    expect((await ask('GET', '/poll')).status).toBe(200)
  })

  test('answers with errors of its own, as they are', async () => {
    const full = await ask('GET', '/poll/full')
    expect([full.status, JSON.parse(full.text)]).toEqual([409, {
      statusCode: 409, code: 'GBX_SOLD_OUT', error: 'Conflict', message: 'there are none left', left: 0,
    }])
    expect(errorOf(await ask('GET', '/poll/refused'))).toEqual({ code: 'GBX_GONE', message: 'it is over' })
  })

  test('is in the document under the name of its plugin', async () => {
    const document = JSON.parse((await ask('GET', '/docs/json')).text)
    expect(document.paths['/poll/{key}'].post).toMatchObject({ tags: ['poll'], summary: 'Votes' })
    expect(document.paths['/poll/{key}'].post.responses['400']).toBeDefined()
  })

  test('reads from the database, every digit, and can not write there', async () => {
    worker.put('big', 2n ** 63n - 1n)
    const rows = context?.database.all('SELECT key, value FROM numbers WHERE key > ?', '')
    expect(rows).toContainEqual({ key: 'big', value: 2n ** 63n - 1n })
    expect(rows).toContainEqual({ key: 'foo', value: 1 })
    expect(context?.database.get('SELECT value FROM numbers WHERE key = ?', 'foo')).toEqual({ value: 1 })
    expect(context?.database.get('SELECT value FROM numbers WHERE key = ?', 'none')).toBeUndefined()
    expect((await ask('GET', '/poll/write')).status).toBe(500)
    expect((await ask('GET', '/poll/wrong')).status).toBe(500)
    expect((await ask('GET', '/poll/many')).text).toBe('10000')
    expect(errorOf(await ask('GET', '/poll/query')).code, 'its tables are not made yet').toBe('GBX_NO_DATABASE')
    expect(worker.totals().get('foo')).toBe(1n)
  })
})

test('a host without a database answers 503 to what reads from it', async () => {
  const worker = await startWorker({}, new OpenQueue(), loaded(poll))
  onTestFinished(async () => { await worker.end() })
  expect(errorOf(await send(worker, { path: '/poll' })).code).toBe('GBX_NO_DATABASE')
})

test('keys are for what they are everywhere, and PUBLIC opens what it lists', async () => {
  const API_KEYS = 'count:c,read:r,admin:a'
  const status = async (worker: Worker, method: string, path: string): Promise<number[]> =>
    await Promise.all(['c', 'r', 'a', 'x', undefined].map(async (key) => (await send(worker, {
      method, path, headers: key === undefined ? {} : { Authorization: `Bearer ${key}` },
    })).status))
  const closed = await startOne({ API_KEYS }, poll)
  expect(await status(closed, 'POST', '/poll/a')).toEqual([200, 403, 200, 401, 401])
  expect(await status(closed, 'GET', '/poll')).toEqual([403, 200, 200, 401, 401])
  expect(await status(closed, 'GET', '/poll/forgotten')).toEqual([403, 403, 200, 401, 401])
  expect(context?.hasApiKeys).toBe(true)
  const open = await startOne({ API_KEYS, PUBLIC: 'live' }, poll)
  expect(await status(open, 'GET', '/poll')).toEqual([200, 200, 200, 401, 200])
  expect(await status(open, 'POST', '/poll/a')).toEqual([200, 403, 200, 401, 401])
})

test('pages of listed origins may use all methods of a plugin', async () => {
  const worker = await startOne({ CORS_ORIGINS: 'https://friend.example' }, poll)
  const preflight: Reply = await send(worker, {
    method: 'OPTIONS',
    path: '/poll/a',
    headers: { Origin: 'https://friend.example', 'Access-Control-Request-Method': 'PUT' },
  })
  expect(preflight.headers['access-control-allow-methods']).toMatch(/\bPUT\b/)
  const put = await send(worker, { method: 'PUT', path: '/poll/a', headers: { Origin: 'https://friend.example' } })
  expect(put.status).toBe(204)
})

test.each([
  ['false', '127.0.0.1'], ['true', '1.1.1.1'], ['1', '3.3.3.3'], ['2', '2.2.2.2'],
  ['127.0.0.1', '3.3.3.3'], ['loopback, 3.0.0.0/8', '2.2.2.2'], ['10.0.0.1', '127.0.0.1'],
])('with TRUST_PROXY=%s a route sees a request from %s', async (TRUST_PROXY, expected) => {
  const web: Plugin['web'] = (app) => { app.get('/poll/ip', { config: { needs: 'none' } }, async ({ ip }) => ip) }
  const worker = await startOne({ TRUST_PROXY }, { name: 'poll', web })
  const headers = { 'X-Forwarded-For': '1.1.1.1, 2.2.2.2, 3.3.3.3' }
  expect((await send(worker, { path: '/poll/ip', headers })).text).toBe(expected)
})

test('its signal says when the worker stops', async () => {
  const worker = await startWorker({}, undefined, loaded(poll))
  expect(context?.stopping.aborted).toBe(false)
  expect(context?.producer).toBe(worker.producer)
  await worker.end()
  expect(context?.stopping.aborted).toBe(true)
})

test.each<[what: string, web: NonNullable<Plugin['web']>, says: RegExp]>([
  ['throws', () => { throw new Error('no\nluck') }, /^the plugin "bad" can't be started: no luck$/],
  ['rejects', async () => { throw new Error('no') }, /can't be started: no$/],
  ['has a route that exists', (app) => { app.get('/totals', async () => 1) }, /can't be started: .*already declared/],
  ['has a metric of others', (_app, { metrics }) => metrics.counter('gearbox_poll_votes', 'x', () => 1),
    /can't be started: the metric "gearbox_poll_votes" must begin with gearbox_bad_/],
])('a plugin that %s ends the start with exit code 78', async (_what, web, says) => {
  const start = startWorker({}, undefined, loaded({ name: 'bad', web }))
  await expect(start).rejects.toThrow(FatalError)
  await expect(start).rejects.toMatchObject({ exitCode: 78, message: expect.stringMatching(says) })
})
