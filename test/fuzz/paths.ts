// The fast lane compared with the standard path: every case is sent to a worker with the fast lane and to one without
// it. What comes back, byte for byte, what is closed and what is counted must be the same. `node test/fuzz/paths.ts
// --help` says how to run more.
import { randomInt, randomUUID } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { parseArgs } from 'node:util'
import Database from 'better-sqlite3'
import { readHeader } from '@gearbox/protocol/batch.ts'
import { Flusher } from '@gearbox/web/deliver/flusher.ts'
import { buildServer } from '@gearbox/web/server.ts'
import { Totals } from '@gearbox/web/totals/reads.ts'
import { OpenQueue } from '@gearbox/web/fixtures/open-queue.ts'
import { Submissions } from '@gearbox/web/submit/submissions.ts'
import { loadConfig } from '@gearbox/runtime/config.ts'
import { createLogger } from '@gearbox/runtime/log/logger.ts'
import { createRegistry } from '@gearbox/runtime/metrics.ts'
import { loadPlugins } from '@gearbox/runtime/plugin/load.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import { Pipe } from '@gearbox/test-kit/pipe.ts'
import { apiKeys, drawCaseOf, type Case } from './requests.ts'
import { TicketConsumer } from './ticket-consumer.ts'

/** pipes: without sockets, many times as many. sockets: with the kernel and Node's own reading in between. */
export type Over = 'pipes' | 'sockets'

export interface PathsResult {
  readonly cases: number
  /** Requests that did not pass Node's parser: without any, nothing was compared. */
  readonly fast: number
  /** Those of them that were for a ticket. */
  readonly fastTickets: number
  /** By status. */
  readonly replies: ReadonlyMap<string, number>
  /** Cases in which the paths differ as they may, by the reason. */
  readonly allowed: ReadonlyMap<string, number>
  /** Each a case, and how the paths differ. */
  readonly problems: readonly string[]
}

const unlimited = { HEADERS_TIMEOUT_MS: '3600000', REQUEST_TIMEOUT_MS: '3600000', ACK_TIMEOUT_MS: '30000' }

/** Workers that differ in what a request comes to. */
const environments: readonly NodeJS.ProcessEnv[] = [
  {},
  { API_KEYS: `${apiKeys[0]},read:${apiKeys[1]}`, CORS_ORIGINS: 'https://friend.example', ACK: 'stored' },
  { API_KEYS: `${apiKeys[0]},read:${apiKeys[1]}`, PUBLIC: 'tickets' },
  { BODY_BYTES_MAX: '400', BODY_PAIRS_MAX: '5', ACK: 'memory' },
  { BASE_PATH: '/base', HOSTS_ALLOWED: 'listed.example', CORS_ORIGINS: '*' },
]

/** Cases that are sent at a time, each on its own connection. */
const casesAtOnce = 200

/**
 * So many event-loop iterations in which nothing moves mean that nothing will: no step of a request waits for more
 * than one.
 */
const quietTurns = { pipes: 3, sockets: 6 } as const

interface Client {
  write (piece: Buffer): void
  /** The client will send nothing more. */
  end (): void
  readonly received: string
  /** Whether the server has closed its side. */
  readonly closed: boolean
  destroy (): void
}

/** A worker in this process, with a queue that reports at once what is stored. */
class Path {
  readonly #server: Awaited<ReturnType<typeof buildServer>>
  readonly #totals: Totals
  readonly #over: Over
  readonly #port: number
  readonly queue: OpenQueue
  readonly flusher: Flusher
  readonly #submissions: Submissions
  /** Requests that passed Node's parser. */
  standard = 0
  /** Those of them that may have been for a ticket. */
  standardTickets = 0
  /** Changes with whatever comes back from it. */
  bytes = 0

  private constructor (server: Awaited<ReturnType<typeof buildServer>>, totals: Totals, over: Over, port: number,
    queue: OpenQueue, flusher: Flusher, submissions: Submissions) {
    this.#server = server
    this.#totals = totals
    this.#over = over
    this.#port = port
    this.queue = queue
    this.flusher = flusher
    this.#submissions = submissions
    server.server.on('request', ({ url = '' }: IncomingMessage) => {
      this.standard++
      if (url.includes('/tickets/')) this.standardTickets++
    })
  }

