// Tickets as their users have them: `npm start` with both queues, clients over HTTP, and programs that are killed.
import { copyFileSync } from 'node:fs'
import { Agent } from 'node:http'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { expect, onTestFinished, test } from 'vitest'
import { send, type Reply } from '@gearbox/test-kit/client.ts'
import { endWithTest, startAll, startCommand, type Program } from '@gearbox/test-kit/gearbox.ts'
import { findOvertaken, findRepeated, type NumberRequest } from '@gearbox/test-kit/number-order.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import { RedisServer } from '@gearbox/test-kit/redis.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

const modes = ['the embedded queue', 'Redis'] as const

interface Place {
  readonly path: string
  readonly env: NodeJS.ProcessEnv
}

async function makePlace (mode: typeof modes[number], more: NodeJS.ProcessEnv = {}): Promise<Place> {
  const path = join(temporaryDir(), 'numbers.db')
  if (mode === 'the embedded queue') return { path, env: { DATABASE_PATH: path, ...more } }
  const redis = await RedisServer.start()
  onTestFinished(async () => { await redis.stop() })
  return { path, env: { DATABASE_PATH: path, REDIS_URL: redis.url, ...more } }
}

async function start ({ env }: Place): Promise<Program & { url: string }> {
  const gearbox = endWithTest(await startAll(env))
  let ready = 0
  await until('every worker to be ready', async () => {
    const { status } = await send(`${gearbox.url}/readyz`)
    ready = status === 200 ? ready + 1 : 0
    return ready === 8
  })
  return gearbox
}

async function stop (program: Program): Promise<void> {
  program.kill('SIGTERM')
  expect(await program.exited, program.output).toBe(0)
}

/** Takes tickets. */
async function take (url: string, headers = {}, agent: Agent | false = false): Promise<Reply> {
  return await send(url, { method: 'POST', headers, agent })
}

/** What a database says of tickets. */
function read<Row> (path: string, sql: string): Row[] {
  const db = new Database(path, { readonly: true })
  try {
    return db.prepare<[], Row>(sql).all()
  } finally {
    db.close()
  }
}

/** Clients that take tickets, each one after another, until they are stopped. */
class TicketLoad {
  readonly history: NumberRequest[] = []
  readonly problems: string[] = []
  /** Requests whose answer says neither a number nor that there is none. */
  unknown = 0
  readonly #clients: Promise<unknown>
  #stopped = false

  constructor (url: string, random: Random, clients = 12) {
    this.#clients = Promise.all(Array.from({ length: clients }, async (_, i) => {
      await this.#take(url, random.fork(), i)
    }))
  }

  async more (answers: number): Promise<void> {
    const before = this.history.length
    await until(`${answers} more tickets`, () => this.history.length >= before + answers, 30_000)
  }

  async stop (): Promise<void> {
    this.#stopped = true
    await this.#clients
  }

  async #take (url: string, random: Random, client: number): Promise<void> {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    for (let i = 0; !this.#stopped; i++) {
      if (random.chance(0.05)) await hangUp(url)
      const count = random.chance(0.2) ? random.int(2, 50) : 1
      const headers: Record<string, string> = random.chance(0.3) ? { 'idempotency-key': `${client}-${i}` } : {}
      const sent = performance.now()
      const reply = await this.#post(agent, `${url}/tickets/boat?count=${count}`, headers)
      if (reply === undefined) continue
      const answered = performance.now()
      this.history.push({ first: reply.first ?? reply.number, count, sent, answered })
      if (headers['idempotency-key'] === undefined || !random.chance(0.5)) continue
      const again = await this.#post(false, `${url}/tickets/boat?count=${count}`, headers)
      if (again !== undefined && JSON.stringify(again) !== JSON.stringify(reply)) {
        this.problems.push(`a repeat got ${JSON.stringify(again)} and not ${JSON.stringify(reply)}`)
      }
    }
    agent.destroy()
  }

  async #post (agent: Agent | false, url: string, headers: Record<string, string>): Promise<Ticket | undefined> {
    try {
      const { status, text } = await take(url, headers, agent)
      if (status === 201) return JSON.parse(text)
      if (status === 202) this.unknown++
      else if (status !== 503) this.problems.push(`${status} ${text}`)
    } catch {
      this.unknown++
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    return undefined
  }
}

