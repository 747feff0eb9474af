// The page of /docs in a real browser: it has our name and icon, shows what came, and sends what was typed.
import { int64Min } from '@gearbox/protocol/int64.ts'
import { chromium, type Browser, type Locator, type Page } from 'playwright-core'
import { afterAll, afterEach, beforeAll, expect, onTestFinished, test } from 'vitest'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { startWorker, type Worker } from './fixtures/worker.ts'

let worker: Worker
let browser: Browser
beforeAll(async () => {
  worker = await startWorker()
  browser = await chromium.launch({
    executablePath: findProgram('chromium')!,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  })
})
afterEach(() => { worker.clear() })
afterAll(async () => {
  await browser.close()
  await worker.end()
})

async function openDocs (): Promise<{ page: Page, errors: string[] }> {
  const page = await browser.newPage()
  onTestFinished(async () => { await page.close() })
  const errors: string[] = []
  page.on('pageerror', (error) => { errors.push(String(error)) })
  await page.goto(`http://127.0.0.1:${worker.port}/docs`)
  await page.locator('.opblock').first().waitFor()
  return { page, errors }
}

/** Opens an operation's form. */
async function tryOut (page: Page, path: string): Promise<Locator> {
  const operation = page.locator('.opblock', { has: page.locator(`[data-path="${path}"]`) }).first()
  await operation.locator('.opblock-summary-control').click()
  await operation.getByRole('button', { name: 'Try it out' }).click()
  return operation
}

test('the page of /docs has our name and our icon', async () => {
  const { page } = await openDocs()
  expect(await page.title()).toBe('Gearbox')
  const icon = page.locator('link[rel="icon"]')
  expect(await icon.count()).toBe(1)
  const reply = await page.request.get(new URL((await icon.getAttribute('href'))!, page.url()).href)
  expect(reply.headers()['content-type']).toMatch(/^image\/svg\+xml/)
  expect(await reply.text()).toContain('<title>Gearbox</title>')
  const logo = page.locator('.topbar a.link img')
  await logo.waitFor()
  expect(Buffer.from((await logo.getAttribute('src'))!.split(',')[1]!, 'base64').toString()).toBe(await reply.text())
})

test('the page of /docs shows every digit and every escape of a reply, on lines', async () => {
  worker.put('a', 2n ** 53n + 1n)
  worker.put('q"\\{[,:]}', int64Min)
  worker.put('\u2028', 1n)
  const { page, errors } = await openDocs()
  const shown = async (operation: Locator): Promise<string> => {
    await operation.getByRole('button', { name: 'Execute' }).click()
    const body = operation.locator('.live-responses-table .highlight-code code').first()
    await body.waitFor()
    return await body.innerText()
  }
  expect(await shown(await tryOut(page, '/totals'))).toBe(`{
  "totals": [
    {
      "key": "a",
      "total": 9007199254740993
    },
    {
      "key": "q\\"\\\\{[,:]}",
      "total": -9223372036854775808
    },
    {
      "key": "\u2028",
      "total": 1
    }
  ],
  "next": null
}`)
  const one = await tryOut(page, '/totals/{key}')
  await one.getByPlaceholder('key').fill('a')
  await one.locator('[data-param-name="numbers"] select').selectOption('string')
  expect(await shown(one)).toBe('{\n  "key": "a",\n  "total": "9007199254740993"\n}')
  expect(await shown(await tryOut(page, '/healthz'))).toBe('{\n  "status": "ok"\n}')
  expect(errors).toEqual([])
})

test('the page of /docs sends the body of POST /increment as it was typed', async () => {
  const { page, errors } = await openDocs()
  const sent: Array<string | null> = []
  page.on('request', (request) => { if (request.method() === 'POST') sent.push(request.postData()) })
  const post = await tryOut(page, '/increment')
  const body = post.locator('textarea')
  expect(await body.inputValue()).toBe('foo=1&bar=-20')
  const typed = ['foo=1&bar=-20', 'foo=9007199254740993&foo=1', 'a%20b=1&c+d=2&é=3', '{"foo":1}', '7', 'null',
    'foo=1\n']
  for (const [i, text] of typed.entries()) {
    await body.fill(text)
    await post.getByRole('button', { name: 'Execute' }).click()
    await until(`the request with ${text}`, () => sent.length === i + 1)
  }
  expect(sent).toEqual(typed)
  await until('what counts of it', () => worker.totals().get('é') === 3n)
  expect(worker.totals()).toEqual(new Map([['foo', 2n ** 53n + 3n], ['bar', -20n], ['a b', 1n], ['c d', 2n],
    ['é', 3n]]))
  await post.getByRole('button', { name: 'Reset' }).click()
  await until('the example', async () => await body.inputValue() === 'foo=1&bar=-20')
  expect(errors).toEqual([])
})
