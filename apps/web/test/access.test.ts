// Who may come in, over real sockets and by both paths: which Hosts are ours, what a key is for, which pages may count,
// and where everything is behind a BASE_PATH.
import fastify from 'fastify'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { ApiKeys, parseApiKey } from '@gearbox/runtime/access/api-keys.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { refuseCaller } from '../src/http/access.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import {
  Connection, errorOf, formType, increment, send, startWorker, type Reply, type Worker,
} from './fixtures/worker.ts'

const paths = ['on', 'off'] as const

interface Started {
  readonly worker: Worker
  readonly queue: OpenQueue
  /** How many requests came to Node's parser. */
  standard (): number
}

async function start (env: NodeJS.ProcessEnv): Promise<Started> {
  const queue = new OpenQueue()
  const worker = await startWorker(env, queue)
  let standard = 0
  worker.server.server.on('request', () => { standard++ })
  return { worker, queue, standard: () => standard }
}

async function startOne (env: NodeJS.ProcessEnv): Promise<Started> {
  const started = await start(env)
  onTestFinished(started.worker.end)
  return started
}

/** Sends bytes as they are. @returns as many replies as are asked for */
async function exchange (worker: Worker, text: string, count = 1): Promise<Reply[]> {
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  connection.write(text)
  await until(`${count} replies; received: ${connection.received}`, () => connection.replies().length >= count)
  return connection.replies()
}

function post (host: string, target = '/increment', version = '1.1'): string {
  return `POST ${target} HTTP/${version}\r\n${host}Content-Type: ${formType}\r\nContent-Length: 3\r\n\r\na=1`
}

