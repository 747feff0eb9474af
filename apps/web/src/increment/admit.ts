// Decides whether a count request is accepted, and what its reply waits for: parse → limits → accumulate. Both the
// fast lane and the standard path call it, so that a request means the same whichever way it came. It feeds the
// flusher.
import { createHash } from 'node:crypto'
import { ackLevels, type AckLevel } from '@gearbox/protocol/ack-levels.ts'
import { fits, idempotentBytesMax, type IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Rejection } from '@gearbox/protocol/progress.ts'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { echo, echoAll } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { oneOf } from '@gearbox/runtime/http/query.ts'
import type { Flusher } from '../deliver/flusher.ts'
import { parseForm } from './form.ts'
import { idempotentBytes } from '../accumulate/accumulator.ts'
import { packedBytes, packKeys } from '../deliver/reply-keys.ts'
import type { PendingReply } from '../deliver/pending-replies.ts'
import type { IncrementColumns } from '../accumulate/columns.ts'

/** The settings that decide about a request. */
type Limits = Pick<Config,
  'ack' | 'ackTimeoutMs' | 'bodyPairsMax' | 'pendingKeysMax' | 'pendingBytesMax' | 'pendingRequestsMax' | 'apiKeys'>

/** What `admit` works with: the same for all requests of a worker. */
export interface AdmitOptions {
  readonly limits: Limits
  readonly flusher: Flusher
  readonly queue: ProducerQueue
}

/** A request whose head was checked: its route, its Host, its API key and its Content-Type are right. */
export interface CountRequest {
  /** `?ack=` and `?form=` as sent. */
  readonly ack: unknown
  readonly form: unknown
  /** The Idempotency-Key header. */
  readonly idempotencyKey: unknown
  readonly authorization: string | undefined
  /** The body is [start, end) of these, which are not kept once `admit` returns. */
  readonly bytes: Buffer
  readonly start: number
  readonly end: number
}

/**
 * Counts a request whole, or not at all.
 * @param reply settled later, with what became of it; never if it is 'accepted'
 * @returns 'pending': the reply waits for its ack level; 'accepted': the level is memory, so the reply is due now
 * @throws RequestError if nothing was counted
 */
export function admit (
  { limits, flusher, queue }: AdmitOptions, request: CountRequest, reply: PendingReply
): 'pending' | 'accepted' {
  const { bytes, start, end } = request
  const level = ackLevel(request.ack, limits.ack)
  const form = { pairsMax: limits.bodyPairsMax, pairsOnly: pairsOnly(request.form) }
  const increments = parseForm(bytes, form, start, end)
  const once = readIdempotent(request, increments, limits.apiKeys.length > 0)
  if (once !== undefined && !fits(once, end - start)) {
    throw new RequestError('GBX_BODY_TOO_LARGE', 'a request with an Idempotency-Key travels whole, ' +
      `with at most ${idempotentBytesMax} bytes of JSON; send several, each with its own key`)
  }
  if (level !== 'memory' && flusher.failingMs > limits.ackTimeoutMs) {
    throw new RequestError('GBX_QUEUE_UNREACHABLE',
      `queue unavailable (${flusher.failure ?? 'reconnecting'}); try again, or count with ?ack=memory`)
  }
  const pending = once === undefined ? undefined : flusher.pendingIdempotent(once.id)
  if (once !== undefined && pending !== undefined && !sameSums(pending.sums, once.sums)) {
    throw refusal([{ seq: 0, once: once.id, reason: 'other body' }])
  }
  // Where the queue itself keeps nothing, only the database keeps what was pushed.
  const reached = level === 'queued' && queue.pushIsStored ? 'stored' : level
  checkPending(flusher, increments, once, pending !== undefined, reached, reply, limits)
  if (level !== 'memory' && flusher.pendingReplies >= limits.pendingRequestsMax) {
    throw new RequestError('GBX_OVERLOADED',
      'too many replies wait for their ack level (PENDING_REQUESTS_MAX); try again')
  }
  if (reached === 'memory') {
    flusher.accept(increments, once, reached, undefined)
    return 'accepted'
  }
  reply.pendingSince = performance.now()
  if (reached === 'stored') {
    if (once === undefined) reply.keys = packKeys(increments)
    // A repeat waits for the one that came first.
    else reply.once = pending ?? once
  }
  flusher.accept(increments, once, reached, reply)
  return 'pending'
}

/** The error reply to a request of which the consumer refused something: all of it, or the keys that it names. */
export function refusal (refused: readonly Rejection[]): RequestError {
  const reasons = new Set(refused.map(({ reason }) => reason))
  if (reasons.has('other body')) {
    return new RequestError('GBX_OTHER_BODY',
      'this Idempotency-Key was already used with a different body; nothing of this one was counted')
  }
  if (reasons.has('too late')) {
    return new RequestError('GBX_TOO_LATE',
      'this Idempotency-Key came so late that it may be a repeat; nothing of it was counted')
  }
  const keys = [...new Set(refused.flatMap(({ key }) => key ?? []))]
  if (keys.length === 0) {
    return new RequestError('GBX_TOTAL_OVERFLOW', 'a total would leave 64 bits; "npm run rejected" lists which ones')
  }
  const { named, more } = echoAll(keys)
  const rest = more === 0 ? '' : ` and ${more} more`
  const whole = refused.some(({ once }) => once !== undefined)
  return new RequestError('GBX_TOTAL_OVERFLOW', `the total would leave 64 bits for ${named}${rest}: ` +
    (whole ? 'nothing of this request was counted' : 'these were refused, all other pairs were counted'))
}

