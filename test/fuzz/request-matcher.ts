// The fast lane's matchers compared with Node's parser: what matches as a whole request, Node must read as the same
// request, from the first byte to the last and with no other in it. `node test/fuzz/request-matcher.ts
// --help` says how to run more.
import { randomInt } from 'node:crypto'
import { createServer, type IncomingMessage } from 'node:http'
import { parseArgs } from 'node:util'
import type { Match } from '@gearbox/web/fast-lane/head.ts'
import { PostMatcher } from '@gearbox/web/fast-lane/post-matcher.ts'
import { RequestMatcher } from '@gearbox/web/fast-lane/request-matcher.ts'
import { Random } from '@gearbox/test-kit/random.ts'
import { Pipe } from '@gearbox/test-kit/pipe.ts'
import { drawBytes } from './requests.ts'

export interface MatcherResult {
  readonly cases: number
  /** By the shape that a matcher is for. */
  readonly seen: Readonly<Record<Shape['name'], Readonly<Record<Match, number>>>>
  /** Prefixes that were read. */
  readonly prefixes: number
  readonly problems: readonly string[]
}

const bodyBytesMax = 65_536

/** Requests that Node reads in one event-loop iteration. */
const requestsAtOnce = 500

/** The parts of a whole request, as a matcher found them. */
interface Expected {
  readonly bytes: Buffer
  readonly url: string
  readonly authorization: string | undefined
  readonly idempotencyKey: string | undefined
  readonly body: Buffer
}

/** What is compared of each matcher. */
interface Shape {
  readonly name: 'increment' | 'ticket'
  read (bytes: Buffer, start: number, end: number): Match
  /** Where the last request ends; 0 if that is not known. */
  readonly end: number
  /** The parts of the last whole request. */
  parts (bytes: Buffer): Omit<Expected, 'bytes'>
}

function incrementShape (): Shape {
  const matcher = new RequestMatcher({ bodyBytesMax })
  return {
    name: 'increment',
    read: (bytes, start, end) => matcher.read(bytes, start, end),
    get end () { return matcher.bodyEnd },
    parts: (bytes) => ({
      url: `/increment${matcher.ack === undefined ? '' : `?ack=${matcher.ack}`}`,
      authorization: matcher.authorization,
      idempotencyKey: matcher.idempotencyKey,
      body: bytes.subarray(matcher.bodyStart, matcher.bodyEnd),
    }),
  }
}

function ticketShape (): Shape {
  let authorization: string | undefined
  let [end, checked] = [0, false]
  const matcher = new PostMatcher({
    prefix: '/tickets/',
    isHostAllowed: () => true,
    isCallerAllowed: (sent) => {
      [authorization, checked] = [sent, true]
      return true
    },
  })
  let last: string | undefined
  return {
    name: 'ticket',
    read: (bytes, start, until) => {
      checked = false
      const matched = matcher.read(bytes, start, until)
      end = matched === 'whole' ? matcher.end : 0
      // A head that is the same again is not checked again.
      if (checked) last = authorization
      return matched
    },
    get end () { return end },
    parts: () => ({
      url: `/tickets/${matcher.name}`, authorization: last, idempotencyKey: undefined, body: Buffer.alloc(0),
    }),
  }
}

/** Behind each request, to see that Node takes neither less nor more for it. */
const next = 'GET /next HTTP/1.1\r\nHost: x\r\n\r\n'

