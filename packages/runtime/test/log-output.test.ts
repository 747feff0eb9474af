// The log's way out, on real pipes and devices that take nothing, little or everything.
import { spawnSync } from 'node:child_process'
import { closeSync, constants, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, onTestFinished, test } from 'vitest'
import { until } from '@gearbox/test-kit/until.ts'
import { LogOutput } from '../src/log/log-output.ts'

function temporaryPath (name: string): string {
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-log-'))
  onTestFinished(() => rmSync(dir, { recursive: true }))
  return join(dir, name)
}

function openFor (path: string, flags: number): number {
  const fd = openSync(path, flags, 0o600)
  onTestFinished(() => { closeSync(fd) })
  return fd
}

/** A pipe, full to the brim. @returns what reads from it all that is there, and the writing end */
function fullPipe (): { readonly read: () => string, readonly fd: number } {
  const path = temporaryPath('pipe')
  expect(spawnSync('mkfifo', [path]).status).toBe(0)
  const reader = openFor(path, constants.O_RDWR | constants.O_NONBLOCK)
  const fd = openFor(path, constants.O_WRONLY | constants.O_NONBLOCK)
  expect(() => { for (;;) writeSync(fd, Buffer.alloc(4096, 'x')) }).toThrow('EAGAIN')
  const read = (): string => {
    let text = ''
    const buffer = Buffer.alloc(65536)
    try {
      for (;;) text += buffer.toString('utf8', 0, readSync(reader, buffer))
    } catch {
      return text
    }
  }
  return { read, fd }
}

test('a pipe that is not read for a while gets every line afterwards', async () => {
  const { read, fd } = fullPipe()
  const output = new LogOutput(fd, 'never')
  const lines = Array.from({ length: 100 }, (_, i) => `line ${i}\n`)
  for (const line of lines) output.write(line)
  read()
  let text = ''
  await until('all lines', () => {
    text += read()
    return text.includes('line 99\n')
  })
  expect(text).toBe(lines.join(''))
  expect(output.lost).toBe(0)
})

test('a pipe that nobody reads costs the lines that there is no room for, each counted; what waited comes whole, ' +
  'with how many were lost', async () => {
  const { read, fd } = fullPipe()
  const output = new LogOutput(fd, 'never')
  let told = 0
  output.on((lost) => {
    told += lost
    output.write(`lost ${lost}\n`)
  }, () => {})
  const written = 10_000
  for (let i = 0; i < written; i++) output.write(`line ${i} ${'.'.repeat(50)}\n`)
  expect(output.lost).toBeGreaterThan(0)
  const flushedAt = performance.now()
  await output.flush()
  expect(performance.now() - flushedAt, 'ms a process waits for it at its end').toBeLessThan(1500)
  read()
  let text = ''
  await until('word of what was lost', () => {
    text += read()
    return text.includes('lost')
  })
  await until('the rest', () => {
    text += read()
    return text.split('\n').length - 1 === written - output.lost + 1
  })
  expect(told).toBe(output.lost)
  expect(text.split('\n').slice(0, -1).every((line) => /^(line \d+ \.{50}|lost \d+)$/.test(line))).toBe(true)
})

test.each(['file', 'for ever',
  'never'] as const)('a device without room loses each line, counted at once (%s)', async (blocking) => {
  const output = new LogOutput(openFor('/dev/full', constants.O_WRONLY), blocking)
  for (let i = 1; i <= 3; i++) {
    output.write('line\n')
    await until('it to be counted', () => output.lost === i)
  }
  await output.flush()
})

test('a reader that left costs its lines and nothing else', async () => {
  const path = temporaryPath('pipe')
  expect(spawnSync('mkfifo', [path]).status).toBe(0)
  const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK)
  const output = new LogOutput(openFor(path, constants.O_WRONLY | constants.O_NONBLOCK), 'never')
  closeSync(reader)
  output.write('line\n')
  expect(output.lost).toBe(1)
})

test('a file gets all lines in their order, those of the last moment too', async () => {
  const path = temporaryPath('log')
  const output = new LogOutput(openFor(path, constants.O_WRONLY | constants.O_CREAT), 'file')
  const lines = Array.from({ length: 100 }, (_, i) => `line ${i}\n`)
  for (const line of lines) output.write(line)
  await output.flush()
  expect(readFileSync(path, 'utf8')).toBe(lines.join(''))
})

test('a line that is longer than all that may wait is still written where there is room', async () => {
  const path = temporaryPath('log')
  const output = new LogOutput(openFor(path, constants.O_WRONLY | constants.O_CREAT), 'file')
  const line = `${'x'.repeat(200_000)}\n`
  output.write(line)
  await output.flush()
  expect(readFileSync(path, 'utf8')).toBe(line)
})
