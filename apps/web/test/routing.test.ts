// What holds for every route, whichever plugin it belongs to: its methods and its query parameters.
import { METHODS } from 'node:http'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { OpenQueue } from './fixtures/open-queue.ts'
import { Connection, errorOf, formType, increment, send, startWorker, type Worker } from './fixtures/worker.ts'

let worker: Worker
const queue = new OpenQueue()
beforeAll(async () => { worker = await startWorker({}, queue) })
afterAll(async () => { await worker.end() })

/** A path of every route, also of those that plugins register. */
const paths = [
  '/increment', '/totals', '/totals/a', '/healthz', '/readyz', '/metrics',
  '/docs', '/docs/', '/docs/json', '/docs/yaml', '/docs/static/index.html', '/docs/static/swagger-ui.css',
  '/docs/static/swagger-initializer.js',
  '/docs/static/theme/gearbox.js', '/docs/static/theme/icon.svg',
]

test('every route of the server has a path among those tested here', () => {
  const branch: string[] = []
  const routes = worker.server.printRoutes({ commonPrefix: false }).split('\n').flatMap((line) => {
    const [, indent, part] = /^(.*)[├└]── (\S+) \(/.exec(line) ?? []
    if (indent === undefined || part === undefined) return []
    branch.splice(indent.length / 4, Infinity, part)
    return branch.join('')
  })
  expect(routes).toEqual(expect.arrayContaining(['/increment', '/totals/:key', '/docs/json']))
  for (const route of routes) {
    const pattern = new RegExp(`^${route.replace(/:\w+/, '[^/]+').replace('*', '.+')}$`)
    expect(paths.some((path) => pattern.test(path)), route).toBe(true)
  }
})

describe('a method that a path does not have is a 405', () => {
  /** CONNECT has no path. */
  const methods = METHODS.filter((method) => method !== 'CONNECT')

  test.each(paths)('for %s', async (path) => {
    const allow = path === '/increment' ? ['POST'] : ['GET', 'HEAD']
    // Totals are corrected where there is an administrator; here there is none.
    const unlisted = path.startsWith('/totals') ? ['PUT', 'DELETE'] : []
    for (const method of methods.filter((method) => ![...allow, ...unlisted].includes(method))) {
      for (const headers of [{}, { 'Content-Type': 'application/json', 'Content-Length': '2' },
        { 'Content-Type': 'x', 'Content-Length': '2' }]) {
        const body = 'Content-Length' in headers ? '{}' : ''
        const reply = await send(worker, { method, path, headers, body })
        expect(reply.status, `${method} ${path} ${JSON.stringify(headers)}`).toBe(405)
        expect(reply.headers.allow).toBe(allow.join(', '))
        if (method !== 'HEAD') {
          expect(errorOf(reply)).toEqual({
            code: 'GBX_METHOD_NOT_ALLOWED',
            message: `method not allowed; use ${allow.join(' or ')}`,
          })
        }
      }
    }
    expect(methods).toContain('QUERY')
    expect(worker.flusher.counts.increments).toBe(0)
  })

  test.each(['/%69ncrement', 'http://127.0.0.1/increment', '/increment?foo=1',
    '/increment#a'])('of %s, which is a spelling of a route', async (path) => {
    const reply = await send(worker, { method: 'PUT', path })
    expect(reply.status).toBe(405)
    expect(reply.headers.allow).toBe('POST')
  })

  test('also with a body larger than any route accepts', async () => {
    expect((await send(worker,
      {
        method: 'POST',
        path: '/totals',
        headers: { 'Content-Type': formType },
        body: 'a'.repeat(70_000),
      })).status).toBe(405)
  })

  test.each(['/nothing', '/totals/a/b', '/docs/nothing', '/',
    '/%zz'])('but not of %s, where nothing is', async (path) => {
    for (const method of ['PUT', 'QUERY', 'PROPFIND', 'GET']) {
      const { status } = await send(worker, { method, path: `${path}?a=b` })
      expect(status).toBe(path === '/%zz' ? 400 : 404)
    }
  })

  test('but not if the method is unknown to Node', async () => {
    const connection = new Connection(worker)
    onTestFinished(() => connection.end())
    connection.write('BREW /increment HTTP/1.1\r\nHost: x\r\n\r\n')
    await connection.closed
    expect(connection.replies()[0]?.status).toBe(400)
  })

  test('HEAD is answered like GET, without a body', async () => {
    for (const path of ['/healthz', '/readyz', '/metrics', '/docs/json', '/docs/static/swagger-ui.css']) {
      expect(await send(worker, { method: 'HEAD', path })).toMatchObject({ status: 200, text: '' })
    }
  })
})

describe('a query parameter that a route does not know', () => {
  test.each(paths)('is a 400 at %s', async (path) => {
    for (const method of path === '/increment' ? ['POST'] : ['GET', 'HEAD']) {
      for (const name of ['x', '__proto__', 'constructor', '', '%61%62', 'a.b', 'numbers[]']) {
        const reply = await send(worker,
          {
            method,
            path: `${path}?${name}=1`,
            headers: method === 'POST' ? { 'Content-Type': formType } : {},
            body: method === 'POST' ? 'a=1' : '',
          })
        expect(reply.status, `${path}?${name}=1`).toBe(400)
        if (method === 'HEAD') continue
        const { code, message } = errorOf(reply)
        expect(code).toBe('GBX_BAD_QUERY')
        expect(message).toContain(`unknown query parameter "${decodeURIComponent(name)}"`)
      }
    }
    expect(worker.flusher.counts.increments).toBe(0)
  })

  const messageAt = async (path: string): Promise<string> => {
    const post = path.startsWith('/increment')
    const reply = await send(worker,
      { path, ...(post ? { method: 'POST', headers: { 'Content-Type': formType }, body: 'a=1' } : {}) })
    expect(reply.status).toBe(400)
    return errorOf(reply).message
  }

  test.each([
    ['/increment?acks=stored', 'unknown query parameter "acks"; did you mean "ack"? Known: ack, form'],
    ['/increment?ACK=stored', 'unknown query parameter "ACK"; did you mean "ack"? Known: ack, form'],
    ['/increment?ack%5B%5D=stored', 'unknown query parameter "ack[]"; did you mean "ack"? Known: ack, form'],
    ['/increment?ack=stored&from=pairs', 'unknown query parameter "from"; did you mean "form"? Known: ack, form'],
    ['/increment?something-else=1', 'unknown query parameter "something-else"; known: ack, form'],
    ['/totals?limt=1',
      expect.stringContaining('unknown query parameter "limt"; did you mean "limit"? Known: key, prefix')],
    ['/totals?odrer=total', expect.stringContaining('did you mean "order"?')],
    ['/healthz?verbose', 'unknown query parameter "verbose"; there are none here'],
    ['/docs?a%0Ab=1', 'unknown query parameter "a\\nb"; there are none here'],
  ])('is named, with the nearest known one (%s)', async (path, message) => {
    expect(await messageAt(path)).toEqual(message)
  })

  test('is echoed with at most 64 characters, however long it is', async () => {
    const message = await messageAt(`/increment?${'x'.repeat(10_000)}=1`)
    expect(message).toContain('x'.repeat(60))
    expect(message).not.toContain('x'.repeat(65))
  })

  test.each(['/totals?key=a&key=b', '/totals?limit=1&limit=1', '/increment?ack=stored&ack=stored',
    '/increment?ack=stored&%61ck=stored',
    '/totals?prefix=&prefix='])('and one that is repeated is one too (%s)', async (path) => {
    expect(await messageAt(path)).toMatch(/^query parameter "\w+" is given 2 times; give it once$/)
  })

  test.each(paths)('is a 400 too if it is no UTF-8 (%s)', async (path) => {
    for (const query of ['x=%FF', '%zz=1', 'x=%']) {
      expect(await messageAt(`${path}?${query}`)).toBe('the query is not percent-encoded UTF-8')
    }
  })

  test.each([
    ['/totals?limit=0', '"limit" must be >= 1, not "0"'],
    ['/totals?limit=1001', '"limit" must be <= 1000, not "1001"'],
    ['/totals?limit=ten', '"limit" must be a whole number, not "ten"'],
    ['/totals?limit=0x10', '"limit" must be a whole number, not "0x10"'],
    ['/totals?limit=1e2', '"limit" must be a whole number, not "1e2"'],
    ['/totals?limit=+1', '"limit" must be a whole number, not " 1"'],
    ['/totals?limit=', '"limit" must be a whole number, not ""'],
    ['/totals?limit=999999999999999', '"limit" must be <= 1000, not "999999999999999"'],
    [`/totals?limit=${'9'.repeat(400)}`, `"limit" must be a whole number, not "${'9'.repeat(63)}…"`],
    ['/totals?order=value', '"order" must be one of key, total, not "value"'],
    ['/totals?order=total&after=a%22', '"after" must be the "next" of the page before, in the same order, not "a\\""'],
    ['/increment?ack=sure', '"ack" must be one of memory, queued, stored, not "sure"'],
    ['/increment?ack', '"ack" must be one of memory, queued, stored, not ""'],
    ['/increment?form=json', '"form" can only be "pairs", not "json"'],
  ])('or a value that is not allowed is shown (%s)', async (path, message) => {
    expect(await messageAt(path)).toBe(message)
  })

  test('is refused after the check of who may come in', async () => {
    const guarded = await startWorker({ API_KEYS: 'k' }, new OpenQueue())
    onTestFinished(guarded.end)
    expect((await increment(guarded, 'a=1', '?foo=1')).status).toBe(401)
    expect((await increment(guarded, 'a=1', '?foo=1', { Authorization: 'Bearer k' })).status).toBe(400)
  })
})