/** @param seed says all requests */
export async function compareMatcher (seed: number, cases: number, problemsMax = 5): Promise<MatcherResult> {
  const random = new Random(seed)
  const shapes = [incrementShape(), ticketShape()]
  const seen = { increment: { whole: 0, partial: 0, other: 0 }, ticket: { whole: 0, partial: 0, other: 0 } }
  const problems: string[] = []
  let prefixes = 0
  let wholes: Expected[] = []
  for (let i = 0; i < cases && problems.length < problemsMax; i++) {
    const bytes = drawBytes(random)
    // Between other bytes, none of which may matter.
    const [before, behind] = [random.int(0, 40), random.int(0, 40)]
    const around = Buffer.concat([Buffer.alloc(before, 'POST /increment HTTP/1.1\r\n'), bytes,
      Buffer.alloc(behind, '\r\n\r\nContent-Length: 7\r\n')])
    let wholeFor: string | undefined
    for (const shape of shapes) {
      const complain = (what: string): void => {
        problems.push(`seed ${seed}, case ${i}, as ${shape.name}: ${what}\n` +
          `    ${JSON.stringify(bytes.toString('latin1'))}`)
      }
      const matched = shape.read(around, before, before + bytes.length)
      seen[shape.name][matched]++
      const { end } = shape
      if (matched === 'whole') {
        if (wholeFor !== undefined) complain(`it is an ${wholeFor}, too`)
        wholeFor = shape.name
        wholes.push({ bytes: around.subarray(before, end), ...shape.parts(around) })
      }
      // Of a whole request every beginning is partial, and what is of another shape never becomes whole.
      const length = matched === 'whole' ? end - before : bytes.length
      let wasOther = false
      for (const cut of drawCuts(random, length)) {
        prefixes++
        const beginning = shape.read(around, before, before + cut)
        if (matched === 'whole' && (beginning !== 'partial' || (shape.end !== 0 && shape.end !== end))) {
          complain(`whole, but its first ${cut} bytes are ${beginning} and end at ${shape.end - before}`)
        }
        if (matched === 'partial' && beginning !== 'partial') {
          complain(`partial, but its first ${cut} bytes are ${beginning}`)
        }
        if (wasOther && beginning !== 'other') {
          complain(`its first ${cut} bytes are ${beginning}, though fewer of them are of another shape`)
        }
        wasOther = beginning === 'other'
      }
    }
    if (wholes.length >= requestsAtOnce || i === cases - 1) {
      problems.push(...await readWithNode(wholes))
      wholes = []
    }
  }
  return { cases, seen, prefixes, problems }
}

/** Lengths of beginnings in ascending order: some, or now and then all. */
function drawCuts (random: Random, length: number): number[] {
  if (length === 0) return []
  if (length < 600 && random.chance(0.02)) return Array.from({ length }, (_, i) => i)
  return Array.from({ length: 8 }, () => random.int(0, length - 1)).sort((one, other) => one - other)
}

interface ReadByNode {
  readonly request: IncomingMessage
  body: string
}

/** @returns what Node reads otherwise */
async function readWithNode (wholes: readonly Expected[]): Promise<string[]> {
  const readOn = new Map<unknown, ReadByNode[]>()
  const server = createServer({ requireHostHeader: false }, (request, response) => {
    const read: ReadByNode = { request, body: '' }
    readOn.get(request.socket)?.push(read)
    request.setEncoding('latin1').on('data', (text: string) => { read.body += text }).on('end', () => response.end())
  })
  const errors = new Map<unknown, Error>()
  server.on('clientError', (error, socket) => errors.set(socket, error))
  const pipes = wholes.map(({ bytes }) => {
    const pipe = new Pipe()
    readOn.set(pipe, [])
    server.emit('connection', pipe)
    pipe.push(bytes)
    pipe.push(next)
    return pipe
  })
  // Bodies, ends and replies each come at most one iteration later.
  for (let i = 0; i < 4; i++) await new Promise((resolve) => setImmediate(resolve))
  return wholes.flatMap((whole, i) => {
    const pipe = pipes[i]!
    const wrong = differenceOf(whole, readOn.get(pipe)!, pipe, errors.get(pipe))
    pipe.destroy()
    return wrong === undefined ? [] : [`${wrong}\n    ${JSON.stringify(whole.bytes.toString('latin1'))}`]
  })
}

