// Thousands of connections that dawdle: each is closed when its time is up, and honest clients are served meanwhile.
import { connect } from 'node:net'
import { expect, onTestFinished, test } from 'vitest'
import { OpenQueue } from '@gearbox/web/fixtures/open-queue.ts'
import { startWorker } from '@gearbox/web/fixtures/worker.ts'
import { Load, readTotals } from '@gearbox/test-kit/gearbox.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { gapsIn, makePlace, startGearbox, stop } from '../faults/fixtures.ts'
import { addressOf, SlowClients } from './fixtures.ts'

test('2,000 connections that send nothing, half a header or a byte a second are closed in time, and honest clients ' +
  'do not notice', async () => {
  const count = 2000
  const place = makePlace(undefined,
    { HEADERS_TIMEOUT_MS: '1000', REQUEST_TIMEOUT_MS: '2000', ACK_TIMEOUT_MS: '30000', WEB_WORKERS: '1' })
  const gearbox = await startGearbox(place)
  const load = new Load(gearbox.url)
  await load.more(100)
  const slow = await SlowClients.open(addressOf(gearbox.url), count)
  onTestFinished(() => slow.end())
  await load.more(100)
  await until('all slow connections to be closed', () => slow.open === 0)
  expect(slow.closed).toBe(count)
  expect(slow.openMsMost,
    'ms: the longest timeout, the check every 500 ms, and time for a busy machine').toBeLessThan(2000 + 500 + 5000)
  expect([...slow.received.keys()]).toEqual(['HTTP/1.1 408 Request Timeout'])
  await load.more(100)
  await load.stop()
  await stop(gearbox)
  expect([...load.statuses.keys()].sort()).toEqual([202, 204])
  const totals = readTotals(place.databasePath)
  expect(load.problems(totals)).toEqual([])
  expect([...totals.keys()].filter((key) => !key.startsWith('load '))).toEqual([])
  expect(gapsIn(place.databasePath)).toEqual([])
})

test('a client that asks a lot and does not read its replies is closed', async () => {
  const worker = await startWorker({
    HEADERS_TIMEOUT_MS: '500',
    REQUEST_TIMEOUT_MS: '500',
    KEEP_ALIVE_TIMEOUT_MS: '500',
    ACK_TIMEOUT_MS: '500',
  }, new OpenQueue())
  onTestFinished(worker.end)
  const socket = connect(worker.port, '127.0.0.1')
  onTestFinished(() => { socket.destroy() })
  socket.on('error', () => {})
  socket.pause()
  // Their replies are many times what the kernel buffers.
  socket.write('GET /docs/json HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(1500))
  const connections = async (): Promise<number> =>
    await new Promise((resolve) => worker.server.server.getConnections((_error, count) => resolve(count)))
  await until('the connection', async () => await connections() === 1)
  await until('the connection to be closed', async () => await connections() === 0)
})
