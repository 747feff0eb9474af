// A real worker that is filled with a million keys of 16 bytes between two flushes: its memory by pending keys, and the
// longest pause of its event loop while they come in and while they leave.
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { Agent } from 'node:http'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { post } from '@gearbox/test-kit/client.ts'
import { until } from '@gearbox/test-kit/until.ts'
import type { Pause } from './event-loop-probe.ts'
import { readFigures, startGearbox, type Host, type Server } from './host.ts'
import { keyOf } from './keys.ts'
import { residentBytes } from './machine.ts'

export interface Pending {
  /** Resident bytes of the worker with so many keys pending. */
  readonly memory: ReadonlyArray<{ readonly keys: number, readonly bytes: number }>
  /** The most there ever was, the flush included. */
  readonly mostBytes: number
  /** Longest pauses. */
  readonly filling: Pause
  readonly flushing: Pause
  /**
   * The same of the same worker with nothing to do, for about as long as it took to fill it: what the machine itself
   * does.
   */
  readonly idle: Pause
}

/** Long enough to fill the worker on a slow machine, before the next flush takes all away. */
const flushIntervalMs = 20_000

export const idleMs = 5000

const pairs = 1000
const keysMost = 1_000_000

/** @throws Error if it could not be filled between two flushes, or not all was stored */
export async function measurePending (host: Host): Promise<Pending> {
  const file = join(host.dir, 'event-loop')
  const server = await startGearbox(host, {
    ACK: 'memory',
    FLUSH_INTERVAL_MS: String(flushIntervalMs),
    NODE_OPTIONS: `--import=${new URL('event-loop-probe.ts', import.meta.url).href}`,
    EVENT_LOOP_FILE: file,
  })
  try {
    return await fill(server, file)
  } finally {
    await server.stop()
  }
}

async function fill (server: Server, file: string): Promise<Pending> {
  const { port } = server
  const pid = server.pids[0]!
  const url = `http://127.0.0.1:${port}/increment`
  const agent = new Agent({ keepAlive: true, maxSockets: 1 })
  const pendingKeys = async (): Promise<number> => (await readFigures(port))('gearbox_pending_keys')
  const flushed = async (): Promise<void> => {
    await until('the flush', async () => await pendingKeys() === 0,
      2 * flushIntervalMs)
  }
  const longestPause = async (): Promise<Pause> => {
    rmSync(file, { force: true })
    process.kill(pid, 'SIGUSR2')
    return await until('the longest pause', () => existsSync(file) && JSON.parse(readFileSync(file, 'utf8')) as Pause)
  }

  // The first request is flushed at once; from then on all wait for the interval.
  await post(url, 'first=1', {}, agent)
  await flushed()
  await longestPause()
  const memory = [{ keys: 0, bytes: residentBytes(pid, 'VmRSS') }]
  let keys = 0
  for (const upTo of [1000, 100_000, keysMost]) {
    for (; keys < upTo; keys += pairs) {
      const body = Array.from({ length: pairs }, (_, i) => `${keyOf(keys + i, keysMost)}=1`).join('&')
      const { status } = await post(url, body, {}, agent)
      if (status !== 202) throw new Error(`filling the worker: status ${status}`)
    }
    memory.push({ keys, bytes: residentBytes(pid, 'VmRSS') })
  }
  const filling = await longestPause()
  if (await pendingKeys() !== keysMost) throw new Error('the worker was flushed while it was filled')
  await longestPause()
  await flushed()
  const flushing = await longestPause()
  agent.destroy()
  await until('all to be stored', async () => await server.total?.() === keysMost + 1)
  await longestPause()
  await delay(idleMs)
  return { memory, mostBytes: residentBytes(pid, 'VmHWM'), filling, flushing, idle: await longestPause() }
}