/** @returns in what Node reads another request; undefined if in nothing */
function differenceOf ({ url, authorization, idempotencyKey, body }: Expected, reads: readonly ReadByNode[], pipe: Pipe,
  error: Error | undefined): string | undefined {
  if (error !== undefined) return `Node refuses it: ${error.message}`
  const [first, second, ...more] = reads
  if (first === undefined || second === undefined || more.length > 0) {
    return `Node reads ${reads.length} requests with the next`
  }
  if (second.request.method !== 'GET' || second.request.url !== '/next' || second.body !== '') {
    return `the next is ${second.request.method} ${second.request.url} to Node`
  }
  if (pipe.writableEnded || pipe.destroyed) return 'Node closes the connection'
  const { request } = first
  const { headers } = request
  const isTicket = url.startsWith('/tickets/')
  const facts: ReadonlyArray<readonly [what: string, read: unknown, expected: unknown]> = [
    ['method', request.method, 'POST'],
    ['URL', request.url, url],
    ['version', request.httpVersion, '1.1'],
    ['body', first.body, body.toString('latin1')],
    ['length', Number(headers['content-length'] ?? 0), body.length],
    ['whether there is a length', isTicket || headers['content-length'] !== undefined, true],
    ['Authorization', headers.authorization, authorization],
    ['Idempotency-Key', headers['idempotency-key'], idempotencyKey],
    ['Connection', headers.connection?.toLowerCase() ?? 'keep-alive', 'keep-alive'],
    ['whether the type is right',
      (isTicket && headers['content-type'] === undefined) ||
        /^application\/x-www-form-urlencoded(; ?charset=utf-8)?$/i.test(headers['content-type'] ?? ''), true],
    ['whether JSON is accepted', !isTicket || ['*/*', 'application/json'].includes(headers.accept ?? '*/*'), true],
    ['whether there is a Host', headers.host !== undefined, true],
    ...['transfer-encoding', 'content-encoding', 'expect', 'upgrade', 'origin', 'te',
      'trailer'].map((name) => [name, headers[name], undefined] as const),
    ...['host', 'content-length', 'content-type', 'authorization', 'idempotency-key', 'connection',
      ...isTicket ? ['accept'] : []].map((name) => [`several ${name}`, (request.headersDistinct[name] ?? []).length > 1,
      false] as const),
  ]
  const wrong = facts.find(([, read, expected]) => read !== expected)
  return wrong === undefined
    ? undefined
    : `to Node its ${wrong[0]} is ${JSON.stringify(wrong[1])}, not ${JSON.stringify(wrong[2])}`
}

const usage =
  `Compares the requests that the fast lane's matchers find with those that Node's parser reads, over random and mutated
requests.

usage: node test/fuzz/request-matcher.ts [--seed N] [--cases M]

  --seed   names the cases (default: a new one, which is printed)
  --cases  how many (default: 1000000)

Exit code 0: no difference; 1: the output shows each.
`

async function main (): Promise<number> {
  const { values } = parseArgs({
    options: {
      help: { type: 'boolean', short: 'h' },
      seed: { type: 'string' },
      cases: { type: 'string', default: '1000000' },
    }
  })
  const [seed, cases] = [Number(values.seed ?? randomInt(2 ** 31)), Number(values.cases)]
  if (values.help === true || !Number.isSafeInteger(seed) || !(cases > 0)) {
    process.stdout.write(usage)
    return values.help === true ? 0 : 1
  }
  const startedAt = performance.now()
  process.stdout.write(`seed ${seed}\n`)
  const { cases: done, seen, prefixes, problems } = await compareMatcher(seed, cases)
  for (const problem of problems) process.stdout.write(`${problem}\n`)
  process.stdout.write(`${done} requests and ${prefixes} beginnings of them in ` +
    `${Math.round((performance.now() - startedAt) / 1000)} s: ${JSON.stringify(seen)}, problems: ${problems.length}\n`)
  return problems.length > 0 ? 1 : 0
}

if (import.meta.main) process.exitCode = await main()