interface Ticket { first: number, number: number, receipt: string }

/** A client that sends a request and does not wait for its answer. */
async function hangUp (url: string): Promise<void> {
  const { hostname, port } = new URL(url)
  await new Promise<void>((resolve) => {
    const socket = connect(Number(port), hostname, () => {
      socket.write(`POST /tickets/boat HTTP/1.1\r\nHost: ${hostname}\r\nContent-Length: 0\r\n\r\n`, () => {
        socket.resetAndDestroy()
      })
    })
    socket.on('error', () => {})
    socket.on('close', () => resolve())
  })
}

/** What must be so once all is at rest. */
function expectInOrder ({ path }: Place, { history, problems }: TicketLoad): void {
  expect(problems).toEqual([])
  expect(findRepeated(history)).toEqual([])
  expect(findOvertaken(history)).toEqual([])
  const runs = read<{ first: number, count: number }>(path,
    "SELECT first, count FROM tickets_runs WHERE name = 'boat' ORDER BY first")
  let next = 1
  for (const { first, count } of runs) {
    expect(first).toBe(next)
    next += count
  }
  expect(read(path, "SELECT issued FROM tickets_lines WHERE name = 'boat'")).toEqual([{ issued: next - 1 }])
  expect(Math.max(...history.map(({ first, count }) => first + count - 1))).toBeLessThan(next)
}

test.each(modes)('with %s many clients at many workers get numbers in order, without a gap', async (mode) => {
  const place = await makePlace(mode)
  const gearbox = await start(place)
  const load = new TicketLoad(gearbox.url, new Random(seed))
  await load.more(1000)
  await load.stop()
  const text = (await send(`${gearbox.url}/tickets/boat/log`)).text
  const numbers = text.trimEnd().split('\n').map((line) => Number(JSON.parse(line).number))
  expect(numbers).toEqual(numbers.map((_, i) => i + 1))
  const metrics = (await send(`${gearbox.url}/metrics`)).text
  expect(metrics).toMatch(/^gearbox_ticket_overtaken_seconds_count [1-9]/m)
  expect(metrics).toMatch(/^gearbox_tickets_issued_total [1-9]/m)
  const verify = endWithTest(startCommand('verify', ['--url', gearbox.url], place.env))
  expect(await verify.exited, verify.output).toBe(0)
  expect(verify.output).toMatch(/tickets: \d+ numbers of 1 names, each in the log once/)
  await stop(gearbox)
  expect(load.unknown).toBe(0)
  expectInOrder(place, load)
}, 60_000)

test.each(modes)('with %s that holds while the consumer and workers are killed', async (mode) => {
  const place = await makePlace(mode, { ACK_TIMEOUT_MS: '2000' })
  const gearbox = await start(place)
  const load = new TicketLoad(gearbox.url, new Random(seed))
  for (const module of ['apps/consumer', 'apps/web', 'apps/consumer']) {
    await load.more(150)
    process.kill(gearbox.children(module)[0]!.pid, 'SIGKILL')
  }
  await load.more(150)
  await load.stop()
  await stop(gearbox)
  expectInOrder(place, load)
}, 90_000)

