// A bad network, or a Redis that stands still, between Redis and the whole product: whatever becomes of single
// commands, every total is exact.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { Load, root } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import type { RedisServer } from '@gearbox/test-kit/redis.ts'
import { TcpProxy } from '@gearbox/test-kit/tcp-proxy.ts'
import { later, until } from '@gearbox/test-kit/until.ts'
import {
  freeze, makePlace, readiness, startGearbox, startRedis, stopAndExpectExact,
} from './fixtures.ts'

/** Longer than every timeout of a connection, so that all commands of before are given up. */
const longMs = 3200

interface Running {
  readonly redis: RedisServer
  readonly proxy: TcpProxy
  readonly gearbox: Awaited<ReturnType<typeof startGearbox>>
  readonly load: Load
  readonly end: () => Promise<void>
}

async function run (): Promise<Running> {
  const redis = await startRedis()
  const proxy = await TcpProxy.start(redis.port)
  onTestFinished(async () => { await proxy.close() })
  const place = makePlace(proxy.url)
  const gearbox = await startGearbox(place)
  const load = new Load(gearbox.url)
  await load.more(200)
  return { redis, proxy, gearbox, load, end: async () => { await stopAndExpectExact(gearbox, place, load) } }
}

/** Something that only this command has in it on its way to Redis. */
const marks = {
  push: scriptMark('push'),
  take: scriptMark('take'),
  acknowledge: scriptMark('acknowledge'),
  tell: 'gearbox:{0}:told',
}

function scriptMark (name: string): string {
  return createHash('sha1').update(readFileSync(join(root, 'packages/queue/src/redis', `${name}.lua`))).digest('hex')
}

for (const [command, mark] of Object.entries(marks)) {
  test(`connections that break after Redis has executed ${command}, and in the middle of one`, async () => {
    const { proxy, load, end } = await run()
    for (let times = 1; times <= 4; times++) {
      if (times % 2 === 1) proxy.loseReplyTo(mark)
      else proxy.cutIn(mark)
      await until('a connection to break', () => proxy.done)
      await load.more(60)
    }
    await end()
  })
}

test('all connections break, again and again', async () => {
  const { proxy, load, end } = await run()
  for (let times = 1; times <= 6; times++) {
    proxy.cutAll()
    await load.more(60)
  }
  await end()
})

test('Redis stands still for longer than every timeout', async () => {
  const { redis, gearbox, load, end } = await run()
  const thaw = freeze(redis.pid)
  await until('it to be noticed', async () => await readiness(gearbox.url) === 503)
  await later(longMs)
  thaw()
  await until('it to be ready', async () => await readiness(gearbox.url) === 200)
  await load.more(200)
  // It has forgotten nothing: nothing but what was in flight is sent again.
  expect(await metric(gearbox.url, 'gearbox_window_replays_total')).toBe(0)
  await end()
})

test('the network swallows everything for longer than every timeout', async () => {
  const { proxy, gearbox, load, end } = await run()
  proxy.blackHole()
  await until('it to be noticed', async () => await readiness(gearbox.url) === 503)
  await later(longMs)
  proxy.heal()
  await until('it to be ready', async () => await readiness(gearbox.url) === 200)
  await load.more(200)
  expect(await metric(gearbox.url, 'gearbox_window_replays_total')).toBe(0)
  await end()
})

test('bytes of connections that were given up arrive after everything in them was sent again', async () => {
  const { proxy, load, end } = await run()
  for (let times = 1; times <= 2; times++) {
    proxy.holdBack()
    await until('bytes to be held back', () => proxy.heldBytes > 0)
    await load.more(200)
    proxy.release()
    await load.more(100)
  }
  await end()
})
