// The hint that a consumer waits for.
import { expect, test } from 'vitest'
import { AutoResetEvent } from '../src/auto-reset-event.ts'

const never = new AbortController().signal
const longMs = 60_000

async function took (work: Promise<void>): Promise<number> {
  const startedAt = performance.now()
  await work
  return performance.now() - startedAt
}

test('an up ends the wait', async () => {
  const wake = new AutoResetEvent()
  const waiting = took(wake.wait(longMs, never))
  wake.up()
  expect(await waiting).toBeLessThan(1000)
})

test('an up while nobody waits ends the next wait at once, and only that one', async () => {
  const wake = new AutoResetEvent()
  wake.up()
  wake.up()
  expect(await took(wake.wait(longMs, never))).toBeLessThan(1000)
  expect(await took(wake.wait(50, never))).toBeGreaterThanOrEqual(45)
})

test('a reset says whether it was up, and the next wait is for another', async () => {
  const wake = new AutoResetEvent()
  expect(wake.reset()).toBe(false)
  wake.up()
  expect(wake.reset()).toBe(true)
  expect(wake.reset()).toBe(false)
  expect(await took(wake.wait(50, never))).toBeGreaterThanOrEqual(45)
})

test('an up that ended a wait does not end the next one as well', async () => {
  const wake = new AutoResetEvent()
  const waiting = wake.wait(longMs, never)
  wake.up()
  await waiting
  expect(await took(wake.wait(50, never))).toBeGreaterThanOrEqual(45)
})

test('without an up the wait ends with its time', async () => {
  expect(await took(new AutoResetEvent().wait(50, never))).toBeGreaterThanOrEqual(45)
})

test('an abort ends the wait, before it or in it', async () => {
  const stop = new AbortController()
  const waiting = took(new AutoResetEvent().wait(longMs, stop.signal))
  stop.abort()
  expect(await waiting).toBeLessThan(1000)
  expect(await took(new AutoResetEvent().wait(longMs, stop.signal))).toBeLessThan(1000)
})