describe.each(paths)('a Host, with FAST_LANE=%s', (FAST_LANE) => {
  let started: Started
  beforeAll(async () => { started = await start({ FAST_LANE, HOSTS_ALLOWED: 'listed.example' }) })
  afterAll(async () => { await started.worker.end() })

  test('that is ours may count, by the path that was chosen', async () => {
    const { worker, queue, standard } = started
    const before = standard()
    for (const host of ['127.0.0.1', `127.0.0.1:${worker.port}`, 'localhost:3333', 'LOCALHOST', 'gearbox', '[::1]:3333',
      'listed.example', 'Listed.Example.:8443', 'localhost.']) {
      expect((await exchange(worker, post(`Host: ${host}\r\n`)))[0]!.status, host).toBe(204)
    }
    expect(standard() - before).toBe(FAST_LANE === 'on' ? 0 : 9)
    await until('all', () => queue.totals().get('a') === 9n)
  })

  test.each(['evil.example', 'evil.example:3333', 'EVIL.example', 'localhost.evil.example', '127.0.0.1.evil.example',
    'app.localhost', 'user@localhost', 'xlisted.example',
    'a b'])('that is not, such as %s, may neither count nor read', async (host) => {
    const { worker } = started
    const before = worker.flusher.counts.increments
    for (const headers of [{ Host: host }, { Host: host, Origin: `http://${host}` }]) {
      const reply = await increment(worker, 'a=1', '', headers)
      expect(reply.status).toBe(421)
      expect(errorOf(reply)).toMatchObject({
        code: 'GBX_UNKNOWN_HOST',
        message: expect.stringContaining('HOSTS_ALLOWED'),
      })
      expect(reply.headers['access-control-allow-origin']).toBeUndefined()
    }
    for (const path of ['/', '/totals', '/totals/a', '/metrics', '/docs', '/docs/json', '/docs/static/swagger-ui.css',
      '/nothing', '/totals/%ED%A0%80', `/totals/${'x'.repeat(1000)}`, '/healthz/x']) {
      expect((await send(worker, { path, headers: { Host: host } })).status, path).toBe(421)
    }
    expect(worker.flusher.counts.increments).toBe(before)
  })

  test('comes before any other check', async () => {
    const headers = { Host: 'evil.example' }
    for (const request of [
      { method: 'PUT', path: '/increment' }, { method: 'POST', path: '/healthz' },
      { method: 'OPTIONS', path: '/increment' }, { method: 'GET', path: '/totals?limit=x' },
      { method: 'POST', path: '/increment?ack=no', body: 'x' },
      { method: 'POST', path: '/increment', headers: { 'Content-Type': 'text/plain' }, body: 'x' },
      { method: 'POST', path: '/increment', headers: { 'Content-Type': formType }, body: 'x'.repeat(70_000) },
    ]) {
      expect((await send(started.worker, { ...request, headers: { ...request.headers, ...headers } })).status,
        JSON.stringify(request).slice(0, 100)).toBe(421)
    }
    expect((await exchange(started.worker, post('Host: evil.example\r\nExpect: magic\r\n')))[0]!.status).toBe(421)
    expect((await exchange(started.worker, post('Host: localhost\r\nExpect: magic\r\n')))[0]!.status).toBe(417)
    expect((await exchange(started.worker, post('Host: localhost\r\nHost: evil.example\r\n')))[0]!.status).toBe(400)
  })

  test('does not matter to the health checks', async () => {
    for (const path of ['/healthz', '/readyz', '/healthz?a=b']) {
      expect((await send(started.worker, { path, headers: { Host: 'evil.example' } })).status, path).not.toBe(421)
    }
    for (const path of ['/healthz', '/readyz']) {
      expect((await send(started.worker, { path, headers: { Host: 'evil.example' } })).status, path).toBe(200)
    }
    expect((await send(started.worker, { method: 'HEAD', path: '/healthz', headers: { Host: 'evil.example' } })).status)
      .toBe(200)
  })

  test('in a whole URL as the target counts, too, whatever the header says', async () => {
    expect((await exchange(started.worker, post('Host: localhost\r\n', 'http://localhost:3333/increment')))[0]!.status)
      .toBe(204)
    expect((await exchange(started.worker, post('Host: localhost\r\n', 'http://evil.example/increment')))[0]!.status)
      .toBe(421)
    expect((await exchange(started.worker, post('Host: evil.example\r\n', 'http://localhost/increment')))[0]!.status)
      .toBe(421)
    expect((await exchange(started.worker,
      post('Host: localhost\r\n', 'http://localhost@evil.example/increment')))[0]!.status).toBe(421)
    expect((await exchange(started.worker, post('', 'http://evil.example/increment', '1.0')))[0]!.status).toBe(421)
  })

  test('twice is refused, as a proxy may have gone by the other', async () => {
    const [reply] = await exchange(started.worker, post('Host: localhost\r\nhost: localhost\r\n'))
    expect(errorOf(reply!)).toMatchObject({ code: 'GBX_BAD_REQUEST', message: expect.stringContaining('one Host') })
  })

  test('that is missing or empty is refused', async () => {
    expect((await exchange(started.worker, post('')))[0]!.status).toBe(400)
    expect((await exchange(started.worker, post('', '/increment', '1.0')))[0]!.status,
      'no browser speaks HTTP/1.0').toBe(204)
    expect((await exchange(started.worker, post('Host: evil.example\r\n', '/increment', '1.0')))[0]!.status).toBe(421)
    expect((await exchange(started.worker, post('Host:\r\n')))[0]!.status).toBe(421)
  })

  test('is checked at every request of a connection, also if all else is equal', async () => {
    const { worker } = started
    const one = (host: string): string => post(`Host: ${host}\r\n`)
    const replies = await exchange(worker,
      one('localhost') + one('localhost') + one('evilhost.x') + one('localhost') + one('evilhost.x'), 5)
    expect(replies.map(({ status }) => status)).toEqual([204, 204, 421, 204, 421])
    const before = worker.flusher.counts.increments
    for (let i = 0; i < 3; i++) expect((await exchange(worker, one('evil.exampl')))[0]!.status).toBe(421)
    expect(worker.flusher.counts.increments).toBe(before)
  })

  test('may be any with API_KEYS, or with *', async () => {
    for (const env of [{ API_KEYS: 'k' }, { HOSTS_ALLOWED: '*' }]) {
      const { worker, standard } = await startOne({ FAST_LANE, ...env })
      expect((await exchange(worker, post('Host: evil.example\r\nAuthorization: Bearer k\r\n')))[0]!.status).toBe(204)
      expect(standard()).toBe(FAST_LANE === 'on' ? 0 : 1)
    }
  })
})

