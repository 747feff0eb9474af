// A Redis that can't be used, as whoever runs Gearbox meets it: from each process one line that says what to do,
// however often it tries again, and never a part of a secret. And what it needs to be usable: the rights that
// docs/redis.md lists, no more.
import { spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { createServer as createHttpServer } from 'node:http'
import { createServer, type AddressInfo, type Server } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { Redis } from 'ioredis'
import { describe, expect, onTestFinished, test } from 'vitest'
import { Store } from '@gearbox/consumer/store/store.ts'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, listening, Program, readTotals, root, startAll, startCommand } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

const webModule = 'apps/web/src/main.ts'
const consumerModule = 'apps/consumer/src/main.ts'

/** Percent-encoding changes most of it. */
const secret = 's3cret/w@rd#1%'
const encoded = encodeURIComponent(secret)

/** Pieces of it that must be nowhere. */
const traces = ['s3cret', 'w@rd', 'w%40rd', 'rd#1', 'rd%231']

async function startRedis (settings: readonly string[] = []): Promise<RedisServer> {
  const redis = await RedisServer.start(settings)
  onTestFinished(async () => { await redis.stop() })
  return redis
}

/** An administrator's connection to a Redis with or without a password. */
function adminOf (redis: RedisServer, password?: string): Redis {
  const client = new Redis({ port: redis.port, host: '127.0.0.1', ...(password === undefined ? {} : { password }) })
  client.on('error', () => {})
  onTestFinished(() => client.disconnect())
  return client
}

async function listen (server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => { server.close() })
  return (server.address() as AddressInfo).port
}

/** A server that speaks just enough of Redis's protocol to answer each command with the same text. */
async function pretend (answer: (command: string) => string): Promise<number> {
  return await listen(createServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', (chunk) => {
      for (const [, name] of String(chunk).matchAll(/\*\d+\r\n\$\d+\r\n(\w+)\r\n/g)) {
        socket.write(answer(name!.toUpperCase()))
      }
    })
  }))
}

/** Lines that a person reads: warnings and worse of the log, and what is printed next to it. */
function complaints ({ output }: Program): string[] {
  return output.split('\n').flatMap((line) => {
    if (!line.startsWith('{')) return line === '' ? [] : [line]
    const { level, msg }: { level: number, msg: string } = JSON.parse(line)
    return level >= 40 ? [msg] : []
  })
}

/** How often it has found Redis unusable; each is logged at level debug. */
function attempts ({ output }: Program): number {
  return output.match(/no connection to Redis: /g)?.length ?? 0
}

interface Case {
  readonly what: string
  readonly says: RegExp
  /** @returns REDIS_URL */
  readonly prepare: () => Promise<string>
}