test.each(modes)('with %s a request that is not stored in time is found at every worker', async (mode) => {
  const place = await makePlace(mode, { ACK_TIMEOUT_MS: '300' })
  const gearbox = await start(place)
  const takeTwo = async (headers = {}): Promise<Reply> => await take(`${gearbox.url}/tickets/boat?count=2`, headers)
  // Each worker is seen by the consumer.
  for (let i = 0; i < 8; i++) expect((await takeTwo()).status).toBe(201)
  const consumer = gearbox.children('apps/consumer')[0]!.pid
  process.kill(consumer, 'SIGSTOP')
  let replies
  try {
    replies = [...await Promise.all([takeTwo(), takeTwo(), takeTwo()]), await takeTwo({ 'idempotency-key': 'a' })]
  } finally {
    process.kill(consumer, 'SIGCONT')
  }
  expect(replies.map(({ status }) => status)).toEqual([202, 202, 202, 202])
  const numbers = new Set<number>()
  for (const { text } of replies) {
    const url = `${gearbox.url}/tickets/boat/requests/${JSON.parse(text).request}`
    const answers = new Set<string>()
    await until('the number, from any worker', async () => {
      const { status, text } = await send(url)
      expect([200, 202]).toContain(status)
      if (status === 200) answers.add(text)
      return status === 200
    })
    for (let i = 0; i < 8; i++) answers.add((await send(url)).text)
    expect([...answers]).toHaveLength(1)
    const { first, last, receipt } = JSON.parse([...answers][0]!)
    expect(last).toBe(first + 1)
    numbers.add(first)
    const own = await send(`${gearbox.url}/tickets/boat/${last}?receipt=${receipt}`)
    expect(own.status, own.text).toBe(200)
  }
  expect([...numbers].toSorted((one, other) => one - other)).toEqual([17, 19, 21, 23])
  expect(JSON.parse((await takeTwo({ 'idempotency-key': 'a' })).text)).toMatchObject({ last: expect.any(Number) })
  expect(JSON.parse((await send(`${gearbox.url}/tickets/boat`)).text).issued).toBe(24)
  await stop(gearbox)
})

test('after a restored backup and a rebind every name goes on above the floor', async () => {
  const place = await makePlace('Redis')
  const backup = join(temporaryDir(), 'backup.db')
  const first = await start(place)
  const number = async (url: string, name: string): Promise<number> =>
    JSON.parse((await take(`${url}/tickets/${name}`)).text).number
  expect(await number(first.url, 'boat')).toBe(1)
  const copy = endWithTest(startCommand('backup', [backup], place.env))
  expect(await copy.exited, copy.output).toBe(0)
  for (let i = 2; i < 10; i++) expect(await number(first.url, 'boat')).toBe(i)
  await stop(first)
  const restored = { path: backup, env: { ...place.env, DATABASE_PATH: backup } }
  const rebind = endWithTest(startCommand('rebind', [backup, '--tickets-from', '500'], place.env))
  expect(await rebind.exited, rebind.output).toBe(0)
  expect(rebind.output).toMatch(/the highest number that is known is 1; from now on every name goes on above 500/)
  const second = await start(restored)
  expect(await number(second.url, 'boat')).toBe(501)
  expect(await number(second.url, 'raft')).toBe(501)
  const verify = endWithTest(startCommand('verify', ['--url', second.url], restored.env))
  expect(await verify.exited, verify.output).toBe(0)
  await stop(second)
})

test('with the embedded queue nothing notices a restored database: numbers come again without a rebind', async () => {
  const place = await makePlace('the embedded queue')
  const backup = join(temporaryDir(), 'backup.db')
  const first = await start(place)
  const number = async (url: string): Promise<number> =>
    JSON.parse((await take(`${url}/tickets/boat`)).text).number
  expect(await number(first.url)).toBe(1)
  const copy = endWithTest(startCommand('backup', [backup], place.env))
  expect(await copy.exited, copy.output).toBe(0)
  expect(await number(first.url)).toBe(2)
  await stop(first)
  copyFileSync(backup, place.path)
  const second = await start(place)
  expect(await number(second.url), 'which is why the documents say so').toBe(2)
  await stop(second)
  const rebind = endWithTest(startCommand('rebind', ['--embedded', place.path, '--tickets-from', '500'], place.env))
  expect(await rebind.exited, rebind.output).toBe(0)
  expect(rebind.output).toMatch(/new identity\n.* goes on above 500/)
  const third = await start(place)
  expect(await number(third.url)).toBe(501)
  await stop(third)
})

test('where many more ask than a worker may hold, everybody gets an answer', async () => {
  const place = await makePlace('the embedded queue', { PENDING_REQUESTS_MAX: '200', WEB_WORKERS: '1' })
  const gearbox = await start(place)
  const statuses = await Promise.all(Array.from({ length: 2000 }, async () =>
    (await take(`${gearbox.url}/tickets/boat`)).status))
  const issued = statuses.filter((status) => status === 201).length
  expect(issued).toBeGreaterThan(0)
  expect(statuses.filter((status) => status !== 201 && status !== 503)).toEqual([])
  expect(JSON.parse((await send(`${gearbox.url}/tickets/boat`)).text).issued).toBe(issued)
  await stop(gearbox)
})

