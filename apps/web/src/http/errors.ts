// Every error a client can get: its code, its status, and the shape of its reply.
import { isUtf8 } from 'node:buffer'
import { STATUS_CODES } from 'node:http'

/** 4xx and 503: nothing of the request was counted (GBX_TOTAL_OVERFLOW names the keys that were refused). */
const statuses = {
  GBX_BAD_REQUEST: 400,
  GBX_BAD_PAIR: 400,
  GBX_BAD_QUERY: 400,
  GBX_BAD_IDEMPOTENCY_KEY: 400,
  GBX_EMPTY_BODY: 400,
  GBX_TOO_MANY_PAIRS: 400,
  GBX_UNAUTHORIZED: 401,
  GBX_FORBIDDEN_ORIGIN: 403,
  GBX_FORBIDDEN_SCOPE: 403,
  GBX_METRICS_ELSEWHERE: 404,
  GBX_NOT_FOUND: 404,
  GBX_METHOD_NOT_ALLOWED: 405,
  GBX_REQUEST_TIMEOUT: 408,
  GBX_BODY_TOO_LARGE: 413,
  GBX_UNSUPPORTED_MEDIA_TYPE: 415,
  GBX_EXPECTATION_FAILED: 417,
  GBX_UNKNOWN_HOST: 421,
  GBX_SUM_OVERFLOW: 422,
  GBX_TOTAL_OVERFLOW: 422,
  GBX_OTHER_BODY: 422,
  GBX_TOO_LATE: 422,
  GBX_HEADERS_TOO_LARGE: 431,
  GBX_INTERNAL: 500,
  GBX_NO_DATABASE: 503,
  GBX_OVERLOADED: 503,
  GBX_QUEUE_UNREACHABLE: 503,
  GBX_STOPPING: 503,
} as const

export type ErrorCode = keyof typeof statuses

/** A reply that is an error. Its message is for the client: it says what to change, and echoes little. */
export class RequestError extends Error {
  readonly code: ErrorCode
  readonly statusCode: number

  constructor (code: ErrorCode, message: string) {
    super(message)
    this.name = 'RequestError'
    this.code = code
    this.statusCode = statuses[code]
  }

  /** The reply's body. */
  toJSON (): { statusCode: number, code: string, error: string, message: string } {
    return { statusCode: this.statusCode, code: this.code, error: STATUS_CODES[this.statusCode] ?? 'Error', message: this.message }
  }
}

/** JSON schema of an error's body. */
export const errorSchema = {
  type: 'object',
  required: ['statusCode', 'code', 'error', 'message'],
  properties: {
    statusCode: { type: 'integer' },
    code: { type: 'string', description: 'one of the GBX_ codes' },
    error: { type: 'string', description: "the status's name" },
    message: { type: 'string', description: 'what was wrong and what to change' },
  },
} as const

/** Longest piece of a client's input that a message shows. */
const echoCharactersMax = 64

/** As many of several inputs as may be shown together; at least one. */
export function echoAll (texts: readonly string[]): { named: string, more: number } {
  const shown: string[] = []
  let characters = 0
  for (const text of texts) {
    const next = echo(text)
    characters += lengthOf(next)
    if (shown.length > 0 && characters > echoCharactersMax) break
    shown.push(next)
  }
  return { named: shown.join(', '), more: texts.length - shown.length }
}

/**
 * Input as it may be shown: quoted, escaped, and cut.
 * @param charactersMax most that is shown of it, escapes and all
 */
export function echo (text: string, charactersMax = echoCharactersMax): string {
  let [shown, cut, length] = ['', '', 0]
  for (const character of text) {
    const visible = shown === '' && /\p{M}/u.test(character) ? toEscape(character) : toVisible(character)
    length += visible === character ? 1 : visible.length
    if (length > charactersMax) return `"${cut}…"`
    shown += visible
    if (length < charactersMax) cut = shown
  }
  return `"${shown}"`
}

/** A name and its value as they may be shown together: if both are long, half of the room is for each. */
export function echoPair (name: string, value: string): { name: string, value: string } {
  const room = (shown: string): number => echoCharactersMax - lengthOf(shown)
  const shownName = echo(name, Math.max(echoCharactersMax / 2, room(echo(value))))
  return { name: shownName, value: echo(value, room(shownName)) }
}

/** Characters of an echo within its quotes. */
function lengthOf (shown: string): number {
  return Array.from(shown).length - 2
}

/**
 * Bytes as text for `echo`, which shows the bytes that are not UTF-8 as \xff: they are lone surrogates in it, U+DC80 to U+DCFF,
 * which no UTF-8 gives.
 */
export function textOf (bytes: Buffer): string {
  if (isUtf8(bytes)) return bytes.toString()
  let text = ''
  for (let at = 0; at < bytes.length && text.length <= 2 * echoCharactersMax;) {
    const length = [1, 2, 3, 4].find((length) => at + length <= bytes.length && isUtf8(bytes.subarray(at, at + length)))
    text += length === undefined ? String.fromCharCode(0xdc00 + bytes[at]!) : bytes.toString('utf8', at, at + length)
    at += length ?? 1
  }
  return text
}

/** Control and format characters, blanks other than the space, and whatever else has no shape of its own or turns text around. */
const invisible = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]/u

function toVisible (character: string): string {
  if (character === ' ' || (!invisible.test(character) && character !== '"' && character !== '\\')) return character
  const json = JSON.stringify(character).slice(1, -1)
  return /^\\[^u]/.test(json) ? json : toEscape(character)
}

function toEscape (character: string): string {
  const code = character.codePointAt(0)!
  if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code - 0xdc00).toString(16)}`
  return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, '0')}`
}
