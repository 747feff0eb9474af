// Counts pairs that a plugin's route has made, with the promise of a POST: checked like a body, and admitted by the
// same code. A plugin's context calls it.
import { narrow, type Sum } from '@gearbox/protocol/int64.ts'
import { keyProblem } from '@gearbox/protocol/key.ts'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import type { IncrementOptions, Pairs } from '@gearbox/runtime/plugin.ts'
import { IncrementColumns } from '../accumulate/columns.ts'
import { hashOf } from '../accumulate/key-table.ts'
import { notPending, type Outcome } from '../deliver/pending-replies.ts'
import { admitIncrements, readLevel, refusal, type AdmitOptions } from './admit.ts'
import { isInt64 } from './form.ts'
import { checkKey, idOf } from './idempotency.ts'

/** About what Node and Fastify keep of the request whose route waits. */
const replyBytes = 4 * 1024

/** Of a body, what a pair has besides its key: 20 characters of a 64-bit integer, `=` and `&`. */
const valueBytesMost = 22

/** The pairs that were read last: what was counted is not kept. */
const read = new IncrementColumns()

/**
 * Counts pairs: all of them, or nothing.
 * @param plugin whose route counts: an Idempotency-Key means something else to each
 * @returns 'reached' when the ack level is reached; 'accepted' if that is memory, or was not reached in time
 * @throws RequestError nothing was counted, but for GBX_TOTAL_OVERFLOW, which names the keys that were refused
 */
export async function countPairs (
  options: AdmitOptions, plugin: string, pairs: Pairs, { ack, idempotencyKey, caller = '' }: IncrementOptions = {}
): Promise<'reached' | 'accepted'> {
  const { limits } = options
  const level = readLevel(ack, limits.ack)
  const bodyBytes = readPairs(pairs, limits.bodyPairsMax)
  const once = idempotencyKey === undefined
    ? undefined
    : { id: idOf(caller, checkKey(idempotencyKey), plugin), at: Date.now(), sums: read.sums() }
  const outcome = await new Promise<Outcome>((resolve) => {
    const reply = { ...notPending, ownBytes: replyBytes, settle: resolve }
    if (admitIncrements(options, read, once, level, bodyBytes, reply) === 'accepted') resolve('accepted')
  })
  if (typeof outcome === 'object') throw refusal(outcome.refused)
  return outcome === 'reached' ? 'reached' : 'accepted'
}

/** Fills the columns. @returns how many bytes a body of these pairs would have at most @throws RequestError (400) */
function readPairs (pairs: Pairs, pairsMax: number): number {
  const entries: ReadonlyArray<[string, number | bigint]> = isMap(pairs) ? [...pairs] : Object.entries(pairs)
  if (entries.length === 0) throw new RequestError('GBX_EMPTY_BODY', 'there are no pairs to count')
  if (entries.length > pairsMax) {
    throw new RequestError('GBX_TOO_MANY_PAIRS', `more than ${pairsMax} pairs; count them in several requests`)
  }
  const checked = entries.map(([key, value], i) => ({ key: checkName(key, i), delta: checkValue(key, value, i) }))
  const bytes = Buffer.concat(checked.map(({ key }) => key))
  read.begin(bytes)
  let start = 0
  for (const { key, delta } of checked) {
    const end = start + key.length
    read.append(start, end, hashOf(bytes, start, end), delta)
    start = end
  }
  return bytes.length + checked.length * valueBytesMost
}

function isMap (pairs: Pairs): pairs is ReadonlyMap<string, number | bigint> {
  return pairs instanceof Map
}

function checkName (key: string, index: number): Buffer {
  if (typeof key !== 'string') throw badPair(index, String(key), 'its key is not a string')
  const problem = keyProblem(key)
  if (problem !== undefined) throw badPair(index, key, `its key ${problem}`)
  return Buffer.from(key)
}

function checkValue (key: string, value: number | bigint, index: number): Sum {
  if (typeof value === 'bigint' && isInt64(value)) return narrow(value)
  // -0 would be written as it is not read.
  if (Number.isSafeInteger(value)) return Number(value) + 0
  throw badPair(index, key, 'its value must be a whole number within 64 bits, as a bigint if it is beyond 2^53')
}

function badPair (index: number, key: string, why: string): RequestError {
  return new RequestError('GBX_BAD_PAIR', `pair ${index + 1} (${echo(key)}): ${why}`)
}