test.each(['/increment', '/nothing',
  '/docs/json'])('a worker that is stopping still tells %s of a Host that is none of ours first', async (path) => {
  const { worker } = await startOne({})
  const connection = new Connection(worker)
  onTestFinished(() => connection.end())
  connection.write('GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n')
  await until('its reply', () => connection.replies().length === 1)
  connection.write('GET')
  await send(worker, { path: '/healthz' })
  const closing = worker.server.close()
  connection.write(` ${path} HTTP/1.1\r\nHost: evil.example\r\n\r\n`)
  await until('a reply', () => connection.replies().length === 2)
  expect(connection.replies()[1]!.status).toBe(421)
  connection.end()
  await closing
})

describe.each(paths)('scopes of API_KEYS, with FAST_LANE=%s', (FAST_LANE) => {
  let started: Started
  beforeAll(async () => { started = await start({ FAST_LANE, API_KEYS: 'count:c, read:r,admin:a, both' }) })
  afterAll(async () => { await started.worker.end() })
  const keys = ['c', 'r', 'a', 'both', 'x', 'count:c'] as const
  const ask = async (method: string, path: string): Promise<number[]> => await Promise.all(keys.map(async (key) =>
    (await send(started.worker,
      {
        method,
        path,
        headers: { Authorization: `Bearer ${key}`, ...(method === 'POST' ? { 'Content-Type': formType } : {}) },
        ...(method === 'POST' ? { body: 'a=1' } : {}),
      })).status))

  test('a key that counts may count, one that reads may read', async () => {
    const { worker, standard } = started
    const counted =
      await Promise.all(keys.map(async (key) => (await exchange(worker,
        post(`Host: x\r\nAuthorization: Bearer ${key}\r\n`)))[0]!.status))
    expect(counted).toEqual([204, 403, 204, 204, 401, 401])
    expect(standard()).toBe(FAST_LANE === 'on' ? 3 : 6)
    expect(await ask('POST', '/increment')).toEqual(counted)
    expect(worker.flusher.counts.increments).toBe(6)
    for (const path of ['/totals/a', '/totals']) {
      expect(await ask('GET', path), path).toEqual([403, 503, 503, 503, 401, 401])
    }
    expect(await ask('GET', '/metrics')).toEqual([403, 200, 200, 200, 401, 401])
    expect(await ask('HEAD', '/metrics')).toEqual([403, 200, 200, 200, 401, 401])
  })

  test('with any key a 404 says which paths do not exist, and without one nothing says which do', async () => {
    expect(await ask('GET', '/nothing')).toEqual([404, 404, 404, 404, 401, 401])
    expect(await ask('GET', '/increment')).toEqual([405, 405, 405, 405, 401, 401])
    expect(await ask('GET', '/totals/%ED%A0%80')).toEqual([400, 400, 400, 400, 401, 401])
  })

  test('a key that is not enough gets a 403 that names the scope', async () => {
    const reply = await increment(started.worker, 'a=1', '', { Authorization: 'Bearer r' })
    expect(errorOf(reply)).toMatchObject({ code: 'GBX_FORBIDDEN_SCOPE', message: expect.stringContaining('"count"') })
    expect(reply.headers['www-authenticate']).toBe('Bearer error="insufficient_scope", scope="count"')
  })

  test('the documentation is open, in all its parts', async () => {
    for (const path of ['/docs', '/docs/', '/docs/json', '/docs/yaml', '/docs/static/index.css',
      '/docs/static/swagger-initializer.js', '/docs/static/swagger-ui-bundle.js']) {
      const reply = await send(started.worker, { path })
      expect(reply.status, path).toBe(200)
      expect(reply.headers['content-security-policy'],
        path).toMatch(/default-src 'none'.*script-src 'self';.*connect-src 'self'.*frame-ancestors 'none'/)
      expect(reply.headers['content-security-policy'], path).not.toMatch(/https:|\*|script-src[^;]*unsafe|unsafe-eval/)
      expect((await send(started.worker, { method: 'HEAD', path })).status, `HEAD ${path}`).toBe(200)
    }
  })

  test('a key is checked at every request of a connection, also if all else is equal', async () => {
    const one = (key: string): string => post(`Host: x\r\nAuthorization: Bearer ${key}\r\n`)
    const replies = await exchange(started.worker, one('c') + one('c') + one('r') + one('c') + one('x'), 5)
    expect(replies.map(({ status }) => status)).toEqual([204, 204, 403, 204, 401])
  })
})

