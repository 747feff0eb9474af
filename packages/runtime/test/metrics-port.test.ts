// What a metrics port answers and refuses, as the workers' port does.
import { request } from 'node:http'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { loadConfig } from '../src/config.ts'
import { createLogger } from '../src/log/logger.ts'
import { serveMetrics, type MetricsServer } from '../src/metrics-server.ts'
import { freePort } from '@gearbox/test-kit/redis.ts'

let server: MetricsServer
beforeAll(async () => {
  const config = loadConfig({ METRICS_PORT: String(await freePort()) })
  server = (await serveMetrics(config, async () => 'gearbox_keys 1\n', createLogger('test', 'silent')))!
})
afterAll(async () => { await server.close() })

async function ask (path: string, method = 'GET'): Promise<{
  status: number,
  allow: string |
  undefined,
  text: string
}> {
  return await new Promise((resolve, reject) => {
    const { hostname, port } = new URL(server.address)
    request({ hostname, port, path, method, agent: false }, (response) => {
      let text = ''
      response.on('data', (chunk: Buffer) => { text += chunk.toString() })
      response.on('end', () => resolve({ status: response.statusCode!, allow: response.headers.allow, text }))
    }).on('error', reject).end()
  })
}

test.each([
  '/metrics', '/metrics?', '/metrics?&', 'http://127.0.0.1/metrics',
])('a metrics port has %s', async (path) => {
  expect(await ask(path)).toMatchObject({ status: 200, text: 'gearbox_keys 1\n' })
})

test.each([['/metrics?name=x', 'name'], ['/metrics?x', 'x'], ['/metrics?=1', ''], ['/metrics?%22%0A=1', '\\"\\n'],
  [`/metrics?${'x'.repeat(999)}`, `${'x'.repeat(63)}…`],
])('a metrics port refuses a query (%s)', async (path, name) => {
  const { status, text } = await ask(path)
  expect(status).toBe(400)
  expect(JSON.parse(text)).toEqual({
    statusCode: 400,
    code: 'GBX_BAD_QUERY',
    error: 'Bad Request',
    message: `unknown query parameter "${name}"; there are none here`,
  })
})

test.each(['POST', 'PUT', 'QUERY', 'PROPFIND', 'OPTIONS', 'TRACE'])('a metrics port allows no %s', async (method) => {
  const { status, allow, text } = await ask('/metrics?a=b', method)
  expect([status, allow]).toEqual([405, 'GET, HEAD'])
  expect(JSON.parse(text)).toMatchObject({
    code: 'GBX_METHOD_NOT_ALLOWED',
    message: 'method not allowed; use GET or HEAD',
  })
})

test('any other path of a metrics port is not found, whatever the method', async () => {
  for (const method of ['GET', 'QUERY']) {
    expect(await ask('/', method)).toMatchObject({ status: 404, text: expect.stringContaining('GBX_NOT_FOUND') })
  }
})