  static async start (env: NodeJS.ProcessEnv, over: Over): Promise<Path> {
    const config = loadConfig({ DATABASE_PATH: '/nonexistent/numbers.db', ...unlimited, ...env })
    const logger = createLogger('fuzz', 'silent')
    const queue = new OpenQueue()
    const producer = randomUUID()
    const flusher = new Flusher({ ...config, queue, producer, logger, observeFlush: () => {} })
    const totals = new Totals(config.databasePath)
    const submissions = new Submissions({ flusher, queue, producer, limits: config })
    const consumer = new TicketConsumer()
    let applied = 0
    queue.onPush = () => {
      const results = queue.list.flatMap((element) => {
        const header = readHeader(element)
        if (typeof header === 'string') throw new Error(header)
        if (header.seq <= applied) return []
        applied = header.seq
        return header.entries ? consumer.apply(applied, element) : []
      })
      queue.emit('progress', producer, { high: applied, gaps: [], rejected: [], omittedRejections: [], results })
    }
    const loaded = (await loadPlugins(['tickets'])).map((plugin) => ({ plugin, settings: { ticketsHoldS: 0 } }))
    const plugins = {
      loaded, core: config, submissions, registry: createRegistry(), stopping: new AbortController().signal, producer,
    }
    const server = await buildServer({
      config, logger, flusher, queue, totals, metrics: async () => '', requests: new Map(), plugins,
    })
    flusher.start()
    const port = over === 'sockets' ? Number(new URL(await server.listen({ host: '127.0.0.1', port: 0 })).port) : 0
    while (flusher.failingMs > 0) await turn()
    return new Path(server, totals, over, port, queue, flusher, submissions)
  }

  async open (): Promise<Client> {
    return this.#over === 'pipes' ? this.#openPipe() : await this.#openSocket()
  }

  #openPipe (): Client {
    const pipe = new Pipe()
    pipe.on('error', () => {})
    this.#server.server.emit('connection', pipe)
    let counted = 0
    const count = (): void => {
      this.bytes += pipe.bytesWritten - counted + Number(pipe.destroyed)
      counted = pipe.bytesWritten
    }
    pipe.onWrite = count
    return {
      write: (piece) => { if (!pipe.destroyed) pipe.push(piece) },
      end: () => { if (!pipe.destroyed) pipe.push(null) },
      get received () { return pipe.received },
      get closed () { return pipe.writableEnded || pipe.destroyed },
      destroy: () => pipe.destroy(),
    }
  }

  async #openSocket (): Promise<Client> {
    const socket = connect({ port: this.#port, host: '127.0.0.1', allowHalfOpen: true, noDelay: true })
    const chunks: Buffer[] = []
    let closed = false
    socket.on('data', (chunk: Buffer) => {
      chunks.push(chunk)
      this.bytes += chunk.length
    })
    const close = (): void => {
      closed = true
      this.bytes++
    }
    // A server that closes before it has read all resets the connection: that is how its close is seen then.
    socket.on('end', close).on('close', close).on('error', () => {})
    await new Promise((resolve) => socket.once('connect', resolve))
    return {
      write: (piece) => { if (socket.writable) socket.write(piece) },
      end: () => { if (socket.writable) socket.end() },
      get received () { return Buffer.concat(chunks).toString('latin1') },
      get closed () { return closed },
      destroy: () => { socket.destroy() },
    }
  }

  /** Whatever changes while something is on its way. */
  get state (): string {
    const { counts: { increments, pushed }, pendingReplies, pendingKeys } = this.flusher
    return [this.standard, this.bytes, increments, pushed, pendingReplies, pendingKeys].join()
  }

  async end (): Promise<void> {
    this.#server.server.closeAllConnections()
    await this.#server.close()
    this.#submissions.stop()
    await this.flusher.finish(AbortSignal.abort())
    this.#totals.close()
  }
}

async function turn (): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve))
}

/** Resolves when nothing moves in any of the workers any more. */
async function settle (paths: readonly Path[], over: Over, holding: boolean): Promise<void> {
  let last = ''
  for (let quiet = 0; quiet < quietTurns[over];) {
    await turn()
    const state = paths.map((path) => path.state).join()
    quiet = state === last &&
      (holding || paths.every(({ flusher }) => flusher.pendingReplies === 0 && flusher.pendingKeys === 0))
      ? quiet + 1
      : 0
    last = state
  }
}

