// Parses a request's body, application/x-www-form-urlencoded, into its increments, or into an error that says what is
// wrong with it. Pure: `admit` passes it the bytes, and passes on to the flusher what comes out.
import { isUtf8 } from 'node:buffer'
import { int64Max, int64Min, narrow, type Sum } from '@gearbox/protocol/int64.ts'
import { keyBytesMax } from '@gearbox/protocol/key.ts'
import { echo, echoPair, textOf } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { IncrementColumns } from '../accumulate/columns.ts'
import { hashBasis, hashByte, hashEnd, hashOf } from '../accumulate/key-table.ts'

/** How a body is to be read. */
export interface FormOptions {
  /** More pairs than this are an error. */
  readonly pairsMax: number
  /** Whether `key=…&value=…` is two pairs too, and not the original's form. */
  readonly pairsOnly: boolean
}

const [ampersand, equalsSign, percent, plus, minus, zero, nine] = [0x26, 0x3d, 0x25, 0x2b, 0x2d, 0x30, 0x39]

/** Digits that always fit a double exactly: 15 of them are below 2^53. */
const safeDigits = 15

/** One `name=value`, as offsets into the body. */
interface Piece {
  readonly start: number
  readonly equals: number
  readonly end: number
  /** Whether the halves are visible ASCII without `%` and `+`, and so need no decoding. */
  readonly plainName: boolean
  readonly plainValue: boolean
}

/** The pairs that were read last: every body goes into the same columns. */
const read = new IncrementColumns()

/**
 * Parses a whole body, [start, end) of `bytes`. All or nothing.
 * @returns its increments, which last until the next call or until `bytes` change
 * @throws RequestError (400, or 422 if the request's own sum for a key leaves 64 bits) that names the offending pair
 */
export function parseForm (
  bytes: Buffer, { pairsMax, pairsOnly }: FormOptions, start = 0, end = bytes.length
): IncrementColumns {
  if (start === end) throw new RequestError('GBX_EMPTY_BODY', 'the body is empty; send pairs such as foo=1&bar=-2')
  if (!readPlain(bytes, start, end, pairsMax) || (!pairsOnly && isOriginal(read))) {
    const body = bytes.subarray(start, end)
    try {
      readOther(body, pairsMax, pairsOnly)
    } catch (error) {
      throw error instanceof RequestError && looksLikeJson(body) ? addJsonHint(error) : error
    }
  }
  checkSums(read)
  return read
}

/** 1 for each byte that means itself in a name: visible ASCII but for what separates and encodes. */
const plainBytes = new Uint8Array(256).fill(1, 0x21, 0x7f)
for (const byte of [ampersand, equalsSign, percent, plus]) plainBytes[byte] = 0

/**
 * Reads the usual body, in one pass: pairs that need no decoding and fit doubles.
 * @returns false for any other body, whether it is right or wrong
 */
function readPlain (body: Buffer, from: number, to: number, pairsMax: number): boolean {
  read.begin(body)
  for (let at = from; ; at++) {
    const start = at
    let hash = hashBasis
    for (; at < to && plainBytes[body[at]!] === 1; at++) hash = hashByte(hash, body[at]!)
    if (at === to || body[at] !== equalsSign || at === start || at - start > keyBytesMax) return false
    if (read.length === pairsMax) return false
    const end = at
    const negative = ++at < to && body[at] === minus
    if (negative) at++
    const first = at
    let value = 0
    for (; at < to && body[at]! >= zero && body[at]! <= nine; at++) value = value * 10 + body[at]! - zero
    if (at === first || at - first > safeDigits) return false
    // 0 - value, as -value would be -0.
    read.append(start, end, hashEnd(hash), negative ? 0 - value : value)
    if (at === to) return true
    if (body[at] !== ampersand) return false
  }
}

/** Reads any other body. @throws RequestError that names the first pair that is wrong */
function readOther (body: Buffer, pairsMax: number, pairsOnly: boolean): void {
  const pieces = split(body, pairsMax)
  // What is decoded is never longer than what was sent.
  read.begin(Buffer.allocUnsafe(body.length))
  if (!pairsOnly && pieces.length === 2 && readOriginal(body, pieces)) return
  for (const [index, piece] of pieces.entries()) append(decodeName(body, piece, index), decodeValue(body, piece, index))
}

/** Whether it might be the original's form. */
function isOriginal (increments: IncrementColumns): boolean {
  return increments.length === 2 && increments.keys().some((key) => key === 'key' || key === 'value')
}

