// The retry loop that the outbox and the spool share.
import { expect, test } from 'vitest'
import { QueueUnavailableError } from '@gearbox/queue/queue.ts'
import { orAborted, retry } from '../src/deliver/retry.ts'

const never = new AbortController().signal

test('an action is repeated while the queue is unavailable, and each failure is reported', async () => {
  const reasons: string[] = []
  let attempts = 0
  const result = await retry(async () => {
    if (++attempts < 4) throw new QueueUnavailableError(`failed ${attempts}`)
    return attempts
  }, never, (reason) => { reasons.push(reason) })
  expect(result).toBe(4)
  expect(reasons).toEqual(['failed 1', 'failed 2', 'failed 3'])
})

test('any other error ends the retries', async () => {
  await expect(retry(async () => { throw new TypeError('a fault') }, never)).rejects.toThrow('a fault')
})

test('an abort ends the retries: before the first attempt, in the middle of one, and in a pause', async () => {
  const attempted: string[] = []
  const attempt = (name: string, action: () => Promise<never>) => async () => {
    attempted.push(name)
    return await action()
  }
  const hang = async (): Promise<never> => await new Promise(() => {})
  const fail = async (): Promise<never> => { throw new QueueUnavailableError('failed') }
  expect(await retry(attempt('before', hang), AbortSignal.abort())).toBeUndefined()
  const during = new AbortController()
  const hanging = retry(attempt('during', hang), during.signal)
  during.abort()
  expect(await hanging).toBeUndefined()
  const paused = new AbortController()
  const pausing = retry(attempt('paused', fail), paused.signal, () => { setImmediate(() => paused.abort()) })
  expect(await pausing).toBeUndefined()
  expect(attempted).toEqual(['during', 'paused'])
})

test('what is awaited no longer than an abort keeps its result, or fails as unavailable', async () => {
  expect(await orAborted(Promise.resolve(1), never)).toBe(1)
  await expect(orAborted(new Promise(() => {}), AbortSignal.abort())).rejects.toThrow(QueueUnavailableError)
})