/** What came of a case before its client ended its side, and after. */
interface Outcome {
  readonly replies: string
  readonly closed: boolean
  readonly repliesToEnd: string
  readonly closedAtEnd: boolean
}

/** Between which pieces the queue takes no batches. */
interface Hold {
  readonly from: number
  readonly to: number
}

const noHold: Hold = { from: Infinity, to: Infinity }

/** Sends cases to a worker, piece by piece, each when all is done about the one before. */
async function run (path: Path, cases: readonly Case[], hold: Hold, over: Over): Promise<{
  outcomes: Outcome[]
  counted: string
}> {
  const { queue } = path
  queue.list = []
  queue.attempts.length = 0
  const clients = await Promise.all(cases.map(async () => await path.open()))
  const rounds = Math.max(...cases.map(({ pieces }) => pieces.length))
  for (let round = 0; round < rounds; round++) {
    if (round === hold.from) queue.hold()
    if (round === hold.to) {
      queue.release()
      await settle([path], over, false)
    }
    for (const [i, { pieces }] of cases.entries()) {
      const piece = pieces[round]
      if (piece !== undefined) clients[i]!.write(piece)
    }
    await settle([path], over, round >= hold.from && round < hold.to)
  }
  queue.release()
  await settle([path], over, false)
  const first = clients.map(({ received, closed }) => ({ received, closed }))
  for (const client of clients) client.end()
  await settle([path], over, false)
  const outcomes = clients.map((client, i): Outcome => {
    const { received, closed } = first[i]!
    return {
      replies: mask(received),
      closed,
      repliesToEnd: mask(client.received.slice(received.length)),
      closedAtEnd: client.closed,
    }
  })
  for (const client of clients) client.destroy()
  await settle([path], over, false)
  // Not the worker's count of increments: in that a repeat under an Idempotency-Key counts or not, as what it repeats
  // has left already or not.
  return { outcomes, counted: describeCounts(queue.list) }
}

function mask (received: string): string {
  return received.replaceAll(/^Date: [^\r]*/gmi, (line) => `${line.slice(0, 4)}: now`)
}

const db = new Database(':memory:')
const sums = db.prepare<[string], { key: string, value: bigint }>("SELECT key, value FROM json_each(?, '$.sums')")
  .safeIntegers()
const onces = db.prepare<[string], { id: string, sums: string }>(
  "SELECT value ->> 'id' AS id, value -> 'sums' AS sums FROM json_each(?, '$.once')"
)

const issues = db.prepare<[string], { name: string, requests: number }>(
  `SELECT value ->> '$.data.issue' AS name, sum(value ->> '$.data.requests') AS requests
   FROM json_each(?, '$.plugins') GROUP BY name`
)

/** Totals by key, requests for tickets by line, and what travels under Idempotency-Keys, of whichever batches. */
function describeCounts (elements: readonly Buffer[]): string {
  const totals = new Map<string, bigint>()
  const once = new Set<string>()
  const tickets = new Map<string, number>()
  for (const element of elements) {
    const json = element.toString()
    for (const { key, value } of sums.all(json)) totals.set(key, (totals.get(key) ?? 0n) + value)
    for (const entry of onces.all(json)) once.add(`${entry.id}: ${entry.sums}`)
    for (const { name, requests } of issues.all(json)) tickets.set(name, (tickets.get(name) ?? 0) + requests)
  }
  return [...Array.from(totals, ([key, sum]) => `${JSON.stringify(key)}: ${sum}`).sort(),
    ...Array.from(tickets, ([name, requests]) => `${requests} of ${JSON.stringify(name)}`).sort(),
    ...[...once].sort()].join(', ')
}

/**
 * What the paths may do differently: which of the tickets of one connection has which number, and what is said of the
 * request at which a connection is cut off.
 * @returns the reason, or undefined if they differ as they may not
 */
function allowedDifference (fast: Outcome, standard: Outcome): string | undefined {
  const atCutOff = differenceAtCutOff(fast, standard)
  if (atCutOff !== undefined) return atCutOff
  // Node gives the body of a request to its reader in a later step, also one of no bytes that has a Content-Type. A
  // request behind it that has none is served before. The fast lane serves them in their order.
  const [one, other] = [withoutNumbers(fast), withoutNumbers(standard)]
  if (one.numbers.length < 2 || one.numbers.join() !== other.numbers.join()) return undefined
  if (JSON.stringify(one.outcome) === JSON.stringify(other.outcome)) return 'which pipelined request got which number'
  return differenceAtCutOff(one.outcome, other.outcome)
}

