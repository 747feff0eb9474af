// What a request to count comes to, whichever lane it came by: parse → limits → accumulate, and the reply it waits for.
import { createHash } from 'node:crypto'
import { fits, onceBytesMax, type Once } from '@gearbox/queue/batch.ts'
import type { ProducerQueue, Rejection } from '@gearbox/queue/queue.ts'
import { ackLevels, type AckLevel, type Config } from '@gearbox/runtime/config.ts'
import { echo, echoAll, RequestError } from './errors.ts'
import type { Flusher } from './flusher.ts'
import { parseForm } from './form.ts'
import type { HeldReply } from './held-replies.ts'
import type { Increments } from './increments.ts'
import { oneOf } from './query.ts'

export interface CountOptions {
  readonly limits: Pick<Config, 'ack' | 'ackTimeoutMs' | 'bodyPairsMax' | 'pendingKeysMax' | 'pendingBytesMax' | 'pendingRequestsMax'>
  readonly flusher: Flusher
  readonly queue: ProducerQueue
}

/** A request whose head was found in order. */
export interface CountRequest {
  /** `?ack=` and `?form=` as sent. */
  readonly ack: unknown
  readonly form: unknown
  /** The Idempotency-Key header. */
  readonly idempotencyKey: unknown
  readonly authorization: string | undefined
  /** The body is [start, end) of these, which are not kept. */
  readonly bytes: Buffer
  readonly start: number
  readonly end: number
}

/**
 * Counts a request whole, or not at all.
 * @param reply settled later, with what became of it; never if it is 'in memory'
 * @returns whether the reply is held until its ack level is reached, or was only to be in memory and so is due now
 * @throws RequestError if nothing was counted
 */
export function count ({ limits, flusher, queue }: CountOptions, request: CountRequest, reply: HeldReply): 'held' | 'in memory' {
  const level = ackLevel(request.ack, limits.ack)
  const increments = parseForm(request.bytes, { pairsMax: limits.bodyPairsMax, pairsOnly: pairsOnly(request.form) }, request.start, request.end)
  const once = readOnce(request, increments)
  if (once !== undefined && !fits(once, request.end - request.start)) {
    throw new RequestError('GBX_BODY_TOO_LARGE',
      `a request with an Idempotency-Key travels whole, with at most ${onceBytesMax} bytes of JSON; send several, each with its own key`)
  }
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
    return 'in memory'
  }
  reply.heldAt = performance.now()
  if (reached === 'stored') reply.keys = increments.keys()
  reply.once = once?.id
  flusher.accept(increments, once, reached, reply)
  return 'held'
}

/** What a client is told of what the consumer refused. */
export function refusal (refused: readonly Rejection[]): RequestError {
  const reasons = new Set(refused.map(({ reason }) => reason))
  if (reasons.has('other body')) return new RequestError('GBX_OTHER_BODY', 'this Idempotency-Key came before with another body; nothing of this one was counted')
  if (reasons.has('too late')) return new RequestError('GBX_TOO_LATE', 'this Idempotency-Key came so late that it may be a repeat; nothing of it was counted')
  const keys = [...new Set(refused.flatMap(({ key }) => key ?? []))]
  if (keys.length === 0) return new RequestError('GBX_TOTAL_OVERFLOW', 'a total would leave 64 bits: which ones, "npm run rejected" tells')
  const { named, more } = echoAll(keys)
  const rest = more === 0 ? '' : ` and ${more} more`
  return new RequestError('GBX_TOTAL_OVERFLOW', `the total would leave 64 bits for ${named}${rest}: ${refused.some(({ once }) => once !== undefined) ? 'nothing of this request was counted' : 'these were refused, all other pairs were counted'}`)
}

function ackLevel (text: unknown, fallback: AckLevel): AckLevel {
  if (text === undefined) return fallback
  const level = ackLevels.find((name) => name === text)
  if (level === undefined) throw new RequestError('GBX_BAD_QUERY', `"ack" ${oneOf(ackLevels)}, not ${echo(String(text))}`)
  return level
}

function pairsOnly (text: unknown): boolean {
  if (text !== undefined && text !== 'pairs') throw new RequestError('GBX_BAD_QUERY', `"form" ${oneOf(['pairs'])}, not ${echo(String(text))}`)
  return text === 'pairs'
}

/** @throws RequestError (400) for a header that is no idempotency key */
function readOnce ({ idempotencyKey: key, authorization }: CountRequest, increments: Increments): Once | undefined {
  if (key === undefined) return undefined
  if (typeof key !== 'string' || !/^[\x21-\x7e]{1,255}$/.test(key)) {
    const sent = typeof key === 'string' ? `, not ${echo(key)}` : ''
    throw new RequestError('GBX_BAD_IDEMPOTENCY_KEY', `the Idempotency-Key must be 1 to 255 visible ASCII characters, and one header${sent}`)
  }
  const caller = authorization?.replace(/^bearer +/i, '').trim() ?? ''
  // With its length before each, no caller can make another's id.
  const id = createHash('sha256').update(`${caller.length}:${caller}${key.length}:${key}`).digest('hex')
  return { id, at: Date.now(), sums: increments.sums() }
}

function sameSums (some: Once['sums'], others: Once['sums']): boolean {
  return some.size === others.size && [...some].every(([key, sum]) => others.get(key) === sum)
}

/** @throws RequestError (503) if this request would go over what one worker may hold */
function checkPending (flusher: Flusher, increments: Increments, once: Once | undefined, { pendingKeysMax, pendingBytesMax }: CountOptions['limits']): void {
  const bytes = increments.length * keyBytesEstimate
  if (flusher.pendingKeys + increments.length <= pendingKeysMax && flusher.pendingBytes + bytes <= pendingBytesMax) return
  // Near a limit it is worth finding out which keys are new.
  const added = once === undefined
    ? new Set(increments.keys().filter((_, i) => !flusher.isPending(increments, i)))
    : once.sums
  if (added.size === 0) return
  if (flusher.pendingKeys + (once === undefined ? added.size : 1) > pendingKeysMax) throw new RequestError('GBX_OVERLOADED', 'too many keys wait to be flushed (PENDING_KEYS_MAX); try again')
  if (flusher.pendingBytes + added.size * keyBytesEstimate > pendingBytesMax) throw new RequestError('GBX_OVERLOADED', 'too many bytes wait to be flushed (PENDING_BYTES_MAX); try again')
}

/** Most that one pending key is counted with: a key of 256 bytes and its entry. */
const keyBytesEstimate = 512
