// Targets: the same ones from the same seed, sums that are right, both of Vegeta's formats, keys after Zipf's law.
import { existsSync, readFileSync } from 'node:fs'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { join } from 'node:path'
import { beforeAll, expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { createTargets, installTimeoutMs, readExpected, requireVegeta, run, sorted, succeed } from './kit.ts'

beforeAll(requireVegeta, installTimeoutMs)

interface JsonTarget { method: string, url: string, header: Record<string, string[]>, body: string }

function readJson (path: string): JsonTarget[] {
  return readFileSync(path, 'utf8').trimEnd().split('\n').map((line) => JSON.parse(line) as JsonTarget)
}

function bodyOf ({ body }: JsonTarget): string {
  return Buffer.from(body, 'base64').toString()
}

/** [key, value] of each pair, by nothing but splitting. */
function pairsOf (body: string): [string, number][] {
  const original = /^key=(.+)&value=(.+)$/.exec(body)
  if (original !== null) return [[original[1]!, Number(original[2])]]
  return body.split('&').map((pair) => pair.split('=')).map(([key, value]) => [key!, Number(value)])
}

function sumsOf (bodies: readonly string[]): Map<string, bigint> {
  const sums = new Map<string, bigint>()
  for (const [key, value] of bodies.flatMap(pairsOf)) sums.set(key, (sums.get(key) ?? 0n) + BigInt(value))
  return sums
}

test.each([
  ['its own key each', ['2000', '127.0.0.1']],
  ['three pairs each', ['500', '127.0.0.1', '--pairs', '3']],
  ['few keys', ['2000', '127.0.0.1', '--pairs', '2', '--keys', '50', '--zipf', '1.2']],
])('expected.json holds the sums of all targets, with %s', async (_, args) => {
  const dir = temporaryDir()
  await createTargets(...args, '--out', join(dir, 'targets.json'))
  const targets = readJson(join(dir, 'targets.json'))
  expect(targets).toHaveLength(Number(args[0]))
  expect(sorted(readExpected(join(dir, 'expected.json')))).toEqual(sorted(sumsOf(targets.map(bodyOf))))
  for (const [key, value] of targets.map(bodyOf).flatMap(pairsOf)) {
    expect(key).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
    expect(Number.isInteger(value) && value >= -10_000 && value <= 10_000).toBe(true)
  }
})

test('a seed makes the same targets again, and no seed others', async () => {
  const dir = temporaryDir()
  const make = async (name: string, ...seed: string[]): Promise<string> => {
    await createTargets('300', 'localhost:8080', '--idempotency-keys', '--keys', '20', '--out',
      join(dir, name, 'targets.json'), ...seed)
    return readFileSync(join(dir, name, 'targets.json'), 'utf8') +
      readFileSync(join(dir, name, 'expected.json'), 'utf8')
  }
  const first = await make('a', '--seed', 'one')
  expect(await make('b', '--seed', 'one')).toBe(first)
  expect(await make('c', '--seed', 'two')).not.toBe(first)
  expect(await make('d')).not.toBe(await make('e'))
})

test('targets have the port, ack level and idempotency keys asked for, and a fragment each', async () => {
  const dir = temporaryDir()
  await createTargets('3', '[::1]', '--ack', 'stored', '--idempotency-keys', '--out', join(dir, 'targets.json'))
  const targets = readJson(join(dir, 'targets.json'))
  expect(targets.map(({ method, url }) => `${method} ${url}`))
    .toEqual([0, 1, 2].map((n) => `POST http://[::1]:3333/increment?ack=stored#${n}`))
  expect(targets.map(({ header }) => header['Content-Type']))
    .toEqual(Array(3).fill(['application/x-www-form-urlencoded']))
  expect(new Set(targets.map(({ header }) => header['Idempotency-Key']?.[0])).size).toBe(3)
})

test('values reach both ends of their range, and lie evenly in it', async () => {
  const dir = temporaryDir()
  await createTargets('200', '127.0.0.1', '--pairs', '1000', '--seed', 'range', '--out', join(dir, 'targets.json'))
  const values = readJson(join(dir, 'targets.json')).map(bodyOf).flatMap(pairsOf).map(([, value]) => value)
  expect([Math.min(...values.slice(0, 100_000)), Math.max(...values.slice(0, 100_000))].map(Math.abs))
    .toEqual([10_000, 10_000])
  const tenths = Array.from({ length: 10 },
    (_, tenth) => values.filter((value) => Math.floor((value + 10_000) / 2000.1) === tenth).length)
  // 20,000 each, with a standard deviation of 134.
  for (const count of tenths) expect(Math.abs(count - 20_000)).toBeLessThan(700)
})

test.each([[1, 1.0], [1.5, 1.5], [0, 0]])('keys follow Zipf\'s law with exponent %d', async (exponent) => {
  const dir = temporaryDir()
  const [count, keys] = [50_000, 100]
  await createTargets(String(count), '127.0.0.1', '--keys', String(keys), '--zipf', String(exponent), '--seed', 'zipf',
    '--out', join(dir, 'targets.json'))
  const drawn = new Map<string, number>()
  for (const [key] of readJson(join(dir, 'targets.json')).map(bodyOf).flatMap(pairsOf)) {
    drawn.set(key, (drawn.get(key) ?? 0) + 1)
  }
  const weights = Array.from({ length: keys }, (_, rank) => (rank + 1) ** -exponent)
  const total = weights.reduce((sum, weight) => sum + weight)
  const counts = [...drawn.values()].sort((a, b) => b - a)
  // The ten most frequent, together and first by itself: within six standard deviations of what the law says.
  for (const ranks of exponent === 0 ? [keys] : [1, 10]) {
    const share = weights.slice(0, ranks).reduce((sum, weight) => sum + weight) / total
    const found = counts.slice(0, ranks).reduce((sum, n) => sum + n)
    expect(Math.abs(found - count * share)).toBeLessThanOrEqual(6 * Math.sqrt(count * share * (1 - share)))
  }
  if (exponent === 0) for (const n of counts) expect(Math.abs(n - 500)).toBeLessThan(6 * Math.sqrt(500))
})

test.each(['json', 'http'])('Vegeta sends what is in the %s format, byte for byte', async (format) => {
  const received: { url: string | undefined, headers: IncomingHttpHeaders, body: string }[] = []
  const server = createServer((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      received.push({ url: request.url, headers: request.headers, body: Buffer.concat(chunks).toString() })
      response.writeHead(204).end()
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => { server.close() })
  const dir = temporaryDir()
  const targets = join(dir, 'targets')
  await createTargets('200', `127.0.0.1:${(server.address() as AddressInfo).port}`, '--format', format, '--ack',
    'memory', '--idempotency-keys', '--pairs', '2', '--out', targets)
  await succeed('vegeta',
    ['attack', `-format=${format}`, `-targets=${targets}`, '-lazy', '-rate=0', '-max-workers=8', '-duration=0',
      `-output=${join(dir, 'results.bin')}`])
  expect(received).toHaveLength(200)
  expect(sorted(sumsOf(received.map(({ body }) => body)))).toEqual(sorted(readExpected(join(dir, 'expected.json'))))
  expect(new Set(received.map(({ url }) => url))).toEqual(new Set(['/increment?ack=memory']))
  expect(new Set(received.map(({ headers }) => headers['content-type'])))
    .toEqual(new Set(['application/x-www-form-urlencoded']))
  expect(new Set(received.map(({ headers }) => headers['idempotency-key'])).size).toBe(200)
  expect(existsSync(`${targets}.bodies`)).toBe(format === 'http')
})

test.each([
  [['0', '127.0.0.1'], 'N must be'],
  [['10'], 'HOST[:PORT] are needed'],
  [['10', 'http://127.0.0.1'], 'HOST[:PORT] must be'],
  [['10', '::1'], 'HOST[:PORT] must be'],
  [['10', '127.0.0.1/'], 'HOST[:PORT] must be'],
  [['10', '127.0.0.1/a?b'], 'HOST[:PORT] must be'],
  [['10', '127.0.0.1', '--pairs', '1001'], '--pairs must be'],
  [['10', '127.0.0.1', '--zipf', '1'], '--zipf needs --keys'],
  [['10', '127.0.0.1', '--keys', '5', '--zipf', 'steep'], '--zipf must be'],
  [['10', '127.0.0.1', '--ack', 'maybe'], '--ack must be'],
  [['10', '127.0.0.1', '--format', 'xml'], '--format must be'],
  [['10', '127.0.0.1', '--unknown'], '--unknown'],
])('%j is refused with what is wrong', async (args, message) => {
  const { code, output } = await run(process.execPath, ['vegeta/create_targets.ts', ...args])
  expect(code).toBe(1)
  expect(output).toContain(message)
})