function differenceAtCutOff (fast: Outcome, standard: Outcome): string | undefined {
  const [one, other] = [fast.replies + fast.repliesToEnd, standard.replies + standard.repliesToEnd]
  if (!fast.closedAtEnd || !standard.closedAtEnd) return undefined
  // A reply that waits while its connection is cut off behind it says that it is the last, in whosever spelling.
  if (one !== other && asLast(one) === asLast(other)) return 'whether the last reply says that it is the last'
  // A line is matched when it is whole, or within two checks; Node refuses it at the first byte that is wrong.
  if (fast.replies !== standard.replies && standard.replies.startsWith(fast.replies) && one === other) {
    return 'a wrong line that is not whole is refused later'
  }
  // What can't be parsed is refused, but not while a reply is due before it, which that 400 would be taken for: then
  // the connection is closed without a word. Whether one is due depends on the event-loop iteration in which Node
  // parses what follows.
  if (beforeRefusal(one) === beforeRefusal(other)) return 'whether what follows a reply is refused, or just cut off'
  // Nothing can be put back into a socket that has ended, so the fast lane itself refuses the body that ended too
  // early.
  if (fast.replies === standard.replies && fast.repliesToEnd !== '' &&
    withoutHeaders(fast.repliesToEnd) === withoutHeaders(standard.repliesToEnd) &&
      refusalOfUnparsed.test(fast.repliesToEnd)) {
    return 'other headers for a body that ends too early'
  }
  return undefined
}

/** Which numbers an outcome has, refusals being 0, and the outcome without what says which reply has which. */
function withoutNumbers (outcome: Outcome): { numbers: readonly number[], outcome: Outcome } {
  const replies = outcome.replies.split(/(?=HTTP\/1\.1 \d)/)
  const isTicket = (reply: string): boolean => /^HTTP\/1\.1 (?:201|409) /.test(reply)
  const numbers = replies.filter(isTicket).flatMap((reply) => {
    const [, first = '0', last = first] = /"(?:number|first)":(\d+)(?:,"last":(\d+))?/.exec(reply) ?? []
    return Array.from({ length: Number(last) - Number(first) + 1 }, (_, i) => Number(first) + i)
  })
  const masked = replies.map((reply) => isTicket(reply) ? `a ticket\r\n${connectionHeaders(reply)}` : reply)
  return {
    numbers: numbers.sort((one, other) => one - other), outcome: { ...outcome, replies: masked.join('') },
  }
}

function connectionHeaders (reply: string): string {
  return (reply.match(/^(?:connection|keep-alive): .*\r\n/gmi) ?? []).join('')
}

const refusalOfUnparsed = new RegExp('^' + [
  'HTTP/1\\.1 (?:400|431) [^\\r]*', 'Content-Type: application/json; charset=utf-8', 'Content-Length: \\d+',
  'Connection: close', '', '\\{[^{}]*\\}',
].join('\\r\\n') + '$', 'i')

/** What was received without the refusal at its end, if anything stands before that. */
function beforeRefusal (received: string): string {
  const at = received.lastIndexOf('HTTP/1.1 4')
  return at > 0 && refusalOfUnparsed.test(received.slice(at)) ? received.slice(0, at) : received
}

function asLast (received: string): string {
  return received.replace(/^(?:connection: (?:keep-alive|close)|keep-alive: timeout=72)\r\n/gmi, '')
}

function withoutHeaders (reply: string): string {
  return reply.replace(/(?<=\r\n)(?:[^\r]+\r\n)+(?=\r\n)/g, '')
}

function describe ({ names, pieces }: Case): string {
  return `${names.join(', ') || 'as usual'}\n    ` +
    `${pieces.map((piece) => JSON.stringify(piece.toString('latin1'))).join('\n    ')}`
}

/**
 * Compares the paths over random cases.
 * @param seed says all of them
 */
