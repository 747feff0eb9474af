// Decides whether a count request is accepted, and what its reply waits for: parse → limits → accumulate. Both the
// fast lane and the standard path call it, so that a request means the same whichever way it came. It feeds the
// flusher.
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
import { callerOf, checkKey, idOf } from './idempotency.ts'
import { checkPending, checkQueue, checkReplies, type PendingLimits } from './limits.ts'
import { packKeys } from '../deliver/reply-keys.ts'
import type { PendingReply } from '../deliver/pending-replies.ts'
import type { IncrementColumns } from '../accumulate/columns.ts'

/** The settings that decide about a request. */
type Limits = PendingLimits & Pick<Config, 'ack' | 'bodyPairsMax' | 'apiKeys'>

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
  options: AdmitOptions, request: CountRequest, reply: PendingReply
): 'pending' | 'accepted' {
  const { limits } = options
  const { bytes, start, end } = request
  const level = readLevel(request.ack, limits.ack)
  const form = { pairsMax: limits.bodyPairsMax, pairsOnly: pairsOnly(request.form) }
  const increments = parseForm(bytes, form, start, end)
  const once = readIdempotent(request, increments, limits.apiKeys.length > 0)
  return admitIncrements(options, increments, once, level, end - start, reply)
}

/**
 * The same for increments that were parsed and checked.
 * @param once the request itself, if it has an Idempotency-Key
 * @param bodyBytes bytes of the body that they came in, or would
 */
export function admitIncrements (
  { limits, flusher, queue }: AdmitOptions, increments: IncrementColumns, once: IdempotentRequest | undefined,
  level: AckLevel, bodyBytes: number, reply: PendingReply
): 'pending' | 'accepted' {
  if (once !== undefined && !fits(once, bodyBytes)) {
    throw new RequestError('GBX_BODY_TOO_LARGE', 'a request with an Idempotency-Key travels whole, ' +
      `with at most ${idempotentBytesMax} bytes of JSON; send several, each with its own key`)
  }
  if (level !== 'memory') checkQueue(flusher, limits, ', or count with ?ack=memory')
  const pending = once === undefined ? undefined : flusher.pendingIdempotent(once.id)
  if (once !== undefined && pending !== undefined && !sameSums(pending.sums, once.sums)) {
    throw refusal([{ seq: 0, once: once.id, reason: 'other body' }])
  }
  // Where the queue itself keeps nothing, only the database keeps what was pushed.
  const reached = level === 'queued' && queue.pushIsStored ? 'stored' : level
  checkPending(flusher, increments, once, pending !== undefined, reached, reply, limits)
  if (level !== 'memory') checkReplies(flusher, limits)
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

/** The ack level of that name. @throws RequestError (400) */
export function readLevel (text: unknown, fallback: AckLevel): AckLevel {
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
  { idempotencyKey, authorization }: CountRequest, increments: IncrementColumns, callersKnown: boolean
): IdempotentRequest | undefined {
  if (idempotencyKey === undefined) return undefined
  const key = checkKey(idempotencyKey)
  // Where nobody checks who calls, this header means nothing: a client, or a proxy, may send it with one attempt only.
  const caller = callersKnown ? callerOf(authorization) : ''
  return { id: idOf(caller, key), at: Date.now(), sums: increments.sums() }
}

function sameSums (some: IdempotentRequest['sums'], others: IdempotentRequest['sums']): boolean {
  return some.size === others.size && [...some].every(([key, sum]) => others.get(key) === sum)
}