test('whoever has closed its connection before the flush has no number, and is told so if it still reads', async () => {
  const place = await makePlace('the embedded queue', { FLUSH_INTERVAL_MS: '1000', WEB_WORKERS: '1' })
  const gearbox = await start(place)
  const { hostname, port } = new URL(gearbox.url)
  const open = async (path: string): Promise<Socket> => await new Promise((resolve) => {
    const socket = connect(Number(port), hostname, () => {
      socket.write(`POST ${path} HTTP/1.1\r\nHost: ${hostname}\r\nContent-Length: 0\r\n\r\n`, () => resolve(socket))
    })
    socket.on('error', () => {})
  })
  // The interval begins.
  await take(`${gearbox.url}/tickets/raft`)
  const gone = await open('/tickets/boat?count=3')
  const half = await open('/tickets/boat?count=5')
  const stays = take(`${gearbox.url}/tickets/boat`)
  gone.destroy()
  half.end()
  let text = ''
  half.on('data', (chunk) => { text += String(chunk) })
  expect(JSON.parse((await stays).text)).toMatchObject({ number: 1 })
  await until('a reply', () => text.includes('GBX_HUNG_UP'))
  expect(text).toMatch(/^HTTP\/1\.1 400 /)
  expect(JSON.parse((await send(`${gearbox.url}/tickets/boat`)).text).issued).toBe(1)
  await stop(gearbox)
})

test('API_KEYS and PUBLIC say who may do what', async () => {
  const place = await makePlace('the embedded queue', { API_KEYS: 'count:c,read:r,admin:a', PUBLIC: 'tickets' })
  const gearbox = await start(place)
  const status = async (method: string, path: string, key?: string): Promise<number> =>
    (await send(`${gearbox.url}/tickets/boat${path}`, {
      method, headers: key === undefined ? {} : { authorization: `Bearer ${key}` },
    })).status
  expect(await status('POST', '')).toBe(201)
  expect(await status('POST', '', 'c')).toBe(201)
  expect(await status('POST', '', 'wrong')).toBe(401)
  expect([await status('GET', ''), await status('GET', '/1')]).toEqual([200, 200])
  expect(await status('GET', '/1?receipt=x')).toBe(403)
  for (const [method, path] of [['POST', '/serve?by=1'], ['PUT', '?limit=9'], ['GET', '/log']] as const) {
    expect(await status(method, path), `${method} ${path}`).toBe(401)
    expect(await status(method, path, 'c'), `${method} ${path}`).toBe(403)
    expect(await status(method, path, 'a'), `${method} ${path}`).toBe(200)
  }
  expect(await status('DELETE', '/1')).toBe(403)
  expect(await status('DELETE', '/1', 'a')).toBe(204)
  expect(await status('POST', '?cuont=1', 'c')).toBe(400)
  const { paths } = JSON.parse((await send(`${gearbox.url}/docs/json`)).text)
  expect(Object.keys(paths).filter((path) => path.startsWith('/tickets')).toSorted()).toEqual([
    '/tickets/{name}', '/tickets/{name}/log', '/tickets/{name}/requests/{request}', '/tickets/{name}/serve',
    '/tickets/{name}/{number}',
  ])
  await stop(gearbox)
})

test('without PUBLIC a number needs a key that may count, and a line one that may read', async () => {
  const place = await makePlace('the embedded queue', { API_KEYS: 'count:c,read:r', WEB_WORKERS: '1' })
  const gearbox = await start(place)
  const status = async (method: string, path: string, key?: string): Promise<number> =>
    (await send(`${gearbox.url}/tickets/boat${path}`, {
      method, headers: key === undefined ? {} : { authorization: `Bearer ${key}` },
    })).status
  const statuses = async (method: string, path: string): Promise<number[]> =>
    [await status(method, path), await status(method, path, 'c'), await status(method, path, 'r')]
  expect(await statuses('POST', '')).toEqual([401, 201, 403])
  expect(await statuses('GET', '/1')).toEqual([401, 403, 200])
  await stop(gearbox)
})
