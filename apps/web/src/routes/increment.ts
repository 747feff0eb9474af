// POST /increment: parse, accept, answer as safe as was asked for.
import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import type { Once } from '@gearbox/queue/batch.ts'
import type { ProducerQueue, Rejection } from '@gearbox/queue/queue.ts'
import { ackLevels, type AckLevel, type Config } from '@gearbox/runtime/config.ts'
import { echo, echoAll, errorSchema, RequestError } from '../errors.ts'
import type { Flusher } from '../flusher.ts'
import { parseForm, sumByKey, type Increment } from '../form.ts'
import type { Outcome } from '../held-replies.ts'

export interface IncrementOptions {
  readonly limits: Pick<Config, 'ack' | 'ackTimeoutMs' | 'bodyPairsMax' | 'corsOrigins' | 'pendingKeysMax' | 'pendingBytesMax' | 'pendingRequestsMax'>
  readonly flusher: Flusher
  readonly queue: ProducerQueue
}

interface Query { ack?: unknown, form?: unknown }

const schema = {
  tags: ['counting'],
  summary: 'Adds to totals',
  description: 'Pairs such as `foo=1&bar=-20&foo=3`: each adds to its key. A body of exactly the two fields `key` and `value` adds `value` to the counter named by `key` (`form=pairs` turns that reading off).',
  consumes: ['application/x-www-form-urlencoded'],
  querystring: {
    type: 'object',
    properties: {
      ack: { type: 'string', enum: ackLevels, description: 'how safe the increment is to be when the reply comes; default: ACK' },
      form: { type: 'string', enum: ['pairs'], description: 'key=…&value=… is two pairs as well' },
    },
  },
  headers: { type: 'object', properties: { 'Idempotency-Key': { type: 'string', description: '1 to 255 visible ASCII characters: within IDEMPOTENCY_HOURS requests with the same one count once' } } },
  body: { type: 'object', additionalProperties: { type: 'integer', format: 'int64' }, example: { foo: 1, bar: -20 } },
  response: {
    202: { type: 'null', description: 'in memory only: asked for, or the level was not reached in time; it is still on its way' },
    204: { type: 'null', description: 'the ack level asked for was reached' },
    ...Object.fromEntries([
      [400, 'malformed: the message says which pair, and why'],
      [401, 'API_KEYS is set and the request has none of them'],
      [403, 'a page of an origin that CORS_ORIGINS does not list'],
      [408, 'the request did not arrive in time'],
      [413, 'more than BODY_BYTES_MAX'],
      [415, 'another Content-Type or charset, or a Content-Encoding'],
      [422, 'the request alone leaves 64 bits, a total would (GBX_TOTAL_OVERFLOW names the keys), or an Idempotency-Key came with another body'],
      [503, 'a limit is reached or the queue out of reach: try again after Retry-After'],
    ].map(([status, description]) => [status, { description, ...errorSchema }])),
  },
} as const

export async function incrementRoutes (app: FastifyInstance, { limits, flusher, queue }: IncrementOptions): Promise<void> {
  app.post<{ Querystring: Query, Body: Buffer | undefined }>('/increment', {
    schema,
    // The schema is for the document: what it says is checked below, with messages that name the pair.
    validatorCompiler: () => () => true,
    onRequest: (request, _reply, done) => done(checkHead(request, limits.corsOrigins)),
  }, (request, reply) => {
    const level = ackLevel(request.query.ack, limits.ack)
    const increments = parseForm(request.body ?? noBody, { pairsMax: limits.bodyPairsMax, pairsOnly: pairsOnly(request.query.form) })
    const once = readOnce(request, increments)
    if (level !== 'memory' && flusher.failingMs > limits.ackTimeoutMs) {
      throw new RequestError('GBX_QUEUE_UNREACHABLE', `the queue takes no batches (${flusher.failure ?? 'it is just coming back'}); try again, or count with ?ack=memory`)
    }
    const pending = once === undefined ? undefined : flusher.pendingOnce(once.id)
    if (once !== undefined && pending !== undefined && !sameSums(pending.sums, once.sums)) throw refusal([{ seq: 0, once: once.id, reason: 'other body' }])
    // A repeat of what waits adds nothing but a reply.
    if (pending === undefined) checkPending(flusher, increments, once, limits)
    if (level !== 'memory' && flusher.heldReplies >= limits.pendingRequestsMax) {
      throw new RequestError('GBX_OVERLOADED', 'too many replies wait for their ack level (PENDING_REQUESTS_MAX); try again')
    }
    // Where the queue has no place of its own, only the database keeps what was pushed.
    const reached = level === 'queued' && queue.pushIsStored ? 'stored' : level
    if (reached === 'memory') {
      flusher.accept(increments, once, reached, undefined)
      reply.code(202).send()
      return
    }
    flusher.accept(increments, once, reached, {
      heldAt: performance.now(),
      keys: reached === 'stored' ? increments.map(({ key }) => key) : [],
      once: once?.id,
      settle: (outcome) => settle(reply, outcome),
    })
  })
}

const noBody = Buffer.alloc(0)

