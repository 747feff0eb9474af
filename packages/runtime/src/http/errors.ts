// Every error that a client can get: its code and status. Whoever refuses a request makes a RequestError, on any port;
// error-reply.ts writes it.
import { STATUS_CODES } from 'node:http'
import type { EntryError, Json } from '@gearbox/protocol/plugin-entry.ts'

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
  GBX_NO_PLUGIN: 503,
  GBX_OVERLOADED: 503,
  GBX_QUEUE_UNREACHABLE: 503,
  GBX_STOPPING: 503,
} as const

/** A code of the catalogue. Clients may rely on it and on its status, not on the text of a message. */
export type ErrorCode = keyof typeof statuses

/** Headers by their lower-case names. */
export type ErrorHeaders = Readonly<Record<string, string>>

const noHeaders: ErrorHeaders = {}

/** A reply that is an error. Its message is for the client: it says what to change, and echoes little. */
export class RequestError extends Error {
  /** One of the catalogue, or of a plugin. */
  readonly code: ErrorCode | (string & {})
  readonly statusCode: number
  /** What else the body says. */
  readonly details: { readonly [name: string]: Json } | undefined
  /** Headers that this error has in addition to those of every error, such as `allow`. */
  readonly headers: ErrorHeaders

  constructor (code: ErrorCode, message: string, headers?: ErrorHeaders)
  /** @param ofPlugin an error that is not of the catalogue */
  constructor (ofPlugin: EntryError)
  constructor (error: ErrorCode | EntryError, message = '', headers: ErrorHeaders = noHeaders) {
    const isOurs = typeof error === 'string'
    super(isOurs ? message : error.message)
    this.name = 'RequestError'
    this.code = isOurs ? error : error.code
    this.statusCode = isOurs ? statuses[error] : error.statusCode
    this.details = isOurs ? undefined : error.details
    this.headers = headers
  }

  /** The reply's body. */
  toJSON (): { statusCode: number, code: string, error: string, message: string } {
    const { statusCode, code, message, details } = this
    return { statusCode, code, error: STATUS_CODES[statusCode] ?? 'Error', message, ...details }
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