test('a route that does not say what it needs is closed to all but admin keys, and one that is ' +
  'open says so', async () => {
  const apiKeys = new ApiKeys(['count:c', 'read:r', 'admin:a', 'both'].map(parseApiKey))
  const app = fastify()
  onTestFinished(async () => { await app.close() })
  app.addHook('onRequest', (request, _reply, done) => done(refuseCaller(apiKeys, ['tickets'], request)))
  app.get('/forgotten', async () => 'secret')
  app.get('/open', { config: { needs: 'none' } }, async () => 'open')
  app.get('/public', { config: { needs: 'count', public: 'tickets' } }, async () => 'public')
  app.get('/unlisted', { config: { needs: 'count', public: 'live' } }, async () => 'of another part')
  const status = async (url: string, headers: Record<string, string>): Promise<number> =>
    (await app.inject({ url, headers })).statusCode
  const ask = async (url: string): Promise<number[]> =>
    await Promise.all(['c', 'r', 'a', 'both', 'x'].map(async (key) =>
      await status(url, { authorization: `Bearer ${key}` })))
  expect(await ask('/forgotten')).toEqual([403, 403, 200, 403, 401])
  expect(await ask('/open')).toEqual([200, 200, 200, 200, 200])
  expect(await ask('/public'), 'PUBLIC lists it').toEqual([200, 200, 200, 200, 401])
  expect(await ask('/unlisted')).toEqual([200, 403, 200, 200, 401])
  expect(await Promise.all(['/forgotten', '/open', '/public', '/unlisted'].map(async (url) => await status(url, {}))))
    .toEqual([401, 200, 200, 401])
  expect(await status('/public', { authorization: '' }), 'a key that is wrong is refused').toBe(401)
})

describe.each(paths)('pages, with FAST_LANE=%s', (FAST_LANE) => {
  const from = async (worker: Worker, origin: string, headers: Record<string, string> = {}): Promise<Reply> =>
    await increment(worker, 'a=1', '', { Origin: origin, ...headers })
  const preflight = async (worker: Worker, origin: string): Promise<Reply> => await send(worker, {
    method: 'OPTIONS',
    path: '/increment',
    headers: {
      Origin: origin,
      'Access-Control-Request-Method': 'POST',
      'Access-Control-Request-Headers': 'authorization,idempotency-key',
    },
  })

  test('of all origins may count with *, also those without one', async () => {
    const { worker } = await startOne({ FAST_LANE, CORS_ORIGINS: '*' })
    for (const origin of ['https://a.example', 'null', 'http://localhost:8080']) {
      for (const reply of [await from(worker, origin), await preflight(worker, origin)]) {
        expect(reply.status).toBe(204)
        expect(reply.headers['access-control-allow-origin']).toBe('*')
        expect(reply.headers['access-control-allow-credentials']).toBeUndefined()
        expect(reply.headers.vary).toMatch(/^Origin\b/)
      }
    }
    expect((await preflight(worker, 'null')).headers['access-control-allow-headers'])
      .toMatch(/authorization.*idempotency-key/)
    const plain = await increment(worker, 'a=1')
    expect(plain.headers.vary, 'a cache must not give it to a page').toBe('Origin')
    expect((await from(worker, 'https://a.example', { Host: 'evil.example' })).status, '* is no name of ours').toBe(421)
  })

  test('of every name below another may count with a pattern', async () => {
    const { worker } = await startOne({ FAST_LANE, CORS_ORIGINS: 'https://*.friend.example' })
    for (const reply of [await from(worker, 'https://a.friend.example'),
      await preflight(worker, 'https://a.friend.example')]) {
      expect(reply.status).toBe(204)
      expect(reply.headers['access-control-allow-origin']).toBe('https://a.friend.example')
      expect(reply.headers.vary).toMatch(/^Origin\b/)
    }
    for (const origin of ['https://friend.example', 'https://a.friend.example.evil.example',
      'https://evilfriend.example', 'http://a.friend.example']) {
      expect((await from(worker, origin)).status).toBe(403)
      const reply = await preflight(worker, origin)
      expect(reply.headers['access-control-allow-origin']).toBeUndefined()
    }
  })

  test.each(['*', 'https://friend.example'])('that may count (%s) are told when to try again', async (CORS_ORIGINS) => {
    const { worker, queue } = await startOne({ FAST_LANE, CORS_ORIGINS, PENDING_REQUESTS_MAX: '1' })
    queue.hold()
    const held = increment(worker, 'a=1')
    await until('a reply that waits', () => worker.flusher.pendingReplies === 1)
    const reply = await from(worker, 'https://friend.example')
    expect(reply.status).toBe(503)
    expect(reply.headers['retry-after']).toBe('1')
    expect(reply.headers['access-control-expose-headers']).toBe('Retry-After')
    if (CORS_ORIGINS !== '*') {
      expect((await from(worker, 'https://other.example')).headers['access-control-expose-headers']).toBeUndefined()
    }
    queue.release()
    expect((await held).status).toBe(204)
  })

  test('of this host may count though a proxy changed Host, where HOSTS_ALLOWED has the name; else the reply says ' +
    'what to do', async () => {
    const { worker } = await startOne({ FAST_LANE, HOSTS_ALLOWED: 'counter.example' })
    expect((await from(worker, 'https://counter.example', { Host: 'counter.example' })).status).toBe(204)
    expect((await from(worker, 'https://counter.example', { Host: 'counter.example:443' })).status).toBe(204)
    expect((await from(worker, 'https://counter.example', { Host: '127.0.0.1:3333' })).status).toBe(204)
    for (const origin of ['https://other.example', 'http://127.0.0.1', 'http://localhost:3333']) {
      const reply = await from(worker, origin, { Host: '127.0.0.1:3333' })
      expect(errorOf(reply)).toMatchObject({
        code: 'GBX_FORBIDDEN_ORIGIN',
        message: expect.stringMatching(/CORS_ORIGINS.*proxy.*Host.*HOSTS_ALLOWED/),
      })
    }
  })
})

