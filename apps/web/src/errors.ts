// Every error a client can get: its code, its status, and the shape of its reply.
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
  GBX_METRICS_ELSEWHERE: 404,
  GBX_NOT_FOUND: 404,
  GBX_METHOD_NOT_ALLOWED: 405,
  GBX_REQUEST_TIMEOUT: 408,
  GBX_BODY_TOO_LARGE: 413,
  GBX_UNSUPPORTED_MEDIA_TYPE: 415,
  GBX_EXPECTATION_FAILED: 417,
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
  let shown = 1
  while (shown < texts.length && Array.from(texts.slice(0, shown + 1).join('')).length <= echoCharactersMax) shown++
  return { named: texts.slice(0, shown).map(echo).join(', '), more: texts.length - shown }
}

/** Input as it may be shown: quoted, escaped, and cut to 64 characters. */
export function echo (text: string): string {
  const visible = JSON.stringify(text.slice(0, 2 * echoCharactersMax)).slice(1, -1).replace(/\p{Cc}/gu, '')
  const characters = Array.from(visible)
  const whole = characters.length <= echoCharactersMax && text.length <= 2 * echoCharactersMax
  return whole ? `"${visible}"` : `"${characters.slice(0, echoCharactersMax - 1).join('')}…"`
}
