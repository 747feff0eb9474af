// Batches that a stopping worker leaves in a file, and the later worker that pushes them.
import { spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { encodeEntry, readEntries, readHeader } from '@gearbox/protocol/batch.ts'
import { element, producerA, producerB } from '@gearbox/test-kit/batches.ts'
import { captureLog, type CapturedLog } from '@gearbox/test-kit/captured-log.ts'
import { originLine, type Origin } from '@gearbox/queue/spool-file.ts'
import { pushSpool, writeSpool } from '../src/deliver/spool.ts'
import { MemoryQueue } from '@gearbox/queue/memory.ts'
import { setUp } from './fixtures/flusher.ts'

/** What the queue of these tests belongs to. */
const origin: Origin = { queue: 'in memory', generation: '1', database: 'of the tests' }

function batches (producer: string, ...seqs: readonly number[]): Buffer[] {
  return seqs.map((seq) => element({ producer, seq, sums: { a: seq } }))
}

function start (dir: string, queue: MemoryQueue): { log: CapturedLog, done: Promise<void>, stop: () => void } {
  const log = captureLog()
  const stop = new AbortController()
  const done = pushSpool({ dir, queue, logger: log.logger, stop: stop.signal })
  onTestFinished(async () => {
    stop.abort()
    await done
  })
  return { log, done, stop: () => stop.abort() }
}

test('a file has one batch per line, under the name of its worker, and nothing else is in its directory', async () => {
  const dir = join(temporaryDir(), 'deep', 'unsent')
  const left = batches(producerA, 3, 4)
  const path = await writeSpool(dir, producerA, origin, left)
  expect(readdirSync(dir)).toEqual([`${producerA}.jsonl`])
  expect(path).toBe(join(dir, `${producerA}.jsonl`))
  expect(readFileSync(path, 'latin1')).toBe(originLine(origin) +
    left.map((element) => `${element.toString('latin1')}\n`).join(''))
})

test('thousands of batches are written whole', async () => {
  const dir = temporaryDir()
  const left = batches(producerA, ...Array.from({ length: 3000 }, (_, i) => i + 1))
  const path = await writeSpool(dir, producerA, origin, left)
  expect(readFileSync(path).equals(Buffer.concat([Buffer.from(originLine(origin)),
    ...left.flatMap((element) => [element, Buffer.from('\n')])]))).toBe(true)
})

test('a directory that can not be written is an error', async () => {
  const file = join(temporaryDir(), 'file')
  writeFileSync(file, '')
  await expect(writeSpool(join(file, 'unsent'), producerA, origin, batches(producerA, 1))).rejects.toThrow()
})

test('a disk that gets full in the middle is an error and leaves no file that would pass for whole', () => {
  const dir = temporaryDir()
  // 64 blocks of 512 bytes are far less than what is to be written.
  const { stdout, stderr } = spawnSync('sh',
    ['-c', 'ulimit -f 64 && exec "$@"', 'sh', process.execPath, join(import.meta.dirname, 'write-spool.ts'), dir],
    { encoding: 'utf8' })
  expect({ stdout, stderr }).toEqual({ stdout: 'failed', stderr: '' })
  expect(readdirSync(dir).filter((name) => name.endsWith('.jsonl'))).toEqual([])
})

test('what was left is pushed with the same bytes, and its file goes only once all of it is stored', async () => {
  const dir = temporaryDir()
  const left = batches(producerA, 3, 4, 5)
  const path = await writeSpool(dir, producerA, origin, left)
  const queue = new MemoryQueue()
  const { done } = start(dir, queue)
  await until('the push', () => queue.list.length === 3)
  expect(Buffer.concat(queue.list).equals(Buffer.concat(left))).toBe(true)
  queue.reportProgress(producerA, { high: 5, gaps: [[4, 4]] })
  const [asked, ask] = [{ times: 0 }, queue.pollProgress.bind(queue)]
  queue.pollProgress = async (producer) => {
    asked.times++
    return await ask(producer)
  }
  await until('two more polls', () => asked.times >= 2)
  expect(existsSync(path)).toBe(true)
  queue.reportProgress(producerA, { high: 5 })
  await done
  expect(existsSync(path)).toBe(false)
  expect(queue.list).toHaveLength(3)
})

test('entries of plugins that a stop could not push are pushed at the next start, with the same bytes', async () => {
  const dir = temporaryDir()
  const { queue: away, flusher, post } = setUp()
  away.disconnect()
  const data = { text: '"once":[],"ack":"stored","timeout":1}' }
  const entry = { bytes: 1, onBatch: () => {} }
  flusher.acceptEntry({ ...entry, alone: false, encode: () => encodeEntry({ plugin: 'tickets', data }) })
  flusher.acceptEntry({ ...entry, alone: true, encode: () => encodeEntry({ plugin: 'totals', data: null }) })
  post('foo', 'stored').catch(() => {})
  const left = (await flusher.finish(AbortSignal.abort())).map(({ element }) => element)
  expect(left.map(readEntries)).toEqual([[{ plugin: 'tickets', data }], [{ plugin: 'totals', data: null }]])
  const path = await writeSpool(dir, producerA, origin, left)
  const queue = new MemoryQueue()
  const { done } = start(dir, queue)
  await until('the push', () => queue.list.length === 2)
  expect(Buffer.concat(queue.list).equals(Buffer.concat(left))).toBe(true)
  expect(queue.list.map(readHeader)).toMatchObject([{ seq: 1, entries: true }, { seq: 2, entries: true }])
  queue.reportProgress(producerA, { high: 2 })
  await done
  expect(existsSync(path)).toBe(false)
})

test('what was left is pushed again when the queue forgets it, without what is stored', async () => {
  const dir = temporaryDir()
  const path = await writeSpool(dir, producerA, origin, batches(producerA, 1, 2, 3))
  const queue = new MemoryQueue()
  const { done } = start(dir, queue)
  await until('the push', () => queue.list.length === 3)
  queue.forget()
  await until('the next push', () => queue.list.length === 3)
  queue.reportProgress(producerA, { high: 3 })
  await done
  expect(existsSync(path)).toBe(false)
})

test('a queue that fails, moves, or can not be reached is tried until it works', async () => {
  const dir = temporaryDir()
  const path = await writeSpool(dir, producerA, origin, batches(producerA, 1))
  const queue = new MemoryQueue()
  queue.disconnect()
  queue.misfortunes('fail', 'fail after', 'move')
  const { done } = start(dir, queue)
  queue.connect()
  await until('the push', () => queue.misfortunesLeft === 0 && queue.list.length > 0)
  queue.reportProgress(producerA, { high: 1 })
  await done
  expect(existsSync(path)).toBe(false)
})

test('several files of several workers are pushed one after the other', async () => {
  const dir = temporaryDir()
  await writeSpool(dir, producerA, origin, batches(producerA, 1))
  await writeSpool(dir, producerB, origin, batches(producerB, 7))
  const queue = new MemoryQueue()
  queue.reportProgress(producerA, { high: 1 })
  queue.reportProgress(producerB, { high: 7 })
  await start(dir, queue).done
  expect(readdirSync(dir)).toEqual([])
})

test('a bad line is named, its file is kept, and the others are pushed', async () => {
  const dir = temporaryDir()
  const bad = join(dir, `${producerA}.jsonl`)
  const content = `${batches(producerA, 1)[0]!.toString()}\n{"v":1,"prod`
  writeFileSync(bad, content)
  await writeSpool(dir, producerB, origin, batches(producerB, 1))
  const queue = new MemoryQueue()
  queue.reportProgress(producerB, { high: 1 })
  const { log, done } = start(dir, queue)
  await done
  expect(log.messages(50)).toEqual([expect.stringContaining('line 2')])
  expect(log.messages(50)[0]).toContain(bad)
  expect(readFileSync(bad, 'utf8')).toBe(content)
  expect(readdirSync(dir)).toEqual([`${producerA}.jsonl`])
})

test.each<[name: string, left: Origin, here: Partial<{ database: string | undefined }>]>([
  ['another database', { ...origin, database: 'of somebody else' }, {}],
  ['another queue, that had no database yet', { ...origin, generation: 'another', database: undefined }, {}],
  ['another queue, that was never reached', { queue: 'elsewhere', generation: undefined, database: undefined }, {}],
  ['another database, which the queue does not have any more', { ...origin, database: 'of somebody else' },
    { database: 'the new one' }],
])('a file of %s is not touched, and the line about it says what to do', async (_name, left, here) => {
  const dir = temporaryDir()
  const strange = await writeSpool(dir, producerA, left, batches(producerA, 1))
  const content = readFileSync(strange)
  await writeSpool(dir, producerB, { ...origin, ...here }, batches(producerB, 1))
  const queue = Object.assign(new MemoryQueue(), here)
  queue.reportProgress(producerB, { high: 1 })
  const { log, done } = start(dir, queue)
  await done
  expect(readFileSync(strange).equals(content)).toBe(true)
  expect(readdirSync(dir)).toEqual([`${producerA}.jsonl`])
  expect(queue.list.map(readHeader)).toMatchObject([{ producer: producerB }])
  expect(log.messages(40)).toEqual([expect.stringContaining(`${strange} belongs to`)])
  const [, line] = /put (\{.*\}) in the place of its first line/.exec(log.messages(40)[0]!)!

  // Who does as it says has it counted.
  writeFileSync(strange, `${line}\n${content.toString().split('\n').slice(1).join('\n')}`)
  queue.reportProgress(producerA, { high: 1 })
  await start(dir, queue).done
  expect(readdirSync(dir)).toEqual([])
})

test.each<[name: string, left: Origin]>([
  ['the database, through another queue', { queue: 'elsewhere', generation: 'another', database: 'of the tests' }],
  ['this queue, before it had a database', { ...origin, database: undefined }],
  ['this queue, before it was ever reached', { ...origin, generation: undefined, database: undefined }],
])('a file of %s is pushed', async (_name, left) => {
  const dir = temporaryDir()
  await writeSpool(dir, producerA, left, batches(producerA, 1))
  const queue = new MemoryQueue()
  queue.reportProgress(producerA, { high: 1 })
  await start(dir, queue).done
  expect(queue.list).toHaveLength(1)
  expect(readdirSync(dir)).toEqual([])
})

test('a file waits while the queue has no database, and those behind it do not', async () => {
  const dir = temporaryDir()
  await writeSpool(dir, producerA, origin, batches(producerA, 1))
  await writeSpool(dir, producerB, { ...origin, database: undefined }, batches(producerB, 1))
  const queue = new MemoryQueue()
  queue.database = undefined
  queue.reportProgress(producerB, { high: 1 })
  const { done, log } = start(dir, queue)
  await until('the other to be stored', () => readdirSync(dir).length === 1)
  expect(queue.list.map(readHeader)).toMatchObject([{ producer: producerB }])
  expect(log.messages(40)).toEqual([expect.stringContaining('waits until this queue has one')])
  queue.database = 'of the tests'
  queue.reportProgress(producerA, { high: 1 })
  await done
  expect(readdirSync(dir)).toEqual([])
})

test('a file that does not say where it belongs is pushed only where its worker is known', async () => {
  const dir = temporaryDir()
  for (const producer of [producerA, producerB]) {
    writeFileSync(join(dir, `${producer}.jsonl`), `${batches(producer, 2)[0]!.toString()}\n`)
  }
  const queue = new MemoryQueue()
  queue.reportProgress(producerB, { high: 1 })
  const { log } = start(dir, queue)
  await until('the push', () => queue.list.length > 0)
  queue.reportProgress(producerB, { high: 2 })
  await until('its end', () => readdirSync(dir).every((name) => name.startsWith(producerA)))
  expect(queue.list.map(readHeader)).toMatchObject([{ producer: producerB }])
  expect(log.messages(40)).toEqual([expect.stringMatching(/put \{.*\} before its first line/)])
})

test('what is not a regular file holds up nothing: neither the files behind it nor the end', async () => {
  const dir = temporaryDir()
  const odd = ['0-pipe', '1-directory', '2-link', '3-socket', '4-garbage', '5-endless',
    '6-newer'].map((name) => join(dir, `${name}.jsonl`))
  const [pipe, directory, link, socket, garbage, endless,
    newer] = odd as [string, string, string, string, string, string, string]
  expect(spawnSync('mkfifo', [pipe]).status).toBe(0)
  mkdirSync(directory)
  symlinkSync('/dev/zero', link)
  const server = createServer().listen(socket)
  onTestFinished(() => { server.close() })
  await once(server, 'listening')
  writeFileSync(garbage, 'not a batch\n')
  writeFileSync(endless, '')
  truncateSync(endless, 2 ** 33)
  writeFileSync(newer, '{"unsent":2}\n')
  await writeSpool(dir, producerA, origin, batches(producerA, 1))
  const queue = new MemoryQueue()
  queue.reportProgress(producerA, { high: 1 })
  const { log, done } = start(dir, queue)
  await done
  expect(readdirSync(dir).map((name) => join(dir, name)).sort()).toEqual(odd)
  expect(log.messages(50).map((message) => /can't be pushed: (.*)\. It stays/.exec(message)?.[1])).toEqual([
    'it is not a regular file', 'it is not a regular file', 'it is not a regular file', 'it is not a regular file',
    'line 1 is not a valid batch (not JSON)', 'it has a line of more than 67108864 bytes',
    'line 1 has version 2, and this Gearbox knows 1',
  ])
})

test('a file that another worker is pushing is left to it, and claimed when that one is gone', async () => {
  const dir = temporaryDir()
  const path = await writeSpool(dir, producerA, origin, batches(producerA, 1))
  const queue = new MemoryQueue()
  const first = start(dir, queue)
  await until('the push', () => queue.list.length === 1)
  const other = new MemoryQueue()
  const second = start(dir, other)
  await until('it to be visited', () => other.origins > 0)
  expect(other.list).toEqual([])
  first.stop()
  await first.done
  queue.reportProgress(producerA, { high: 1 })
  await until('the other to push it', () => other.list.length === 1)
  other.reportProgress(producerA, { high: 1 })
  await second.done
  expect(existsSync(path)).toBe(false)
  expect(readdirSync(dir)).toEqual([])
})

test('a stop does not wait for a push that is not answered', async () => {
  const dir = temporaryDir()
  const path = await writeSpool(dir, producerA, origin, batches(producerA, 1))
  const queue = new MemoryQueue()
  queue.hold()
  const { done, stop } = start(dir, queue)
  await until('the push', () => queue.attempts.length === 1)
  stop()
  await done
  expect(existsSync(path)).toBe(true)
  queue.release()
})

test('half-written files and other files are left alone, and no directory is fine', async () => {
  const dir = temporaryDir()
  writeFileSync(join(dir, `${producerA}.jsonl.tmp`), 'half')
  writeFileSync(join(dir, 'notes.txt'), 'mine')
  const queue = new MemoryQueue()
  await start(dir, queue).done
  await start(join(dir, 'none'), queue).done
  expect(readdirSync(dir).sort()).toEqual([`${producerA}.jsonl.tmp`, 'notes.txt'].sort())
  expect(queue.attempts).toEqual([])
})

test('a stop ends the waiting and keeps the file', async () => {
  const dir = temporaryDir()
  mkdirSync(join(dir, 'unsent'))
  const path = await writeSpool(join(dir, 'unsent'), producerA, origin, batches(producerA, 1))
  const queue = new MemoryQueue()
  const { done, stop } = start(join(dir, 'unsent'), queue)
  await until('the push', () => queue.list.length === 1)
  stop()
  await done
  expect(existsSync(path)).toBe(true)
})