const cases: readonly Case[] = [
  { what: 'a missing password', says: /it wants a password/, prepare: async () => (await startSecured()).url },
  {
    what: 'a wrong password',
    says: /password in REDIS_URL is wrong.*percent-encode/,
    prepare: async () => `redis://:${encoded}x@127.0.0.1:${(await startSecured()).port}`,
  },
  {
    what: 'a database that it does not have',
    says: /no database of the number/,
    prepare: async () => `redis://:${encoded}@127.0.0.1:${(await startSecured()).port}/99`,
  },
  {
    what: 'a port of HTTP',
    says: /not Redis: correct the port/,
    prepare: async () =>
      `redis://:${encoded}@127.0.0.1:${await listen(createHttpServer((_request, response) => response.end('hello')))}`,
  },
  {
    what: 'a port that wants TLS',
    says: /rediss:\/\//,
    prepare: async () => `redis://:${encoded}@127.0.0.1:${await startTls()}`,
  },
  {
    what: 'a certificate that nobody knows',
    says: /certificate is not accepted.*NODE_EXTRA_CA_CERTS/,
    prepare: async () => `rediss://:${encoded}@127.0.0.1:${await startTls()}`,
  },
  {
    what: 'a port without TLS',
    says: /no TLS is spoken there/,
    prepare: async () => `rediss://:${encoded}@127.0.0.1:${(await startSecured()).port}`,
  },
  {
    what: 'nothing that listens',
    says: /nothing listens there/,
    prepare: async () => `redis://:${encoded}@localhost:${await freePort()}`,
  },
  {
    what: 'a name that leads nowhere',
    says: /no host of that name|can not be looked up/,
    prepare: async () => `redis://:${encoded}@nowhere.invalid`,
  },
  {
    what: 'a socket that is not there',
    says: /no such socket/,
    prepare: async () => `redis://:${encoded}@${join(temporaryDir(), 'redis.sock')}`,
  },
  {
    what: 'a Redis that is too old, and knows no users',
    says: /it is Redis 5\.0\.14, and 6\.0 or newer is needed|refused the login|knows no users/,
    prepare: async () => `redis://user:${encoded}@127.0.0.1:${await pretend((command) => command === 'HELLO'
      ? `-ERR unknown command \`HELLO\`, with args beginning with: \`3\`, \`AUTH\`, \`user\`, \`${secret}\`, \r\n`
      : command === 'AUTH' ? "-ERR wrong number of arguments for 'auth' command\r\n" : '+OK\r\n')}`,
  },
  {
    what: 'a Redis that is too old',
    says: /it is Redis 5\.0\.14, and 6\.0 or newer is needed/,
    prepare: async () => {
      const replies = new Map([
        ['HELLO', '-ERR unknown command `HELLO`\r\n'], ['INFO', '$22\r\nredis_version:5.0.14\r\n\r\n'],
      ])
      return `redis://127.0.0.1:${await pretend((command) => replies.get(command) ?? '+OK\r\n')}`
    },
  },
  {
    what: 'a Redis that loads its data',
    says: /still loading/,
    prepare: async () =>
      `redis://127.0.0.1:${await pretend(() => '-LOADING Redis is loading the dataset in memory\r\n')}`,
  },
  {
    what: 'protected mode',
    says: /protected mode/,
    prepare: async () =>
      `redis://127.0.0.1:${await pretend(() => '-DENIED Redis is running in protected mode because it is, and this ' +
        'goes on for long\r\n')}`,
  },
  {
    what: 'a node of a cluster',
    says: /node of a Redis Cluster/,
    prepare: async () => (await startRedis(['--cluster-enabled', 'yes'])).url,
  },
]

async function startSecured (): Promise<RedisServer> {
  const redis = await startRedis()
  await adminOf(redis).config('SET', 'requirepass', secret)
  return redis
}

async function startTls (): Promise<number> {
  const dir = temporaryDir()
  const { status, stderr } = spawnSync('openssl',
    ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
      '-keyout', join(dir, 'key.pem'), '-out', join(dir, 'cert.pem'), '-subj', '/CN=localhost', '-addext',
      'subjectAltName=IP:127.0.0.1'], { encoding: 'utf8' })
  expect(status, stderr).toBe(0)
  const port = await freePort()
  await startRedis(['--tls-port', String(port), '--tls-cert-file', join(dir, 'cert.pem'), '--tls-key-file',
    join(dir, 'key.pem'), '--tls-ca-cert-file', join(dir, 'cert.pem'), '--tls-auth-clients', 'no'])
  return port
}

const noOpenssl = findProgram('openssl') === undefined