/** Appends a pair whose key was decoded. */
function append (key: Buffer, delta: Sum): void {
  const start = read.length === 0 ? 0 : read.ends[read.length - 1]!
  const end = start + key.length
  read.bytes.set(key, start)
  read.append(start, end, hashOf(read.bytes, start, end), delta)
}

function split (body: Buffer, pairsMax: number): Piece[] {
  const pieces: Piece[] = []
  for (let start = 0; start <= body.length;) {
    if (pieces.length === pairsMax) {
      throw new RequestError('GBX_TOO_MANY_PAIRS', `more than ${pairsMax} pairs; send them in several requests`)
    }
    let end = start
    let equals = -1
    let plainName = true
    let plainValue = true
    for (; end < body.length; end++) {
      const byte = body[end]!
      if (byte === ampersand) break
      if (byte === equalsSign && equals < 0) equals = end
      else if (byte === percent || byte === plus || byte <= 0x20 || byte >= 0x7f) {
        if (equals < 0) plainName = false
        else plainValue = false
      }
    }
    if (end === start) throw badPair(pieces.length, '', 'is empty; pairs are joined by single "&"s')
    if (equals < 0) throw badPair(pieces.length, asSent(body, start, end), 'has no "="')
    pieces.push({ start, equals, end, plainName, plainValue })
    start = end + 1
  }
  return pieces
}

/**
 * Reads the original's form: exactly the two fields `key` and `value`, in either order.
 * @returns false for another body
 */
function readOriginal (body: Buffer, pieces: readonly Piece[]): boolean {
  const names = pieces.map((piece) => piece.plainName
    ? body.toString('latin1', piece.start, piece.equals)
    : decode(body, piece.start, piece.equals)?.toString())
  const [key, value] = [names.indexOf('key'), names.indexOf('value')]
  if (key < 0 || value < 0) return false
  const { equals, end, plainValue } = pieces[key]!
  append(decodeKey(body, equals + 1, end, plainValue, key, 'key'), decodeValue(body, pieces[value]!, value))
  return true
}

function decodeName (body: Buffer, { start, equals, plainName }: Piece, index: number): Buffer {
  return decodeKey(body, start, equals, plainName, index, undefined)
}

function decodeKey (
  body: Buffer, start: number, end: number, plain: boolean, index: number, field: string | undefined
): Buffer {
  const fail = (why: string): RequestError => badPair(index, field ?? asSent(body, start, end), why)
  if (start === end) throw fail('has an empty key')
  const bytes = plain ? body.subarray(start, end) : decode(body, start, end)
  if (bytes === undefined) throw fail('has a "%" that is not followed by two hex digits')
  if (bytes.length > keyBytesMax) throw fail(`has a key of ${bytes.length} bytes; at most ${keyBytesMax} are allowed`)
  if (plain) return bytes
  if (!isUtf8(bytes)) throw fail('has a key that is not UTF-8')
  if (bytes.some((byte) => byte < 0x20 || byte === 0x7f)) throw fail('has a key with a control character')
  return bytes
}

function decodeValue (body: Buffer, { start, equals, end, plainName, plainValue }: Piece, index: number): Sum {
  const bytes = plainValue ? body : decode(body, equals + 1, end)
  const [first, last] = plainValue ? [equals + 1, end] : [0, bytes?.length ?? 0]
  const value = bytes === undefined ? undefined : parseInteger(bytes, first, last)
  if (value !== undefined && isInt64(value)) return value
  const name = asDecoded(body, start, equals, plainName)
  if (bytes === undefined) {
    throw badValue(index, name, asSent(body, equals + 1, end), 'has a "%" that is not followed by two hex digits')
  }
  if (first === last) throw badPair(index, name, `has no value; it ${wholeNumber}`)
  const shown = textOf(bytes.subarray(first, last))
  if (value !== undefined) throw badValue(index, name, shown, `must be from ${int64Min} to ${int64Max} (64 bits)`)
  const slip = slipOf(shown, body.subarray(equals + 1, end))
  throw badValue(index, name, shown, slip === undefined ? wholeNumber : `${slip}; it ${wholeNumber}`)
}

const wholeNumber = 'must be a whole number such as 1 or -20, in the digits 0 to 9'

