// Batches that a stopping worker leaves in a file, and the later worker that pushes them.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '../../../test/fixtures/temporary.ts'
import { until } from '../../../test/fixtures/until.ts'
import { element, producerA, producerB } from '../../../packages/queue/test/batches.ts'
import { captureLog, type CapturedLog } from '../../../packages/queue/test/captured-log.ts'
import { pushUnsent, writeUnsent } from '../src/unsent.ts'
import { MemoryQueue } from './memory-queue.ts'

function batches (producer: string, ...seqs: readonly number[]): Buffer[] {
  return seqs.map((seq) => element({ producer, seq, sums: { a: seq } }))
}

function start (dir: string, queue: MemoryQueue): { log: CapturedLog, done: Promise<void>, stop: () => void } {
  const log = captureLog()
  const stop = new AbortController()
  const done = pushUnsent(dir, queue, log.logger, stop.signal)
  onTestFinished(async () => {
    stop.abort()
    await done
  })
  return { log, done, stop: () => stop.abort() }
}

test('a file has one batch a line, under the name of its worker, and nothing beside it', async () => {
  const dir = join(temporaryDir(), 'deep', 'unsent')
  const left = batches(producerA, 3, 4)
  const path = await writeUnsent(dir, producerA, left)
  expect(readdirSync(dir)).toEqual([`${producerA}.jsonl`])
  expect(path).toBe(join(dir, `${producerA}.jsonl`))
  expect(readFileSync(path, 'latin1')).toBe(left.map((element) => `${element.toString('latin1')}\n`).join(''))
})

test('thousands of batches are written whole', async () => {
  const dir = temporaryDir()
  const left = batches(producerA, ...Array.from({ length: 3000 }, (_, i) => i + 1))
  const path = await writeUnsent(dir, producerA, left)
  expect(readFileSync(path).equals(Buffer.concat(left.flatMap((element) => [element, Buffer.from('\n')])))).toBe(true)
})

test('a directory that can not be written is an error', async () => {
  const file = join(temporaryDir(), 'file')
  writeFileSync(file, '')
  await expect(writeUnsent(join(file, 'unsent'), producerA, batches(producerA, 1))).rejects.toThrow()
})

test('a disk that gets full in the middle is an error and leaves no file that would pass for whole', () => {
  const dir = temporaryDir()
  // 64 blocks of 512 bytes are far less than what is to be written.
  const { stdout, stderr } = spawnSync('sh', ['-c', 'ulimit -f 64 && exec "$@"', 'sh', process.execPath, join(import.meta.dirname, 'write-unsent.ts'), dir], { encoding: 'utf8' })
  expect({ stdout, stderr }).toEqual({ stdout: 'failed', stderr: '' })
  expect(readdirSync(dir).filter((name) => name.endsWith('.jsonl'))).toEqual([])
})

test('what was left is pushed with the same bytes, and its file goes only once all of it is stored', async () => {
  const dir = temporaryDir()
  const left = batches(producerA, 3, 4, 5)
  const path = await writeUnsent(dir, producerA, left)
  const queue = new MemoryQueue()
  const { done } = start(dir, queue)
  await until('the push', () => queue.list.length === 3)
  expect(Buffer.concat(queue.list).equals(Buffer.concat(left))).toBe(true)
  queue.tell(producerA, { high: 5, gaps: [[4, 4]] })
  const [asked, ask] = [{ times: 0 }, queue.stored.bind(queue)]
  queue.stored = async (producer) => {
    asked.times++
    return await ask(producer)
  }
  await until('two more looks', () => asked.times >= 2)
  expect(existsSync(path)).toBe(true)
  queue.tell(producerA, { high: 5 })
  await done
  expect(existsSync(path)).toBe(false)
  expect(queue.list).toHaveLength(3)
})

test('it is pushed again when the queue forgets it, without what is stored', async () => {
  const dir = temporaryDir()
  const path = await writeUnsent(dir, producerA, batches(producerA, 1, 2, 3))
  const queue = new MemoryQueue()
  const { done } = start(dir, queue)
  await until('the push', () => queue.list.length === 3)
  queue.forget()
  await until('the next push', () => queue.list.length === 3)
  queue.tell(producerA, { high: 3 })
  await done
  expect(existsSync(path)).toBe(false)
})

test('a queue that fails, moves, or can not be reached is tried until it works', async () => {
  const dir = temporaryDir()
  const path = await writeUnsent(dir, producerA, batches(producerA, 1))
  const queue = new MemoryQueue()
  queue.disconnect()
  queue.misfortunes('fail', 'fail after', 'move')
  const { done } = start(dir, queue)
  queue.connect()
  await until('the push', () => queue.misfortunesLeft === 0 && queue.list.length > 0)
  queue.tell(producerA, { high: 1 })
  await done
  expect(existsSync(path)).toBe(false)
})

test('several files of several workers are pushed one after the other', async () => {
  const dir = temporaryDir()
  await writeUnsent(dir, producerA, batches(producerA, 1))
  await writeUnsent(dir, producerB, batches(producerB, 7))
  const queue = new MemoryQueue()
  queue.tell(producerA, { high: 1 })
  queue.tell(producerB, { high: 7 })
  await start(dir, queue).done
  expect(readdirSync(dir)).toEqual([])
})

test('a bad line is named, its file is kept, and the others are pushed', async () => {
  const dir = temporaryDir()
  const bad = join(dir, `${producerA}.jsonl`)
  const content = `${batches(producerA, 1)[0]!.toString()}\n{"v":1,"prod`
  writeFileSync(bad, content)
  await writeUnsent(dir, producerB, batches(producerB, 1))
  const queue = new MemoryQueue()
  queue.tell(producerB, { high: 1 })
  const { log, done } = start(dir, queue)
  await done
  expect(log.messages(50)).toEqual([expect.stringContaining('line 2')])
  expect(log.messages(50)[0]).toContain(bad)
  expect(readFileSync(bad, 'utf8')).toBe(content)
  expect(readdirSync(dir)).toEqual([`${producerA}.jsonl`])
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
  const path = await writeUnsent(join(dir, 'unsent'), producerA, batches(producerA, 1))
  const queue = new MemoryQueue()
  const { done, stop } = start(join(dir, 'unsent'), queue)
  await until('the push', () => queue.list.length === 1)
  stop()
  await done
  expect(existsSync(path)).toBe(true)
})