export async function comparePaths (seed: number, cases: number, over: Over, problemsMax = 5): Promise<PathsResult> {
  const random = new Random(seed)
  const replies = new Map<string, number>()
  const allowed = new Map<string, number>()
  const problems: string[] = []
  const pairs = await Promise.all(environments.map(async (env) => ({
    fast: await Path.start({ ...env, FAST_LANE: 'on' }, over),
    standard: await Path.start({ ...env, FAST_LANE: 'off' }, over),
  })))
  let done = 0
  try {
    for (let batch = 0; done < cases && problems.length < problemsMax; batch++) {
      const { fast, standard } = pairs[batch % pairs.length]!
      const some = Array.from({ length: Math.min(casesAtOnce, cases - done) }, () => drawCaseOf(random))
      done += some.length
      const from = random.int(0, 5)
      const hold = random.chance(0.5) ? { from, to: random.int(from + 1, 6) } : noHold
      const [one, other] = [await run(fast, some, hold, over), await run(standard, some, hold, over)]
      let differed = false
      for (const [i, outcome] of one.outcomes.entries()) {
        for (const [status] of outcome.replies.matchAll(/(?<=^HTTP\/1\.1 )\d{3}/gm)) {
          replies.set(status, (replies.get(status) ?? 0) + 1)
        }
        const expected = other.outcomes[i]!
        if (JSON.stringify(outcome) === JSON.stringify(expected)) continue
        const reason = allowedDifference(outcome, expected)
        if (reason !== undefined) {
          allowed.set(reason, (allowed.get(reason) ?? 0) + 1)
          continue
        }
        differed = true
        problems.push(`seed ${seed}, batch ${batch}, the queue held from piece ${hold.from} to ${hold.to}: ` +
          `${describe(some[i]!)}\n  fast lane: ${JSON.stringify(outcome)}\n` +
          `  standard path: ${JSON.stringify(expected)}`)
      }
      if (one.counted === other.counted || differed) continue
      problems.push(`seed ${seed}, batch ${batch}, counted differently\n  fast lane: ${one.counted}\n` +
        `  standard path: ${other.counted}`)
      for (const single of some) {
        const [a, b] = [await run(fast, [single], hold, over), await run(standard, [single], hold, over)]
        if (a.counted !== b.counted) {
          problems.push(`seed ${seed}, batch ${batch}, the queue held from piece ${hold.from} to ${hold.to}: ` +
            `${describe(single)}\n  fast lane: ${a.counted}\n  standard path: ${b.counted}`)
        }
      }
    }
    return {
      cases: done,
      fast: pairs.reduce((sum, { fast, standard }) => sum + standard.standard - fast.standard, 0),
      fastTickets: pairs.reduce((sum, { fast, standard }) => sum + standard.standardTickets - fast.standardTickets, 0),
      replies,
      allowed,
      problems,
    }
  } finally {
    for (const { fast, standard } of pairs) {
      await fast.end()
      await standard.end()
    }
  }
}

const usage =
  `Sends random and mutated requests to a worker with the fast lane and to one without it, and compares what
becomes of them.

usage: node test/fuzz/paths.ts [--seed N] [--cases M] [--over pipes|sockets]

  --seed   names the cases (default: a new one, which is printed)
  --cases  how many, each up to five requests on its own connection (default: 1000000)
  --over   pipes (default), or real sockets, which take several times as long

Exit code 0: no difference; 1: the output shows each.
`

async function main (): Promise<number> {
  const { values } = parseArgs({
    options: {
      help: { type: 'boolean', short: 'h' },
      seed: { type: 'string' },
      cases: { type: 'string', default: '1000000' },
      over: { type: 'string', default: 'pipes' },
    }
  })
  const [seed, cases] = [Number(values.seed ?? randomInt(2 ** 31)), Number(values.cases)]
  const { over } = values
  if (values.help === true || !Number.isSafeInteger(seed) || !(cases > 0) || (over !== 'pipes' && over !== 'sockets')) {
    process.stdout.write(usage)
    return values.help === true ? 0 : 1
  }
  const startedAt = performance.now()
  process.stdout.write(`seed ${seed}\n`)
  const result = await comparePaths(seed, cases, over)
  const { cases: done, fast, fastTickets, replies, allowed, problems } = result
  for (const problem of problems) process.stdout.write(`${problem}\n`)
  process.stdout.write(`${done} cases over ${over} in ${Math.round((performance.now() - startedAt) / 1000)} s, ` +
    `${fast} requests by the fast lane (${fastTickets} for tickets), replies: ` +
    `${JSON.stringify(Object.fromEntries(replies))}, ` +
    `allowed: ${JSON.stringify(Object.fromEntries(allowed))}, problems: ${problems.length}\n`)
  return problems.length > 0 ? 1 : 0
}

if (import.meta.main) process.exitCode = await main()
