// The documentation: the page in a real browser, and the OpenAPI document behind it.
import { readFileSync } from 'node:fs'
import { chromium, type Browser } from 'playwright-core'
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest'
import { findProgram } from '../../../test/fixtures/requirements.ts'
import { until } from '../../../test/fixtures/until.ts'
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
  readonly responses: Readonly<Record<string, { readonly description?: unknown, readonly content?: Readonly<Record<string, object>> }>>
  readonly security?: readonly object[]
}
interface Document {
  readonly openapi: string
  readonly info: { readonly title: string, readonly version: string }
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  readonly components?: { readonly securitySchemes?: object }
  readonly security?: readonly object[]
}

async function documentOf (worker: Worker, headers: Record<string, string> = {}): Promise<Document> {
  const { status, text } = await send(worker, { path: '/docs/json', headers })
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
    for (const path of routes.filter((path) => path !== '/increment')) expect(Object.keys(document.paths[path]!)).toContain('get')
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
        expect(parameters.filter((parameter) => parameter.in === 'path' && parameter.required === true).map(({ name }) => name)).toEqual(names)
      }
    }
  })

  test('has the version of package.json', async () => {
    const { version }: { version: string } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8'))
    expect((await documentOf(worker)).info.version).toBe(version)
  })

  test('has the limits of what is sent, and says of every route that it refuses other queries', async () => {
    const { paths } = await documentOf(worker)
    const schemaOf = (path: string, method: string, name: string): object => paths[path]![method]!.parameters!.find((parameter) => parameter.name === name)!.schema
    expect(schemaOf('/increment', 'post', 'Idempotency-Key')).toEqual({ type: 'string', minLength: 1, maxLength: 255, pattern: '^[!-~]+$' })
    expect(schemaOf('/totals', 'get', 'after')).toEqual({ type: 'string', maxLength: 4096 })
    for (const path of ['/totals', '/totals/{key}']) expect(schemaOf(path, 'get', 'numbers')).toEqual({ type: 'string', enum: ['string'] })
    for (const operation of Object.values(paths).flatMap((item) => Object.values(item))) expect(Object.keys(operation.responses)).toContain('400')
  })

  test('tells of POST /increment what a client needs to know', async () => {
    const { post } = (await documentOf(worker)).paths['/increment']!
    expect(Object.keys(post!.requestBody!.content)).toEqual(['application/x-www-form-urlencoded'])
    expect(post!.parameters!.map((parameter) => `${parameter.in} ${parameter.name}`).sort()).toEqual(['header Idempotency-Key', 'query ack', 'query form'])
    for (const status of ['202', '204', '400', '413', '415', '422', '503']) expect(Object.keys(post!.responses)).toContain(status)
    expect(post!.responses['204']!.content).toBeUndefined()
  })

  test('tells of the API keys where there are any', async () => {
    const guarded = await startWorker({ API_KEYS: 'k' })
    onTestFinished(guarded.end)
    const document = await documentOf(guarded, { Authorization: 'Bearer k' })
    expect(document.components?.securitySchemes).toEqual({ bearer: { type: 'http', scheme: 'bearer' } })
    expect(document.security).toEqual([{ bearer: [] }])
    expect(document.paths['/healthz']!.get!.security).toEqual([])
    expect((await documentOf(worker)).security).toBeUndefined()
  })
})

describe('/docs in a browser', () => {
  let browser: Browser
  beforeAll(async () => {
    browser = await chromium.launch({
      executablePath: findProgram('chromium')!,
      args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
    })
  })
  afterAll(async () => { await browser.close() })

  test('shows every route, counts when tried out, asks nobody else for anything, and has nothing to complain of', async () => {
    const page = await browser.newPage()
    onTestFinished(async () => { await page.close() })
    const complaints: string[] = []
    const origin = `http://127.0.0.1:${worker.port}`
    page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) complaints.push(message.text()) })
    page.on('pageerror', (error) => { complaints.push(String(error)) })
    page.on('requestfailed', (request) => { complaints.push(`failed: ${request.url()}`) })
    page.on('response', (response) => { if (response.status() >= 400) complaints.push(`${response.status()}: ${response.url()}`) })
    await page.route((url) => url.origin !== origin && url.protocol !== 'data:', async (route) => {
      complaints.push(`asks ${route.request().url()}`)
      await route.abort()
    })
    await page.goto(`${origin}/docs`)
    await page.locator('.opblock').first().waitFor()
    expect((await page.locator('.info .title').innerText()).startsWith('Gearbox')).toBe(true)
    const shown = await page.locator('.opblock .opblock-summary').evaluateAll((summaries) => summaries.map((summary) => [
      summary.querySelector('.opblock-summary-method')?.textContent, summary.querySelector('.opblock-summary-path')?.getAttribute('data-path'),
    ].join(' ')))
    expect(shown).toEqual(expect.arrayContaining(['POST /increment', 'GET /totals', 'GET /totals/{key}', 'GET /healthz', 'GET /readyz', 'GET /metrics']))

    await increment(worker, 'shown=18', '?ack=stored')
    const total = page.locator('.opblock', { has: page.locator('[data-path="/totals/{key}"]') }).filter({ hasText: 'GET' }).first()
    await total.locator('.opblock-summary-control').click()
    await total.getByRole('button', { name: 'Try it out' }).click()
    await total.getByPlaceholder('key').fill('shown')
    await total.getByRole('button', { name: 'Execute' }).click()
    await until('the total', async () => /"total": 18/.test(await total.locator('.live-responses-table').innerText()))

    const post = page.locator('.opblock-post').first()
    await post.locator('.opblock-summary-control').click()
    await post.getByRole('button', { name: 'Try it out' }).click()
    await post.getByRole('button', { name: 'Execute' }).click()
    await until('what was counted', () => worker.totals().get('foo') === 1n)
    expect(worker.totals().get('bar')).toBe(-20n)
    expect(complaints).toEqual([])
  })
})