function ackLevel (text: unknown, fallback: AckLevel): AckLevel {
  if (text === undefined) return fallback
  const level = ackLevels.find((name) => name === text)
  if (level === undefined) {
    throw new RequestError('GBX_BAD_QUERY', `"ack" ${oneOf(ackLevels)}, not ${echo(String(text))}`)
  }
  return level
}

function pairsOnly (text: unknown): boolean {
  if (text !== undefined && text !== 'pairs') {
    throw new RequestError('GBX_BAD_QUERY', `"form" ${oneOf(['pairs'])}, not ${echo(String(text))}`)
  }
  return text === 'pairs'
}

/** @throws RequestError (400) for a header that is no idempotency key */
function readIdempotent (
  { idempotencyKey: key, authorization }: CountRequest, increments: IncrementColumns, callersKnown: boolean
): IdempotentRequest | undefined {
  if (key === undefined) return undefined
  if (typeof key !== 'string' || !/^[\x21-\x7e]{1,255}$/.test(key)) {
    const sent = typeof key === 'string' ? `, not ${echo(key)}` : ''
    throw new RequestError('GBX_BAD_IDEMPOTENCY_KEY',
      `the Idempotency-Key must be 1 to 255 visible ASCII characters, and one header${sent}`)
  }
  // Where nobody checks who calls, this header means nothing: a client, or a proxy, may send it with one attempt only.
  const caller = callersKnown ? callerOf(authorization) : ''
  // With its length before each, no caller can make another's id.
  const id = createHash('sha256').update(`${caller.length}:${caller}${key.length}:${key}`).digest('hex')
  return { id, at: Date.now(), sums: increments.sums() }
}

/** The bearer key, however the scheme before it is spelt. */
function callerOf (authorization = ''): string {
  return authorization.replace(/^[ \t]*bearer[ \t]+/i, '').trim()
}

function sameSums (some: IdempotentRequest['sums'], others: IdempotentRequest['sums']): boolean {
  return some.size === others.size && [...some].every(([key, sum]) => others.get(key) === sum)
}

/**
 * @param repeats whether it is a repeat of an idempotent request that waits, and so adds nothing but a reply
 * @throws RequestError (503) if this request would exceed the keys or bytes that one worker may have pending
 */
function checkPending (
  flusher: Flusher, increments: IncrementColumns, once: IdempotentRequest | undefined, repeats: boolean,
  level: AckLevel, reply: PendingReply, { pendingKeysMax, pendingBytesMax }: Limits
): void {
  const room = pendingBytesMax - flusher.pendingBytes - flusher.replyBytes
  const bytesMost = increments.length * pairBytesMost + requestBytesMost
  if (flusher.pendingKeys + increments.length <= pendingKeysMax && bytesMost <= room) return
  // Near a limit it is worth finding out which keys are new.
  const added = repeats ? 0 : once === undefined ? countNew(flusher, increments) : once.sums.size
  if (added > 0 && flusher.pendingKeys + (once === undefined ? added : 1) > pendingKeysMax) {
    throw new RequestError('GBX_OVERLOADED', 'too many keys wait to be flushed (PENDING_KEYS_MAX); try again')
  }
  // Where no other reply is pending, a limit below what a single one takes must not refuse all of them.
  const isOneOfMany = level !== 'memory' && flusher.pendingReplies > 0
  const replyBytes = isOneOfMany ? bytesOfReply(reply, level, increments, once) : 0
  if (added * keyBytesEstimate + replyBytes > room && added + replyBytes > 0) {
    throw new RequestError('GBX_OVERLOADED',
      'too many bytes wait to be flushed or stored (PENDING_BYTES_MAX); try again')
  }
}

/** Distinct keys that are not pending yet. */
function countNew (flusher: Flusher, increments: IncrementColumns): number {
  return new Set(increments.keys().filter((_, i) => !flusher.isPending(increments, i))).size
}

/** Bytes that the reply will take while it is pending. */
function bytesOfReply (
  { ownBytes }: PendingReply, level: AckLevel, increments: IncrementColumns, once: IdempotentRequest | undefined
): number {
  if (level === 'queued') return ownBytes
  return ownBytes + (once === undefined ? packedBytes(increments) : idempotentBytes(once))
}

/** Most that one pending key is counted with: a key of 256 bytes and its entry. */
const keyBytesEstimate = 512

/**
 * Most that a request takes per pair: once for the pending key, and once for what its reply keeps (two bytes per
 * character, and an entry).
 */
const pairBytesMost = 2 * keyBytesEstimate + 128

/** Most that it takes in addition: its reply and, if it is idempotent, itself twice. */
const requestBytesMost = 18 * 1024
