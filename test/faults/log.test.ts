// Standard output that takes nothing: counting, stopping and starting again go on as if there were no log, and what it
// cost is counted.
import { spawnSync } from 'node:child_process'
import { closeSync, constants, existsSync, openSync, writeSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { expect, onTestFinished, test } from 'vitest'
import { endWithTest, Load, Program } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import { freePort } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  batchesKey, expectExact, freeze, makePlaceFor, modes, noTmpfs, readiness, SmallDisk, startConsumer, stop,
  type Mode,
} from './fixtures.ts'

function openFor (path: string, flags: number): number {
  const fd = openSync(path, flags, 0o600)
  onTestFinished(() => { closeSync(fd) })
  return fd
}

function makePipe (): string {
  const path = join(temporaryDir(), 'pipe')
  expect(spawnSync('mkfifo', [path]).status).toBe(0)
  return path
}

/** A socket to somebody who reads nothing, with no room left. */
async function fullSocket (): Promise<Socket> {
  const path = join(temporaryDir(), 'socket')
  const server = createServer((socket) => { socket.pause() })
  await new Promise<void>((resolve) => { server.listen(path, resolve) })
  const socket = connect(path)
  await new Promise((resolve) => socket.once('connect', resolve))
  onTestFinished(() => {
    socket.destroy()
    server.close()
  })
  await until('no room', () => !socket.write(Buffer.alloc(65536)) && socket.writableLength > 2 ** 20)
  return socket
}

const outputs: ReadonlyArray<{
  readonly what: string
  readonly loses: boolean
  readonly skip?: boolean
  readonly make: () => Promise<number | Socket>
}> = [
  {
    what: 'a device without room',
    loses: true,
    skip: !existsSync('/dev/full'),
    make: async () => openFor('/dev/full', constants.O_WRONLY),
  },
  {
    what: 'a file on a full disk',
    loses: true,
    skip: noTmpfs !== undefined,
    make: async () => {
      const disk = new SmallDisk(1)
      const fd = openFor(join(disk.path, 'log'), constants.O_WRONLY | constants.O_CREAT)
      disk.fill()
      return fd
    },
  },
  {
    what: 'a pipe whose reader has left',
    loses: true,
    make: async () => {
      const path = makePipe()
      const reader = openSync(path, constants.O_RDWR)
      const fd = openFor(path, constants.O_WRONLY)
      closeSync(reader)
      return fd
    },
  },
  {
    what: 'a full pipe that nobody reads',
    loses: false,
    make: async () => {
      const path = makePipe()
      const filler = openFor(path, constants.O_RDWR | constants.O_NONBLOCK)
      expect(() => { for (;;) writeSync(filler, Buffer.alloc(4096)) }).toThrow('EAGAIN')
      return openFor(path, constants.O_WRONLY)
    },
  },
  { what: 'a full socket that nobody reads', loses: false, make: fullSocket },
]

async function start (mode: Mode, stdout: number | Socket): Promise<{
  program: Program
  url: string
  databasePath: string
}> {
  const { env, databasePath } = await makePlaceFor(mode, { STATS_INTERVAL_MS: '100', PORT: String(await freePort()) })
  const program = endWithTest(new Program(process.execPath, ['bin/start.ts'], env, { detached: true, stdout }))
  const url = `http://127.0.0.1:${env.PORT}`
  await until('it to be ready', async () => await readiness(url).catch(() => 0) === 200)
  return { program, url, databasePath }
}

for (const mode of modes) {
  for (const { what, loses, skip = false, make } of outputs) {
    test.skipIf(skip)(`${what} as standard output, with ${mode}: counting goes on, parts are started again, SIGTERM ` +
      'stops it all in time', { timeout: 60_000 }, async () => {
      const { program, url, databasePath } = await start(mode, await make())
      const load = new Load(url)
      await load.more(100)
      const [worker] = program.children('apps/web')
      process.kill(worker!.pid, 'SIGTERM')
      // A stop may take its whole deadline of 10 s before the next worker starts.
      await until('another worker',
        () => program.children('apps/web').filter(({ pid }) => pid !== worker!.pid).length === 2, 30_000)
      const [consumer] = program.children('apps/consumer')
      process.kill(consumer!.pid, 'SIGKILL')
      await until('another consumer', () => program.children('apps/consumer').some(({ pid }) => pid !== consumer!.pid))
      await load.more(100)
      if (loses) {
        await until('lost lines to be counted', async () => await metric(url, 'gearbox_log_lines_lost_total') > 0)
      }
      const stoppedAt = performance.now()
      program.kill('SIGTERM')
      expect(await program.exited, program.output).toBe(0)
      expect(performance.now() - stoppedAt, 'ms it took to stop').toBeLessThan(5000)
      await load.stop()
      expectExact(databasePath, load)
    })
  }
}

test('a second signal ends a parent at once whose output is stuck', async () => {
  const { program } = await start('the embedded queue', await fullSocket())
  const thaw = freeze(program.children('apps/web')[0]!.pid)
  program.kill('SIGTERM')
  const due = performance.now() + 1200
  await until('a second signal to be no echo', () => performance.now() > due)
  program.kill('SIGTERM')
  expect(await program.exitedItself).toBe(143)
  thaw()
  await until('all parts to have left', () => program.group().length === 0)
})

test('lines lost are counted from the start, with 0', async () => {
  const { url } = await start('the embedded queue', openFor('/dev/null', constants.O_WRONLY))
  const text = await (await fetch(`${url}/metrics`)).text()
  expect(text).toMatch(/^gearbox_log_lines_lost_total 0$/m)
})

test('what somebody can cause at will is summed up: thousands of warnings are a few lines that say how ' +
  'many they were', async () => {
  const place = await makePlaceFor('Redis')
  const redis = new Redis(place.env.REDIS_URL!)
  onTestFinished(() => redis.disconnect())
  const consumer = await startConsumer(place)
  const poison = 3000
  for (let i = 0; i < poison; i += 100) {
    await redis.rpush(batchesKey, ...Array.from({ length: 100 }, (_, j) => `poison ${i + j}`))
  }
  await until('all to be set aside', async () => await redis.llen(batchesKey) === 0)
  await stop(consumer)
  const warnings = consumer.logged().filter(({ level }) => level === 40)
  expect(warnings.length).toBeLessThan(40)
  expect(warnings.filter(({ leftOut }) => Number(leftOut) > 0).length, consumer.output).toBeGreaterThan(0)
})
