// The check of the maths: right totals pass, each kind of wrong one is found, and no reply means either.
import { copyFileSync, writeFileSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import { connect, createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { beforeAll, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { readTotals } from '@gearbox/test-kit/gearbox.ts'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import {
  createTargets, installTimeoutMs, readExpected, requireVegeta, sorted, startProduct, runWith, succeed, verify,
  type Ended, type Product,
} from './kit.ts'

beforeAll(requireVegeta, installTimeoutMs)

const once = ['-rate=0', '-max-workers=16', '-lazy', '-duration=0']

/** Attacks the product with the targets in its directory. @returns the results' path */
async function attack (dir: string, options: readonly string[], name = 'results.bin'): Promise<string> {
  const results = join(dir, name)
  await succeed('vegeta',
    ['attack', '-format=json', `-targets=${join(dir, 'targets.json')}`, `-output=${results}`, ...options])
  return results
}

/** verify's arguments for a product that still runs. */
function of (product: Product, ...results: readonly string[]): string[] {
  return [...results, product.databasePath, '--targets', join(product.dir, 'targets.json'), '--url', product.url,
    '--quiet-ms', '100']
}

/**
 * A product that was attacked with 300 targets of 40 keys, and stopped: a database at rest, with what verify takes for
 * it.
 */
async function attacked (): Promise<{ databasePath: string, args: string[], totals: Map<string, bigint> }> {
  const product = await startProduct()
  await createTargets('300', product.host, '--pairs', '2', '--keys', '40', '--seed', 'verify', '--out',
    join(product.dir, 'targets.json'))
  const results = await attack(product.dir, once)
  product.kill('SIGTERM')
  expect(await product.exited).toBe(0)
  const args = [results, product.databasePath, '--targets', join(product.dir, 'targets.json'), '--quiet-ms', '0']
  return { databasePath: product.databasePath, args, totals: readTotals(product.databasePath) }
}

function alter (databasePath: string, sql: string, ...parameters: unknown[]): void {
  const db = new Database(databasePath)
  db.prepare(sql).run(...parameters)
  db.close()
}

test('totals after each target was sent once are those of expected.json', async () => {
  const product = await startProduct()
  await createTargets('500', product.host, '--keys', '100', '--out', join(product.dir, 'targets.json'))
  const results = await attack(product.dir, once)
  const { code, output } = await verify(...of(product, results))
  const [requests, keys] = output.split('\n')
  expect(requests).toBe('500 requests (204: 500): 500 counted, 0 not counted, 0 may have been')
  expect(keys).toMatch(/^\d+ keys: every total is exact$/)
  expect(code).toBe(0)
  expect(sorted(readTotals(product.databasePath))).toEqual(sorted(readExpected(join(product.dir, 'expected.json'))))
})

test('a service behind a BASE_PATH that asks for keys is attacked and verified with its own variables', async () => {
  const API_KEYS = 'count:c0unt,read:r3ad'
  const product = await startProduct({ API_KEYS, BASE_PATH: '/gear/box' })
  expect(product.url).toMatch(/\/gear\/box$/)
  await createTargets('100', `${product.host}/gear/box`, '--out', join(product.dir, 'targets.json'))
  const results = await attack(product.dir, [...once, '-header=Authorization: Bearer c0unt'])
  const verifyWith = async (API_KEYS: string): Promise<Ended> =>
    await runWith({ API_KEYS }, process.execPath, ['vegeta/verify.ts', ...of(product, results)])
  const { code, output } = await verifyWith(API_KEYS)
  expect(output).toMatch(/^100 requests \(204: 100\): 100 counted.*\n100 keys: every total is exact\n$/)
  expect(code).toBe(0)
  const lacking = await verifyWith('count:c0unt')
  expect(lacking.output).toMatch(/metrics can't be read: 401 /)
  expect(lacking.code).toBe(2)
  const wrong = await verifyWith('count:')
  expect(wrong.output).toMatch(/^gearbox: API_KEYS must be/)
  expect(wrong.code).toBe(2)
})

test('each kind of planted fault is found and named, and only it', async () => {
  const { databasePath, args, totals } = await attacked()
  expect((await verify(...args)).code).toBe(0)
  const [[key, total]] = sorted(totals).filter(([, value]) => value !== 0n) as [[string, bigint]]
  const faults = [
    {
      what: 'an increment lost',
      sql: 'UPDATE numbers SET value = value - 1 WHERE key = ?',
      parameters: [key],
      says: `"${key}": expected ${total}, found ${total - 1n} (-1)`,
    },
    {
      what: 'all of a key counted twice',
      sql: 'UPDATE numbers SET value = value * 2 WHERE key = ?',
      parameters: [key],
      says: `"${key}": expected ${total}, found ${2n * total} (${total > 0n ? '+' : ''}${total})`,
    },
    {
      what: 'a row lost',
      sql: 'DELETE FROM numbers WHERE key = ?',
      parameters: [key],
      says: `"${key}": expected ${total}, found no row`,
    },
    {
      what: 'a row too many',
      sql: 'INSERT INTO numbers(key, value) VALUES (?, 9223372036854775807)',
      parameters: ['stray'],
      says: '"stray": nothing was sent, found 9223372036854775807',
    },
  ]
  const dir = temporaryDir()
  for (const { what, sql, parameters, says } of faults) {
    const copy = join(dir, `${what}.db`)
    copyFileSync(databasePath, copy)
    alter(copy, sql, ...parameters)
    const { code, output } = await verify(args[0]!, copy, ...args.slice(2))
    expect(output, what).toContain(`1 total differs\n  ${says}\n`)
    expect(code, what).toBe(1)
  }
})

test('many differences are listed up to a number', async () => {
  const { databasePath, args, totals } = await attacked()
  alter(databasePath, 'UPDATE numbers SET value = value + 1')
  const { code, output } = await verify(...args, '--show', '3')
  expect(output).toContain(`${totals.size} totals differ`)
  expect(output.match(/expected/g)).toHaveLength(3)
  expect(output).toContain(`… and ${totals.size - 3} more`)
  expect(code).toBe(1)
})

test('verifying writes nothing into the database', async () => {
  const { databasePath, args } = await attacked()
  const versionOf = (db: Database.Database): unknown => db.pragma('data_version', { simple: true })
  const db = new Database(databasePath, { readonly: true })
  onTestFinished(() => { db.close() })
  const before = versionOf(db)
  expect((await verify(...args)).code).toBe(0)
  expect(versionOf(db)).toBe(before)
})

test('with idempotency keys, targets that were sent many times count once, over two attacks', async () => {
  const product = await startProduct()
  await createTargets('50', product.host, '--idempotency-keys', '--keys', '10', '--out',
    join(product.dir, 'targets.json'))
  const first = await attack(product.dir, ['-rate=400', '-duration=1s'])
  const second = await attack(product.dir, ['-rate=300', '-duration=1s'], 'second.bin')
  const { code, output } = await verify(...of(product, first, second))
  // On a busy machine Vegeta's time is up before its last request.
  const [, sent] =
    /^(\d+) requests \(204: \1\): \1 counted, 0 not counted, 0 may have been\n\d+ keys: every total is exact\n$/.exec(
      output
    ) ?? []
  expect(Number(sent), output).toBeGreaterThan(600)
  expect(code).toBe(0)
  expect(sorted(readTotals(product.databasePath))).toEqual(sorted(readExpected(join(product.dir, 'expected.json'))))
})

test.each(['a saved baseline',
  'a copy of the database'])('a database that was not empty is verified against %s', async (kind) => {
  const product = await startProduct()
  await createTargets('200', product.host, '--keys', '20', '--out', join(product.dir, 'targets.json'))
  const known = [...readExpected(join(product.dir, 'expected.json')).keys()][0]!
  await post(product.url, `other=9007199254740993&${known}=5`, {})
  const baseline = join(product.dir, 'baseline')
  if (kind === 'a saved baseline') {
    const saved = await verify('--save-baseline', baseline, product.databasePath, '--url', product.url, '--quiet-ms',
      '100')
    expect(saved).toEqual({ code: 0, output: `2 totals: ${baseline}\n` })
  } else {
    alter(product.databasePath, 'VACUUM INTO ?', baseline)
  }
  const results = await attack(product.dir, once)
  const without = await verify(...of(product, results))
  expect(without.output).toContain('2 totals differ')
  expect(without.output).toContain('1 of them were never sent: was the database empty before the attack? If not, ' +
    '--save-baseline first\n')
  expect(without.code).toBe(1)
  const { code, output } = await verify(...of(product, results), '--baseline', baseline)
  expect(output).toContain('every total is exact')
  expect(code).toBe(0)
  alter(product.databasePath, "DELETE FROM numbers WHERE key = 'other'")
  expect(await verify(...of(product, results), '--baseline', baseline))
    .toMatchObject({ code: 1, output: expect.stringContaining('"other": expected 9007199254740993, found no row') })
})

test.each(['the embedded queue', 'Redis'])('it waits until what was accepted is stored, with %s', async (queue) => {
  const redis = queue === 'Redis' ? await RedisServer.start() : undefined
  onTestFinished(async () => { await redis?.stop() })
  const product = await startProduct({ REDIS_URL: redis?.url, FLUSH_INTERVAL_MS: '1500', COMMIT_INTERVAL_MS: '500' })
  await createTargets('400', product.host, '--ack', 'memory', '--out', join(product.dir, 'targets.json'))
  const results = await attack(product.dir, once)
  const { code, output } = await verify(...of(product, results))
  expect(output).toContain('(202: 400): 400 counted')
  expect(output).toContain('400 keys: every total is exact')
  expect(code).toBe(0)
})

test('requests that were refused are not counted', async () => {
  const product = await startProduct({ BODY_PAIRS_MAX: '2' })
  const out = join(product.dir, 'targets.json')
  const target = (n: number, body: string): string => JSON.stringify({
    method: 'POST',
    url: `${product.url}/increment#${n}`,
    header:
      { 'Content-Type': ['application/x-www-form-urlencoded'] },
    body: Buffer.from(body).toString('base64'),
  })
  writeFileSync(out,
    [target(0, 'a=1'), target(1, 'a=10&b=10&c=10'), target(2, 'a=100&a=x'), target(3, 'key=a%20%C3%A9&value=-007'),
      ''].join('\n'))
  const results = await attack(product.dir, ['-rate=40', '-duration=1s'])
  const { code, output } = await verify(...of(product, results))
  expect(output).toContain('2 keys: every total is exact')
  expect(code).toBe(0)
  expect(readTotals(product.databasePath)).toEqual(new Map([['a', 10n], ['a é', -70n]]))
})

test('a request without a reply may have been counted or not, and a total that neither explains is found', async () => {
  const product = await startProduct()
  // Cuts every ninth connection's reply off after the product gave it, and every tenth's before the product gets
  // anything.
  let connections = 0
  const proxy = createServer((client) => {
    const number = ++connections
    client.on('error', () => {})
    if (number % 10 === 0) {
      client.once('data', () => client.destroy())
      return
    }
    const upstream = connect(Number(new URL(product.url).port), '127.0.0.1')
    upstream.on('error', () => {})
    client.pipe(upstream)
    upstream.on('data', (chunk) => number % 9 === 0 ? client.destroy() : client.write(chunk))
    client.on('close', () => upstream.destroy())
    upstream.on('close', () => client.destroy())
  })
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => { proxy.close() })

  await createTargets('300', `127.0.0.1:${(proxy.address() as AddressInfo).port}`, '--keys', '60', '--zipf', '0',
    '--seed', 'cut', '--out', join(product.dir, 'targets.json'))
  const results = await attack(product.dir, [...once, '-keepalive=false'])
  const { code, output } = await verify(...of(product, results))
  expect(output)
    .toMatch(/300 requests \(204: 2\d\d, no reply: \d\d\): 2\d\d counted, 0 not counted, \d\d may have been\n/)
  expect(output).toMatch(/\n60 keys: every total is right\n\d+ of them could be one of several/)
  expect(code).toBe(0)

  // No sum of values up to 10,000 gets there.
  alter(product.databasePath, 'UPDATE numbers SET value = value + 10000000')
  const altered = await verify(...of(product, results), '--show', '100')
  // A key of which nothing at all was counted has no row to alter.
  expect(altered.output).toMatch(/(5\d|60) totals differ/)
  expect(altered.output).toMatch(/expected -?\d+ or -?\d+, found/)
  expect(altered.code).toBe(1)
})

test('connections that can not be made count nothing', async () => {
  const product = await startProduct()
  await createTargets('20', product.host, '--out', join(product.dir, 'targets.json'))
  product.kill('SIGTERM')
  expect(await product.exited).toBe(0)
  const results = await attack(product.dir, once)
  const { code, output } = await verify(results, product.databasePath, '--targets', join(product.dir, 'targets.json'),
    '--quiet-ms', '0')
  expect(output).toBe('20 requests (no reply: 20): 0 counted, 20 not counted, 0 may have been\n0 keys: every total ' +
    'is exact\n')
  expect(code).toBe(0)
})

test("a result's URL names the target that was sent, however many workers race for targets", async () => {
  const bodies = new Map<string, string>()
  const server = createHttpServer((request, response) => {
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      // Vegeta sends a request's sequence number along; it is in the result, too.
      bodies.set(String(request.headers['x-vegeta-seq']), Buffer.concat(chunks).toString())
      response.writeHead(204).end()
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => { server.close() })
  const dir = temporaryDir()
  const { port } = server.address() as AddressInfo
  const target = (n: number): string =>
    JSON.stringify({
      method: 'POST',
      url: `http://127.0.0.1:${port}/increment#${n}`,
      body: Buffer.from(`target ${n}`).toString('base64'),
    })
  writeFileSync(join(dir, 'targets.json'), Array.from({ length: 1000 }, (_, n) => `${target(n)}\n`).join(''))
  const results = await attack(dir, ['-rate=0', '-max-workers=64', '-duration=1s'])
  const lines = (await succeed('vegeta', ['encode', '--to', 'json', results])).trimEnd().split('\n')
  expect(lines.length).toBeGreaterThan(1000)
  for (const line of lines) {
    const { seq, url } = JSON.parse(line) as { seq: number, url: string }
    expect(`target ${new URL(url).hash.slice(1)}`).toBe(bodies.get(String(seq)))
  }
})

test('what can not be told is refused with exit code 2 and the reason', async () => {
  const { args: [results, database], databasePath } = await attacked()
  const dir = temporaryDir()
  const targets = (name: string, text: string): string => {
    const path = join(dir, name)
    writeFileSync(path, text)
    return path
  }
  const attempt = async (...args: string[]): Promise<string> => {
    const { code, output } = await verify(...args, '--quiet-ms', '0')
    expect(code, output).toBe(2)
    return output
  }
  expect(await attempt(results!, database!, '--targets', join(dir, 'none'))).toMatch(/targets can't be read: ENOENT/)
  expect(await attempt(results!, database!, '--targets', targets('other', 'POST http://127.0.0.1:1/increment\n')))
    .toMatch(/results of POST .*, which is not in .*other/)
  expect(await attempt(results!, join(dir, 'no.db'))).toMatch(/no totals can be read from .*no\.db/)
  expect(await attempt(join(dir, 'no.bin'), databasePath)).toMatch(/vegeta can't read .*no\.bin/)
  expect(await attempt(targets('empty.bin', ''), databasePath)).toMatch(/vegeta can't read|no results/)
  expect(await attempt('--save-baseline', join(dir, 'baseline'), database!, '--url', 'http://127.0.0.1:1'))
    .toMatch(/metrics can't be read/)
  expect(await attempt(results!)).toMatch(/are needed/)

  const ambiguous = targets('ambiguous.json', ['a=1', 'b=1'].map((body) =>
    `${JSON.stringify({
      method: 'POST', url: 'http://127.0.0.1:9/increment', body: Buffer.from(body).toString('base64'),
    })}\n`).join(''))
  const cut = join(dir, 'ambiguous.bin')
  await succeed('vegeta',
    ['attack', '-format=json', `-targets=${ambiguous}`, '-rate=20', '-duration=100ms', `-output=${cut}`])
  expect(await attempt(cut, database!, '--targets', ambiguous)).toMatch(/lines 1 and 2 have the same URL and differ/)

  const lacking = join(dir, 'lacking.json')
  const lines = (await succeed('vegeta', ['encode', '--to', 'json', results!])).trimEnd().split('\n')
  writeFileSync(lacking, `${lines.filter((_, n) => n !== 7).join('\n')}\n`)
  expect(await attempt(lacking, database!)).toMatch(/results of at least 3\d\d requests: Vegeta was killed/)
})