/** What is wrong with a value if it is one of the usual slips, some of which can't be seen. */
function slipOf (value: string, sent: Buffer): string | undefined {
  if (/^[^\r\n]*[\r\n]+$/.test(value)) return 'ends with a line end (curl --data-binary and files add one)'
  if (/[\r\n]/.test(value)) return 'has a line end in it (pairs are joined by "&", not by lines)'
  if (value.includes(';')) return 'has a ";" in it (pairs are joined by "&")'
  if (value.startsWith('+')) return 'begins with a "+" (leave it out)'
  if (value.trim() !== value) {
    const meaning = sent.includes(plus) ? ' ("+" means a space in a form)' : ''
    return `${value.trimStart() !== value ? 'begins' : 'ends'} with white space${meaning}`
  }
  return undefined
}

/** Parses `-?[0-9]+`, whatever its size; undefined for anything else. */
function parseInteger (bytes: Buffer, first: number, last: number): Sum | undefined {
  const negative = bytes[first] === minus && first < last
  let at = negative ? first + 1 : first
  if (at === last) return undefined
  let leading = true
  let digits = 0
  let value = 0
  for (let i = at; i < last; i++) {
    const digit = bytes[i]! - zero
    if (digit < 0 || digit > 9) return undefined
    if (leading && digit === 0) at = i
    else leading = false
    if (!leading) digits++
    if (digits <= safeDigits) value = value * 10 + digit
  }
  // 0 - value, as -value would be -0.
  if (digits <= safeDigits) return negative ? 0 - value : value
  // No 64-bit integer has more than 19 digits; reading thousands of them would take long.
  if (digits > 19) return int64Max + 1n
  const exact = BigInt(bytes.toString('latin1', at, last))
  return narrow(negative ? -exact : exact)
}

/** Whether a sum is within 64 bits. */
export function isInt64 (value: Sum): boolean {
  return typeof value === 'number' || (value <= int64Max && value >= int64Min)
}

/** Undoes `+` and `%XX`; undefined where a `%` has no two hex digits behind it. */
export function decode (body: Buffer, start: number, end: number): Buffer | undefined {
  const decoded = Buffer.allocUnsafe(end - start)
  let length = 0
  for (let at = start; at < end; at++) {
    let byte = body[at]!
    if (byte === plus) byte = 0x20
    else if (byte === percent) {
      const [high, low] = [hexDigit(body[at + 1]), hexDigit(body[at + 2])]
      if (at + 2 >= end || high < 0 || low < 0) return undefined
      byte = high * 16 + low
      at += 2
    }
    decoded[length++] = byte
  }
  return decoded.subarray(0, length)
}

function hexDigit (byte = 0): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30
  const lower = byte | 0x20
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1
}

/** @throws RequestError (422) if the increments of one key alone leave 64 bits */
function checkSums (increments: IncrementColumns): void {
  // A thousand numbers below 2^53 stay within 64 bits; only bigints, or more of them, can leave.
  if (increments.length === 1 || (increments.length <= 1000 && increments.areNumbers)) return
  for (const [key, sum] of increments.sums()) {
    if (isInt64(sum)) continue
    throw new RequestError('GBX_SUM_OVERFLOW',
      `the sum of this request for key ${echo(key)} leaves 64 bits; nothing of it was counted`)
  }
}

/** Input for a message, before any decoding. */
function asSent (body: Buffer, start: number, end: number): string {
  return textOf(body.subarray(start, end))
}

/** Input for a message, decoded if that can be done. */
function asDecoded (body: Buffer, start: number, end: number, plain: boolean): string {
  return textOf((plain ? undefined : decode(body, start, end)) ?? body.subarray(start, end))
}

function badPair (index: number, name: string, why: string): RequestError {
  return new RequestError('GBX_BAD_PAIR', `pair ${index + 1} (${echo(name)}): ${why}`)
}

function badValue (index: number, name: string, value: string, why: string): RequestError {
  const shown = echoPair(name, value)
  return new RequestError('GBX_BAD_PAIR', `pair ${index + 1} (${shown.name}): its value ${shown.value} ${why}`)
}

/** A key may begin with a brace too: it only matters where something is wrong. */
function looksLikeJson (body: Buffer): boolean {
  return /^[\s\uFEFF]*[{[]/.test(body.toString('utf8', 0, 64))
}

function addJsonHint (error: RequestError): RequestError {
  const { code, statusCode } = error
  return new RequestError({ code, statusCode, message: `that looks like JSON; send foo=1&bar=-2 (${error.message})` })
}
