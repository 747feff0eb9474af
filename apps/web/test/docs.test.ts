// The documentation: the page in a real browser, and the OpenAPI document behind it.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { chromium, type Browser, type Page } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { OpenQueue } from './fixtures/open-queue.ts'
import { increment, send, startWorker, type Worker } from './fixtures/worker.ts'

let worker: Worker

beforeAll(async () => { worker = await startWorker() })
afterAll(async () => { await worker.end() })

const routes = ['/healthz', '/increment', '/metrics', '/readyz', '/totals', '/totals/{key}']

interface Parameter { readonly name: string, readonly in: string, readonly required?: boolean, readonly schema: object }
interface Operation {
  readonly summary?: string
  readonly parameters?: readonly Parameter[]
  readonly requestBody?: { readonly content: Readonly<Record<string, object>> }
  readonly responses: Readonly<Record<string, {
    readonly description?: unknown
    readonly content?: Readonly<Record<string, object>>
  }>>
  readonly security?: readonly object[]
}
interface Document {
  readonly openapi: string
  readonly info: { readonly title: string, readonly version: string }
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  readonly components?: { readonly securitySchemes?: object }
  readonly security?: readonly object[]
}

async function documentOf (worker: Worker): Promise<Document> {
  const { status, text } = await send(worker, { path: '/docs/json' })
  expect(status).toBe(200)
  const document: Document = JSON.parse(text)
  return document
}

describe('/docs/json', () => {
  test('is OpenAPI 3.1 with every route', async () => {
    const document = await documentOf(worker)
    expect(document.openapi).toMatch(/^3\.1\.\d+$/)
    expect(document.info).toMatchObject({ title: expect.stringMatching(/./), version: expect.stringMatching(/./) })
    expect(Object.keys(document.paths).sort()).toEqual(routes)
    expect(Object.keys(document.paths['/increment']!)).toEqual(['post'])
    for (const path of routes.filter((path) => path !== '/increment')) {
      expect(Object.keys(document.paths[path]!)).toContain('get')
    }
  })

  test('has for every operation what OpenAPI asks for', async () => {
    const { paths } = await documentOf(worker)
    for (const [path, item] of Object.entries(paths)) {
      const names = Array.from(path.matchAll(/\{(\w+)\}/g), ([, name]) => name)
      for (const operation of Object.values(item)) {
        expect(operation.summary).toMatch(/./)
        expect(Object.keys(operation.responses).length).toBeGreaterThan(0)
        for (const [status, response] of Object.entries(operation.responses)) {
          expect(status).toMatch(/^(?:[1-5]\d\d|default)$/)
          expect(response.description).toEqual(expect.any(String))
        }
        const parameters = operation.parameters ?? []
        for (const parameter of parameters) {
          expect(['query', 'header', 'path', 'cookie']).toContain(parameter.in)
          expect(parameter.schema).toEqual(expect.any(Object))
        }
        expect(new Set(parameters.map((parameter) => `${parameter.in} ${parameter.name}`)).size).toBe(parameters.length)
        expect(parameters.filter((parameter) => parameter.in === 'path' && parameter.required === true)
          .map(({ name }) => name)).toEqual(names)
      }
    }
  })

  test('has the version of package.json', async () => {
    const { version }: { version: string } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url),
      'utf8'))
    expect((await documentOf(worker)).info.version).toBe(version)
  })

  test('has the limits of what is sent, and says of every route that it refuses other queries', async () => {
    const { paths } = await documentOf(worker)
    const schemaOf = (path: string, method: string, name: string): object =>
      paths[path]![method]!.parameters!.find((parameter) => parameter.name === name)!.schema
    expect(schemaOf('/increment', 'post', 'Idempotency-Key'))
      .toEqual({ type: 'string', minLength: 1, maxLength: 255, pattern: '^[!-~]+$' })
    expect(schemaOf('/totals', 'get', 'after')).toEqual({ type: 'string', maxLength: 4096 })
    for (const path of ['/totals', '/totals/{key}']) {
      expect(schemaOf(path, 'get', 'numbers')).toEqual({ type: 'string', enum: ['string'] })
    }
    for (const operation of Object.values(paths).flatMap((item) => Object.values(item))) {
      expect(Object.keys(operation.responses)).toContain('400')
    }
  })

  test('says of POST /increment what a client needs to know', async () => {
    const { post } = (await documentOf(worker)).paths['/increment']!
    expect(Object.keys(post!.requestBody!.content)).toEqual(['application/x-www-form-urlencoded'])
    expect(post!.parameters!.map((parameter) => `${parameter.in} ${parameter.name}`).sort())
      .toEqual(['header Idempotency-Key', 'query ack', 'query form'])
    for (const status of ['202', '204', '400', '413', '415', '422', '503']) {
      expect(Object.keys(post!.responses)).toContain(status)
    }
    expect(post!.responses['204']!.content).toBeUndefined()
  })

  test('mentions the API keys where there are any', async () => {
    const guarded = await startWorker({ API_KEYS: 'k' })
    onTestFinished(guarded.end)
    const document = await documentOf(guarded)
    expect(document.components?.securitySchemes)
      .toEqual({ bearer: { type: 'http', scheme: 'bearer', description: expect.stringContaining('count:KEY') } })
    expect(document.security).toEqual([{ bearer: [] }])
    expect(document.paths['/healthz']!.get!.security).toEqual([])
    expect((await documentOf(worker)).security).toBeUndefined()
  })
})