describe('one line from each process, whatever is wrong', () => {
  test.skipIf(noOpenssl).each(cases)('$what', { timeout: 60_000 }, async ({ says, prepare }) => {
    const env = {
      REDIS_URL: await prepare(),
      PORT: '0',
      DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
      LOG_LEVEL: 'trace',
    }
    const start = (...args: readonly string[]): Program =>
      endWithTest(new Program(process.execPath, args, env, { detached: true }))
    const [all, web, consumer] = [start('bin/start.ts'), start(webModule), start(consumerModule)]
    // It is there at the start or there is no start.
    expect(await all.exited).toBe(1)
    expect(complaints(all).filter((line) => says.test(line)), all.output).toHaveLength(1)
    expect(complaints(all)).toHaveLength(1)
    expect(all.output).toMatch(/^gearbox: Redis at rediss?:\/\/[^ ]* can't be used: /m)
    // These wait for it, and try again and again.
    for (const program of [web, consumer]) {
      await until(`a line of ${program.output}`, () => complaints(program).length > 0)
      // What fails on a connection that stays open leaves no trace of how often it is tried: twice a second.
      const since = performance.now()
      await until('further attempts', () => attempts(program) >= 6 || performance.now() - since > 4000, 30_000)
      expect(complaints(program), program.output).toEqual([expect.stringMatching(says)])
      program.kill('SIGTERM')
      expect(await program.exited, program.output).toBe(0)
    }
    for (const { output } of [all, web, consumer]) {
      expect(traces.filter((trace) => output.includes(trace)), output).toEqual([])
    }
  })
})

test('a password that is not percent-encoded is refused at once by every program, and not repeated', async () => {
  for (const args of [['start'], ['web'], ['consumer'], ['verify'], ['rebind', 'numbers.db']]) {
    for (const url of [`redis://user:12/${secret}@127.0.0.1`, `redis://:${secret}@127.0.0.1`]) {
      const program = endWithTest(new Program(process.execPath, ['bin/gearbox.ts', ...args],
        { REDIS_URL: url, DATABASE_PATH: join(temporaryDir(), 'numbers.db') }))
      expect(await program.exited).toBe(78)
      expect(program.output).toMatch(/REDIS_URL must .*percent-encode/)
      expect(traces.filter((trace) => program.output.includes(trace))).toEqual([])
    }
  }
})

test('a Redis that gets another password while Gearbox runs: said once, and over when it is right again', async () => {
  const redis = await startSecured()
  const env = {
    REDIS_URL: `redis://:${encoded}@127.0.0.1:${redis.port}`,
    DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
    WEB_WORKERS: '1',
    LOG_LEVEL: 'debug',
  }
  const gearbox = endWithTest(await startAll(env, { detached: true }))
  expect((await post(`${gearbox.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
  const admin = adminOf(redis, secret)
  await admin.config('SET', 'requirepass', 'another')
  await admin.call('CLIENT', 'KILL', 'TYPE', 'normal')
  await gearbox.printed(/"part":"consumer".*the queue is out of reach.*password in REDIS_URL is wrong/)
  await gearbox.printed(/"part":"web 1".*queue unavailable \(.*password in REDIS_URL is wrong/)
  const readyz = await fetch(`${gearbox.url}/readyz`)
  expect([readyz.status, await readyz.text()]).toEqual([503, expect.stringContaining('password in REDIS_URL is wrong')])
  const seen = attempts(gearbox)
  await until('further attempts', () => attempts(gearbox) > seen + 8, 30_000)
  expect(complaints(gearbox).filter((line) => line.includes('REDIS_URL is wrong')).length, gearbox.output).toBe(2)
  await adminOf(redis, 'another').config('SET', 'requirepass', secret)
  await until('it to count again',
    async () => (await post(`${gearbox.url}/increment?ack=stored`, 'foo=1')).status === 204)
  expect(traces.filter((trace) => gearbox.output.includes(trace))).toEqual([])
  gearbox.kill('SIGTERM')
  expect(await gearbox.exited).toBe(0)
})

test.each([['', ''],
  ['?db=3', ':s3cret%2F@']])('a Redis on a Unix socket%s counts like any other', async (query, login) => {
  const path = join(temporaryDir(), 'redis.sock')
  const redis = await startRedis(['--unixsocket', path])
  if (login !== '') await adminOf(redis).config('SET', 'requirepass', 's3cret/')
  const databasePath = join(temporaryDir(), 'numbers.db')
  const gearbox =
    endWithTest(await startAll({ REDIS_URL: `redis://${login}${path}${query}`, DATABASE_PATH: databasePath }))
  expect(gearbox.output).toContain(`Redis at redis://${path}${query})`)
  expect((await post(`${gearbox.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
  expect(readTotals(databasePath).get('foo')).toBe(1n)
  gearbox.kill('SIGTERM')
  expect(await gearbox.exited).toBe(0)
})

describe('a user of Redis', () => {
  const [, rights] = /ACL SETUSER gearbox on >PASSWORD (.*)$/m.exec(readFileSync(join(root, 'docs/redis.md'),
    'utf8')) ?? []
  const granted = (rights ?? '').split(' ')

  async function setUser (redis: RedisServer, rules: readonly string[]): Promise<string> {
    await adminOf(redis).call('ACL', 'SETUSER', 'gearbox', 'reset', 'on', `>${secret}`, ...rules)
    return `redis://gearbox:${encoded}@127.0.0.1:${redis.port}/1`
  }

  test('with exactly the rights that are documented can do everything, and uses each of them', async () => {
    expect(granted.length).toBeGreaterThan(20)
    const redis = await startRedis()
    const admin = adminOf(redis)
    const env = {
      REDIS_URL: await setUser(redis, granted),
      PORT: String(await freePort()),
      METRICS_PORT: '0',
      DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
      LOG_LEVEL: 'debug',
    }
    const consumer = endWithTest(new Program(process.execPath, [consumerModule], env))
    const web = endWithTest(await listening(new Program(process.execPath, [webModule], env)))
    for (let i = 0; i < 20; i++) expect((await post(`${web.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    expect((await post(`${web.url}/increment`, 'foo=1', { 'idempotency-key': 'abc' })).status).toBe(204)
    expect((await fetch(`${web.url}/readyz`)).status).toBe(200)
    const [, metrics] = await web.printed(/metrics at (\S+)\/metrics/)
    expect(await (await fetch(`${metrics}/metrics`)).text()).toMatch(/^gearbox_queue_durable 1$/m)
    const run = async (name: string, ...args: readonly string[]): Promise<string> => {
      const program = endWithTest(startCommand(name, args, env))
      expect(await program.exited, program.output).toBe(0)
      return program.output
    }
    expect(await run('verify', '--url', metrics!)).toContain('all of it adds up')
    expect(await admin.call('ACL', 'LOG')).toEqual([])
    for (const program of [web, consumer]) {
      expect(complaints(program), program.output).toEqual([])
      program.kill('SIGTERM')
      expect(await program.exited).toBe(0)
    }
    expect(await run('rebind', env.DATABASE_PATH)).toMatch(/already: nothing to do/)
    const other = join(temporaryDir(), 'other.db')
    expect(await run('rebind', other))
      .toMatch(/now belongs to .*will be counted there\n$/)
    expect(await admin.call('ACL', 'LOG')).toEqual([])
    await setUser(redis, granted.filter((rule) => rule !== '+pubsub|numsub'))
    expect(await run('rebind', env.DATABASE_PATH))
      .toMatch(/now belongs to .*PUBSUB NUMSUB is not allowed/)
  })

  /**
   * Rights that are used all the time, or with every new connection. CLIENT SETNAME only names connections, which
   * nobody needs.
   */
  const always = ['~gearbox:*', '&gearbox:*', '+config|get', '+eval', '+evalsha', '+get', '+hget', '+hset', '+info',
    '+lindex', '+llen', '+lpop', '+ping', '+publish', '+rpush', '+select', '+subscribe']

  /**
   * Rights for what happens once: a queue's first generation and owner, a consumer's start, forgetting a producer of
   * last week, verify.
   */
  const once = ['+set', '+del', '+hgetall', '+hdel', '+lrange']

  test('every right that is documented is one that these tests take away', () => {
    expect([...always, ...once, '+client|setname', '+pubsub|numsub'].sort()).toEqual([...granted].sort())
  })

  /** What a line that names a right looks like. */
  function naming (right: string): RegExp {
    const name = /^[~&]/.test(right) ? 'gearbox:\\*' : right.slice(1).replace('|', ' ')
    return new RegExp(`user may .*\\b${name}|${name.toUpperCase()} is not allowed`, 'i')
  }

  test('when a right is taken away, one line of each process names it at most, and all goes on when it is back',
    { timeout: 180_000 }, async () => {
      const redis = await startRedis()
      const admin = adminOf(redis)
      const env = {
        REDIS_URL: await setUser(redis, granted),
        PORT: String(await freePort()),
        DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
        LOG_LEVEL: 'debug',
        ACK_TIMEOUT_MS: '1000',
      }
      const consumer = endWithTest(new Program(process.execPath, [consumerModule], env))
      const web = endWithTest(await listening(new Program(process.execPath, [webModule], env)))
      const counts = async (): Promise<boolean> =>
        (await post(`${web.url}/increment?ack=stored`, 'foo=1')).status === 204
      await until('it to count', counts)
      for (const missing of always) {
        const before = [web, consumer].map((program) => complaints(program).length)
        const newLines = (): string[][] => [web, consumer].map((program, i) => complaints(program).slice(before[i]))
        await setUser(redis, granted.filter((rule) => rule !== missing))
        // New connections have everything to do again, and end those that subscribe.
        for (const type of ['normal', 'pubsub']) await admin.call('CLIENT', 'KILL', 'TYPE', type)
        await until(`a line about ${missing}`, async () => {
          await post(`${web.url}/increment?ack=memory`, 'foo=1')
          // Only the health check pings.
          const readiness = missing === '+ping' ? [await (await fetch(`${web.url}/readyz`)).text()] : []
          return [...newLines().flat(), ...readiness].some((line) => naming(missing).test(line))
        }, 20_000).catch((error: unknown) => {
          throw new Error(`nothing about ${missing} in ${JSON.stringify(newLines())}`, { cause: error })
        })
        await setUser(redis, granted)
        await until(`it to count again with ${missing}`, counts, 30_000)
        for (const lines of newLines()) {
          expect(new Set(lines).size, `no line twice without ${missing}: ${lines.join('\n')}`).toBe(lines.length)
        }
      }
      for (const program of [web, consumer]) {
        expect(traces.filter((trace) => program.output.includes(trace))).toEqual([])
        program.kill('SIGTERM')
        expect(await program.exited).toBe(0)
      }
    })

  test.each(once)('without %s from the start, a line names it', { timeout: 60_000 }, async (missing) => {
    const redis = await startRedis()
    const databasePath = join(temporaryDir(), 'numbers.db')
    const env = { PORT: String(await freePort()), METRICS_PORT: '0', DATABASE_PATH: databasePath, LOG_LEVEL: 'debug' }
    if (missing === '+hdel') makeOldProducer(databasePath)
    const REDIS_URL = await setUser(redis, granted.filter((rule) => rule !== missing))
    const web = endWithTest(new Program(process.execPath, [webModule], { ...env, REDIS_URL }))
    const [, metrics] = await web.printed(/metrics at (\S+)\/metrics/)
    const consumer = endWithTest(new Program(process.execPath, [consumerModule],
      { ...env, REDIS_URL, METRICS_PORT: '' }))
    const verify = endWithTest(startCommand('verify', ['--url', metrics!], { ...env, REDIS_URL }))
    await until(`a line about ${missing}`,
      () => [web, consumer, verify].some((program) => complaints(program).some((line) => naming(missing).test(line))))
      .catch((error: unknown) => {
        throw new Error([web, consumer, verify].map(({ output }) => output).join('\n\n'),
          { cause: error })
      })
    for (const program of [web, consumer]) {
      expect(new Set(complaints(program)).size, program.output).toBe(complaints(program).length)
    }
  })
})

/** A database with a producer that nobody heard of for a month. */
function makeOldProducer (path: string): void {
  const store = new Store({ path, idempotencyHours: 1, idempotencyRowsMax: 1 })
  store.close()
  const db = new Database(path)
  db.prepare('INSERT INTO producers(producer, high, gaps, requests, increments, seen_at) VALUES (?, 1, ?, 1, 1, ?)')
    .run(randomUUID(), '[]', Date.now() - 30 * 24 * 3_600_000)
  db.close()
}
