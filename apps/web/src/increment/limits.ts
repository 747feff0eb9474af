// The limits of one worker, and the 503s of what would exceed them: decided before anything is accepted. `admit` asks
// for requests to count, and submit/ for entries of plugins.
import type { AckLevel } from '@gearbox/protocol/ack-levels.ts'
import type { IdempotentRequest } from '@gearbox/protocol/batch.ts'
import type { Config } from '@gearbox/runtime/config.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { idempotentBytes } from '../accumulate/accumulator.ts'
import type { IncrementColumns } from '../accumulate/columns.ts'
import type { Flusher } from '../deliver/flusher.ts'
import type { PendingReply } from '../deliver/pending-replies.ts'
import { packedBytes } from '../deliver/reply-keys.ts'

/** The settings that limit what a worker accepts. */
export type PendingLimits =
  Pick<Config, 'ackTimeoutMs' | 'pendingKeysMax' | 'pendingBytesMax' | 'pendingRequestsMax'>

/**
 * Refuses what has to reach the queue while that has failed for too long.
 * @param otherwise what a client can do in place of waiting
 * @throws RequestError (503)
 */
export function checkQueue (flusher: Flusher, { ackTimeoutMs }: PendingLimits, otherwise = ''): void {
  if (flusher.failingMs <= ackTimeoutMs) return
  throw new RequestError('GBX_QUEUE_UNREACHABLE',
    `queue unavailable (${flusher.failure ?? 'reconnecting'}); try again${otherwise}`)
}

/** Refuses one more reply that waits where there are too many. @throws RequestError (503) */
export function checkReplies (flusher: Flusher, { pendingRequestsMax }: PendingLimits): void {
  if (flusher.pendingReplies < pendingRequestsMax) return
  throw new RequestError('GBX_OVERLOADED',
    'too many replies wait for their ack level (PENDING_REQUESTS_MAX); try again')
}

/**
 * Refuses what would exceed the keys or bytes that may wait.
 * @param added keys, requests and entries that it adds
 * @param bytes that it and its reply take
 * @throws RequestError (503)
 */
export function checkRoom (
  flusher: Flusher, added: number, bytes: number, { pendingKeysMax, pendingBytesMax }: PendingLimits
): void {
  if (added > 0 && flusher.pendingKeys + added > pendingKeysMax) throw tooManyKeys()
  if (flusher.pendingBytes + flusher.replyBytes + bytes > pendingBytesMax) throw tooManyBytes()
}

/**
 * The same for a request to count.
 * @param repeats whether it is a repeat of an idempotent request that waits, and so adds nothing but a reply
 * @throws RequestError (503) if this request would exceed the keys or bytes that one worker may have pending
 */
export function checkPending (
  flusher: Flusher, increments: IncrementColumns, once: IdempotentRequest | undefined, repeats: boolean,
  level: AckLevel, reply: PendingReply, { pendingKeysMax, pendingBytesMax }: PendingLimits
): void {
  const room = pendingBytesMax - flusher.pendingBytes - flusher.replyBytes
  const bytesMost = increments.length * pairBytesMost + requestBytesMost
  if (flusher.pendingKeys + increments.length <= pendingKeysMax && bytesMost <= room) return
  // Near a limit it is worth finding out which keys are new.
  const added = repeats ? 0 : once === undefined ? countNew(flusher, increments) : once.sums.size
  if (added > 0 && flusher.pendingKeys + (once === undefined ? added : 1) > pendingKeysMax) {
    throw tooManyKeys()
  }
  // Where no other reply is pending, a limit below what a single one takes must not refuse all of them.
  const isOneOfMany = level !== 'memory' && flusher.pendingReplies > 0
  const replyBytes = isOneOfMany ? bytesOfReply(reply, level, increments, once) : 0
  if (added * keyBytesEstimate + replyBytes > room && added + replyBytes > 0) {
    throw tooManyBytes()
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

function tooManyKeys (): RequestError {
  return new RequestError('GBX_OVERLOADED', 'too many keys wait to be flushed (PENDING_KEYS_MAX); try again')
}

function tooManyBytes (): RequestError {
  return new RequestError('GBX_OVERLOADED',
    'too many bytes wait to be flushed or stored (PENDING_BYTES_MAX); try again')
}
