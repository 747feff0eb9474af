// The page of a number in a real browser: it says what it must without a script, follows the line with one, and fits a
// small phone.
import { chromium, type Browser, type BrowserContextOptions, type Page } from 'playwright-core'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { startTicketWorker, TestConsumer, type TestWorker } from './fixtures/worker.ts'

let browser: Browser
beforeAll(async () => {
  browser = await chromium.launch({
    executablePath: findProgram('chromium')!,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  })
})
afterAll(async () => { await browser.close() })

interface Opened {
  readonly page: Page
  readonly consumer: TestConsumer
  readonly worker: TestWorker
  /** What the browser complained about. */
  readonly problems: string[]
  /** All that was requested. */
  readonly requests: string[]
}

/** Opens the page of a number, of as many as were issued. */
async function open (number: number, issued: number, options: BrowserContextOptions = {}, name = 'Lifeboat 3',
  holdS = 0): Promise<Opened> {
  const consumer = new TestConsumer()
  consumer.holdS = holdS
  const worker = await startTicketWorker(consumer)
  const path = `/tickets/${encodeURIComponent(name)}`
  await worker.send('POST', path)
  consumer.database.run('UPDATE tickets_runs SET count = ?', issued)
  consumer.database.run('UPDATE tickets_lines SET issued = ?', issued)
  const context = await browser.newContext(options)
  const page = await context.newPage()
  onTestFinished(async () => { await context.close() })
  const [problems, requests] = [new Array<string>(), new Array<string>()]
  page.on('pageerror', (error) => { problems.push(String(error)) })
  page.on('console', (message) => { problems.push(message.text()) })
  page.on('request', (request) => { requests.push(request.url()) })
  await page.goto(`http://127.0.0.1:${worker.port}${path}/${number}`)
  return { page, consumer, worker, problems, requests }
}

async function isWide (page: Page): Promise<boolean> {
  return await page.evaluate('document.documentElement.scrollWidth > document.documentElement.clientWidth')
}

test('the page has the number, how many are ahead and an estimate, and needs no script for that', async () => {
  const { page, consumer } = await open(42, 50, { javaScriptEnabled: false })
  const text = async (selector: string): Promise<string> => await page.locator(selector).innerText()
  expect(await page.title()).toBe('42: 41 ahead of you')
  expect([await text('h1'), await text('.number'), await text('.status'), await text('.wait')])
    .toEqual(['Lifeboat 3', '42', '41 ahead of you', 'No estimate yet'])
  // As the browser does by itself after some seconds.
  expect(await page.locator('noscript meta[http-equiv="refresh"], meta[http-equiv="refresh"]').count()).toBe(1)
  consumer.database.run('INSERT INTO tickets_calls VALUES (?, 1, 1, ?), (?, 20, 19, ?)',
    'Lifeboat 3', Date.now() - 190_000, 'Lifeboat 3', Date.now())
  consumer.database.run('UPDATE tickets_lines SET serving = 20')
  await page.reload()
  expect([await text('.status'), await text('.wait')]).toEqual(['21 ahead of you', 'About 4 minutes to wait'])
})

test('the page follows the line by itself until the number is called, and asks nobody but its own server', async () => {
  const { page, worker, problems, requests } = await open(3, 5)
  await page.evaluate("document.querySelector('main').dataset.seconds = '0.1'")
  await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
  const status = page.locator('.status')
  expect(await status.innerText()).toBe('2 ahead of you')
  await worker.send('POST', '/tickets/Lifeboat%203/serve?by=2')
  await until('the page to say so', async () => await status.innerText() === 'You are next', 10_000)
  expect(await page.title()).toBe('3: You are next')
  await worker.send('POST', '/tickets/Lifeboat%203/serve?by=1')
  await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
  await until('the page to say so', async () => await status.innerText() === 'It is your turn', 10_000)
  const asked = requests.length
  await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
  await page.evaluate('new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))')
  expect(requests.length, 'there is no more news').toBe(asked)
  expect(new Set(requests.map((url) => new URL(url).host))).toEqual(new Set([`127.0.0.1:${worker.port}`]))
  expect(problems.filter((text) => !text.includes('favicon'))).toEqual([])
})

test.each([320, 375, 1440])('the page fits a window of %i pixels, whatever the number and the name', async (width) => {
  const name = 'W'.repeat(256)
  for (const number of [1, 8888, 8_888_888, 88_888_888_888, Number.MAX_SAFE_INTEGER - 1]) {
    const { page } = await open(number, number, { viewport: { width, height: 568 } }, name)
    expect(await isWide(page), String(number)).toBe(false)
  }
})

test('the page has readable contrast in light and in dark', async () => {
  for (const colorScheme of ['light', 'dark'] as const) {
    const { page, worker } = await open(1, 2, { colorScheme })
    const ratio = async (selector: string): Promise<number> => Number(await page.evaluate(`(() => {
      const light = (color) => {
        const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map((c) => c / 255)
          .map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
      }
      const element = document.querySelector('${selector}')
      let back = element
      while (getComputedStyle(back).backgroundColor === 'rgba(0, 0, 0, 0)') back = back.parentElement
      const [one, other] = [light(getComputedStyle(element).color), light(getComputedStyle(back).backgroundColor)]
      return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)
    })()`))
    for (const part of ['h1', '.label', '.number', '.status', '.wait', '.hint']) {
      expect(await ratio(part), `${part}, ${colorScheme}`).toBeGreaterThan(4.5)
    }
    await worker.send('POST', '/tickets/Lifeboat%203/serve?by=1')
    await page.reload()
    expect(await ratio('.status'), `called, ${colorScheme}`).toBeGreaterThan(4.5)
  }
})

test('what a name says is text on the page, and nothing else', async () => {
  const { page, problems } = await open(1, 1, {}, '<img src=x onerror="document.title=1">&amp;\'"')
  expect(await page.locator('h1').innerText()).toBe('<img src=x onerror="document.title=1">&amp;\'"')
  expect(await page.locator('img').count()).toBe(0)
  expect(problems.filter((text) => !text.includes('favicon'))).toEqual([])
})