describe('in a browser,', () => {
  let browser: Browser
  beforeAll(async () => {
    browser = await chromium.launch({
      executablePath: findProgram('chromium')!,
      args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
        '--disable-background-networking', '--disable-component-update', '--disable-sync',
        // As if a page's owner had given its name this machine's address.
        '--host-resolver-rules=MAP rebound.example 127.0.0.1'],
    })
  })
  afterAll(async () => { await browser.close() })

  /** An empty page, and what there is to complain of in it: errors, warnings, and whatever it asks of others. */
  async function openPage (origin: string): Promise<{ page: Page, complaints: string[] }> {
    const page = await browser.newPage()
    onTestFinished(async () => { await page.close() })
    const complaints: string[] = []
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) {
        complaints.push(message.text())
      }
    })
    page.on('pageerror', (error) => { complaints.push(String(error)) })
    page.on('requestfailed', (request) => { complaints.push(`failed: ${request.url()}`) })
    page.on('response', (response) => {
      if (response.status() >= 400) {
        complaints.push(`${response.status()}: ${response.url()}`)
      }
    })
    await page.route((url) => url.origin !== origin && url.protocol !== 'data:', async (route) => {
      complaints.push(`asks ${route.request().url()}`)
      await route.abort()
    })
    return { page, complaints }
  }

  /** Tries POST /increment out as it stands in the page. */
  async function tryToCount (page: Page): Promise<void> {
    const post = page.locator('.opblock-post').first()
    await post.locator('.opblock-summary-control').click()
    await post.getByRole('button', { name: 'Try it out' }).click()
    await post.getByRole('button', { name: 'Execute' }).click()
  }

  test('/docs shows every route, counts when tried out, asks nobody else for anything, and has nothing to ' +
    'complain of', async () => {
    const origin = `http://127.0.0.1:${worker.port}`
    const { page, complaints } = await openPage(origin)
    await page.goto(`${origin}/docs`)
    await page.locator('.opblock').first().waitFor()
    expect((await page.locator('.info .title').innerText()).startsWith('Gearbox')).toBe(true)
    const shown = await page.locator('.opblock .opblock-summary')
      .evaluateAll((summaries) => summaries.map((summary) => [
        summary.querySelector('.opblock-summary-method')?.textContent,
        summary.querySelector('.opblock-summary-path')?.getAttribute('data-path'),
      ].join(' ')))
    expect(shown).toEqual(expect.arrayContaining(['POST /increment', 'GET /totals', 'GET /totals/{key}', 'GET /healthz',
      'GET /readyz', 'GET /metrics']))

    await increment(worker, 'shown=18', '?ack=stored')
    const total = page.locator('.opblock',
      { has: page.locator('[data-path="/totals/{key}"]') }).filter({ hasText: 'GET' }).first()
    await total.locator('.opblock-summary-control').click()
    await total.getByRole('button', { name: 'Try it out' }).click()
    await total.getByPlaceholder('key').fill('shown')
    await total.getByRole('button', { name: 'Execute' }).click()
    await until('the total', async () => /"total": 18/.test(await total.locator('.live-responses-table').innerText()))

    await tryToCount(page)
    await until('what was counted', () => worker.totals().get('foo') === 1n)
    expect(worker.totals().get('bar')).toBe(-20n)
    expect(complaints).toEqual([])
  })
  test.each(['/docs',
    '/docs/'])('%s behind a BASE_PATH opens without a key, and is used with one that is typed there', async (path) => {
    const guarded = await startWorker({ BASE_PATH: '/gear/box', API_KEYS: 'count:s3cret' })
    onTestFinished(guarded.end)
    const origin = `http://127.0.0.1:${guarded.port}`
    const { page, complaints } = await openPage(origin)
    await page.goto(`${origin}/gear/box${path}`)
    await page.locator('.opblock').first().waitFor()
    await page.getByRole('button', { name: 'Authorize' }).click()
    await page.locator('.auth-container input').fill('s3cret')
    await page.locator('.auth-btn-wrapper').getByRole('button', { name: 'Apply credentials' }).click()
    await page.locator('.auth-btn-wrapper').getByRole('button', { name: 'Close' }).click()
    await tryToCount(page)
    await until('what was counted', () => guarded.totals().get('foo') === 1n)
    expect(complaints).toEqual([])
  })

  test('a page that got this machine\'s address for its own name can neither count nor read', async () => {
    const origin = `http://rebound.example:${worker.port}`
    const { page } = await openPage(origin)
    const reply = await page.goto(`${origin}/healthz`)
    expect(reply?.status(), 'the name leads here').toBe(200)
    const seen = await page.evaluate(async () => await Promise.all([
      fetch('/increment?ack=stored', { method: 'POST', body: new URLSearchParams({ rebound: '1' }) }), fetch('/totals'),
      fetch('/metrics'), fetch('/docs/json'),
    ].map(async (reply) => [(await reply).status, (await (await reply).text()).includes('HOSTS_ALLOWED')])))
    expect(seen).toEqual(Array(4).fill([421, true]))
    expect(worker.totals().has('rebound')).toBe(false)
  })

  test('a page of another origin counts where CORS_ORIGINS has it, and reads when to send again', async () => {
    const pages =
      createServer((_request, response) => { response.setHeader('Content-Type', 'text/html').end('<!doctype html>') })
    await new Promise<void>((resolve) => pages.listen(0, '127.0.0.1', resolve))
    onTestFinished(() => { pages.close() })
    const origin = `http://localhost:${(pages.address() as AddressInfo).port}`
    const queue = new OpenQueue()
    const crossed = await startWorker({ CORS_ORIGINS: origin, API_KEYS: 'count:k', PENDING_REQUESTS_MAX: '1' }, queue)
    onTestFinished(crossed.end)
    const page = await browser.newPage()
    onTestFinished(async () => { await page.close() })
    await page.goto(origin)
    const count = async (): Promise<unknown> => await page.evaluate(async (url) => {
      const reply = await fetch(url,
        {
          method: 'POST',
          body: new URLSearchParams({ foo: '1' }),
          headers: { Authorization: 'Bearer k', 'Idempotency-Key': String(Math.random()) },
        })
      return [reply.status, reply.headers.get('Retry-After')]
    }, `http://127.0.0.1:${crossed.port}/increment`)
    expect(await count()).toEqual([204, null])
    queue.hold()
    const held = count()
    await until('a reply that waits', () => crossed.flusher.pendingReplies === 1)
    expect(await count()).toEqual([503, '1'])
    queue.release()
    expect(await held).toEqual([204, null])
  })
})