function settle (reply: FastifyReply, outcome: Outcome): void {
  if (outcome === 'reached') reply.code(204).send()
  else if (outcome === 'late') reply.code(202).send()
  else reply.send(refusal(outcome.refused))
}

function refusal (refused: readonly Rejection[]): RequestError {
  const reasons = new Set(refused.map(({ reason }) => reason))
  if (reasons.has('other body')) return new RequestError('GBX_OTHER_BODY', 'this Idempotency-Key came before with another body; nothing of this one was counted')
  if (reasons.has('too late')) return new RequestError('GBX_TOO_LATE', 'this Idempotency-Key came so late that it may be a repeat; nothing of it was counted')
  const keys = [...new Set(refused.flatMap(({ key }) => key ?? []))]
  if (keys.length === 0) return new RequestError('GBX_TOTAL_OVERFLOW', 'a total would leave 64 bits: which ones, "npm run rejected" tells')
  const { named, more } = echoAll(keys)
  const rest = more === 0 ? '' : ` and ${more} more`
  return new RequestError('GBX_TOTAL_OVERFLOW', `the total would leave 64 bits for ${named}${rest}: ${refused.some(({ once }) => once !== undefined) ? 'nothing of this request was counted' : 'these were refused, all other pairs were counted'}`)
}

/** What can be refused before the body is read. */
function checkHead (request: FastifyRequest, corsOrigins: readonly string[]): RequestError | undefined {
  const { origin, host, 'content-type': type, 'content-encoding': encoding, 'content-length': length, 'transfer-encoding': transfer } = request.headers
  if (origin !== undefined && !corsOrigins.includes(origin) && !(URL.canParse(origin) && new URL(origin).host === host)) {
    return new RequestError('GBX_FORBIDDEN_ORIGIN', `pages of ${echo(origin)} may not count here; CORS_ORIGINS lists which may`)
  }
  const empty = transfer === undefined && (length === undefined || length === '0')
  if (encoding !== undefined || (type === undefined ? !empty : !isForm(type))) {
    return new RequestError('GBX_UNSUPPORTED_MEDIA_TYPE', 'the Content-Type must be application/x-www-form-urlencoded, in UTF-8 and without Content-Encoding')
  }
  return undefined
}

const formType = /^application\/x-www-form-urlencoded[ \t]*(?:;[ \t]*(?:charset=(?:utf-8|"utf-8")[ \t]*)?)*$/i

function isForm (type: string): boolean {
  return type === 'application/x-www-form-urlencoded' || formType.test(type)
}

function ackLevel (text: unknown, fallback: AckLevel): AckLevel {
  if (text === undefined) return fallback
  const level = ackLevels.find((name) => name === text)
  if (level === undefined) throw new RequestError('GBX_BAD_QUERY', `"ack" must be one of ${ackLevels.join(', ')}`)
  return level
}

function pairsOnly (text: unknown): boolean {
  if (text !== undefined && text !== 'pairs') throw new RequestError('GBX_BAD_QUERY', '"form" can only be "pairs"')
  return text === 'pairs'
}

/** @throws RequestError (400) for a header that is no idempotency key */
function readOnce ({ headers }: FastifyRequest, increments: readonly Increment[]): Once | undefined {
  const key = headers['idempotency-key']
  if (key === undefined) return undefined
  if (typeof key !== 'string' || !/^[\x21-\x7e]{1,255}$/.test(key)) {
    throw new RequestError('GBX_BAD_IDEMPOTENCY_KEY', 'the Idempotency-Key must be 1 to 255 visible ASCII characters, and one header')
  }
  const caller = headers.authorization?.replace(/^bearer +/i, '').trim() ?? ''
  // With its length before each, no caller can make another's id.
  const id = createHash('sha256').update(`${caller.length}:${caller}${key.length}:${key}`).digest('hex')
  return { id, at: Date.now(), sums: sumByKey(increments) }
}

function sameSums (some: Once['sums'], others: Once['sums']): boolean {
  return some.size === others.size && [...some].every(([key, sum]) => others.get(key) === sum)
}

/** @throws RequestError (503) if this request would go over what one worker may hold */
function checkPending (flusher: Flusher, increments: readonly Increment[], once: Once | undefined, { pendingKeysMax, pendingBytesMax }: IncrementOptions['limits']): void {
  const bytes = increments.length * keyBytesEstimate
  if (flusher.pendingKeys + increments.length <= pendingKeysMax && flusher.pendingBytes + bytes <= pendingBytesMax) return
  // Near a limit it is worth finding out which keys are new.
  const added = once === undefined
    ? new Set(increments.map(({ key }) => key).filter((key) => !flusher.isPending(key)))
    : once.sums
  if (added.size === 0) return
  if (flusher.pendingKeys + (once === undefined ? added.size : 1) > pendingKeysMax) throw new RequestError('GBX_OVERLOADED', 'too many keys wait to be flushed (PENDING_KEYS_MAX); try again')
  if (flusher.pendingBytes + added.size * keyBytesEstimate > pendingBytesMax) throw new RequestError('GBX_OVERLOADED', 'too many bytes wait to be flushed (PENDING_BYTES_MAX); try again')
}

/** Most that one pending key is counted with: a key of 256 bytes and its entry. */
const keyBytesEstimate = 512