describe.each(paths)('with a BASE_PATH and FAST_LANE=%s', (FAST_LANE) => {
  let started: Started
  beforeAll(async () => { started = await start({ FAST_LANE, BASE_PATH: '/gear/box' }) })
  afterAll(async () => { await started.worker.end() })

  test('all routes are below it', async () => {
    const { worker, standard } = started
    const before = standard()
    for (const query of ['', '?ack=memory']) {
      expect((await exchange(worker, post('Host: x\r\n', `/gear/box/increment${query}`)))[0]!.status)
        .toBe(query === '' ? 204 : 202)
    }
    expect(standard() - before).toBe(FAST_LANE === 'on' ? 0 : 2)
    for (const path of ['/gear/box/healthz', '/gear/box/readyz', '/gear/box/metrics', '/gear/box/docs',
      '/gear/box/docs/', '/gear/box/docs/json', '/gear/box/docs/static/swagger-ui.css']) {
      expect((await send(worker, { path })).status, path).toBe(200)
    }
    expect((await send(worker, { path: '/gear/box/totals/a' })).status).toBe(503)
    const wrong = await send(worker, { path: '/gear/box/increment' })
    expect([wrong.status, wrong.headers.allow]).toEqual([405, 'POST'])
    for (const path of ['/gear/box/healthz', '/gear/box/readyz']) {
      expect((await send(worker, { path, headers: { Host: 'evil.example' } })).status).toBe(200)
    }
    expect((await send(worker, { path: '/gear/box/metrics', headers: { Host: 'evil.example' } })).status).toBe(421)
  })

  test.each(['/', '/increment', '/healthz', '/readyz', '/metrics', '/totals', '/docs', '/gear/box',
    '/gear/boxincrement', '/gear/increment', '/increment/gear/box', '/gear/box/gear/box/healthz',
    '//gear/box/healthz'])('nothing is at %s', async (path) => {
    for (const method of ['GET', 'POST']) {
      const reply = await send(started.worker,
        { method, path, ...(method === 'POST' ? { headers: { 'Content-Type': formType }, body: 'a=1' } : {}) })
      expect(reply.status).toBe(404)
      expect(errorOf(reply).message).toContain('/gear/box/docs')
    }
  })

  test('the document has the same paths, and says below which one they are', async () => {
    const document: {
      servers?: unknown
      paths: Record<string, unknown>
    } = JSON.parse((await send(started.worker, { path: '/gear/box/docs/json' })).text)
    expect(document.servers).toEqual([{ url: '/gear/box' }])
    expect(Object.keys(document.paths)).toEqual(
      expect.arrayContaining(['/increment', '/totals', '/totals/{key}', '/healthz', '/metrics'])
    )
    expect(Object.keys(document.paths).filter((path) => path.includes('gear'))).toEqual([])
  })
})
