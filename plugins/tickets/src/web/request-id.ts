// PRODUCER.N: how a request that got a 202 is asked for later, at any worker. N says itself where in the log to look,
// and can't be guessed: whoever knows it gets the receipt.
import { createHash } from 'node:crypto'
import { countMax, entryTicketsMax } from '../entry.ts'
import { isEqual, mac } from '../receipt.ts'

/** Where to look: at a place among all tickets that a worker sent, or under an Idempotency-Key. */
export type RequestId = {
  readonly producer: string
} & ({
  readonly kind: 'shared'
  /** `request` of the log plus the place in its entry. */
  readonly place: number
  readonly count: number
  /** Shows that the worker gave it out. */
  readonly code: string
} | {
  readonly kind: 'keyed'
  /** `request` of the log, negative. */
  readonly request: number
})

/** 2 to this power is more than the most tickets of a request. */
const countBits = 10n
const codeBits = 64n
if (countMax > 2 ** Number(countBits)) throw new Error('a request for that many tickets has no address')

/** `request` of the first ticket in a worker's entry number `group`, from 1. */
export function firstPlace (group: number): number {
  return group * entryTicketsMax
}

/** The address of a request in an entry that many share. @param secret the worker's */
export function sharedId (producer: string, secret: string, place: number, count: number): string {
  const where = (BigInt(place) << countBits) | BigInt(count - 1)
  return `${producer}.${((where << codeBits) | codeOf(secret, place, count)) << 1n}`
}

/** The address of a request with an Idempotency-Key. @param request as `keyedRequest` returns it */
export function keyedId (producer: string, request: number): string {
  return `${producer}.${(BigInt(-request) << 1n) | 1n}`
}

/** What the log has as `request` of an entry with an Idempotency-Key: the same for every repeat. */
export function keyedRequest (name: string, { idempotencyKey = '', caller = '' }: {
  readonly idempotencyKey?: string | undefined
  readonly caller?: string | undefined
}): number {
  const hash = createHash('sha256').update(JSON.stringify([name, caller, idempotencyKey])).digest()
  // 48 bits. A number would have to be guessed right among 2^48 per request in the log.
  return -1 - hash.readUIntBE(0, 6)
}

/** Reads an address; undefined for a text that is none. */
export function parseRequestId (text: string): RequestId | undefined {
  const [, producer, digits] = /^([0-9a-f-]{36})\.(\d{1,64})$/.exec(text) ?? []
  if (producer === undefined || digits === undefined) return undefined
  const number = BigInt(digits)
  if ((number & 1n) === 1n) {
    const request = Number(number >> 1n)
    return Number.isSafeInteger(request) ? { producer, kind: 'keyed', request: -request } : undefined
  }
  const code = (number >> 1n) & ((1n << codeBits) - 1n)
  const where = number >> (1n + codeBits)
  const place = Number(where >> countBits)
  if (!Number.isSafeInteger(place)) return undefined
  return { producer, kind: 'shared', place, count: Number(where & ((1n << countBits) - 1n)) + 1, code: String(code) }
}

/** Whether an address was given out by the worker that has this secret. */
export function isGenuine ({ place, count, code }: RequestId & { kind: 'shared' }, secret: string): boolean {
  return isEqual(code, String(codeOf(secret, place, count)))
}

function codeOf (secret: string, place: number, count: number): bigint {
  return Buffer.from(mac(secret, `${place}.${count}`), 'base64url').readBigUInt64BE()
}
