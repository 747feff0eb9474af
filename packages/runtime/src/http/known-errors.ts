// The error that a client gets for any error that is thrown while its request is served: Fastify's own become ours, as
// far as a client can cause them; of all others it learns only that something went wrong.
import type { FastifyError, FastifyRequest } from 'fastify'
import { EntryRefusedError } from '../plugin/plugin.ts'
import { RequestError, type ErrorCode } from './errors.ts'
import { describeInvalid } from './query.ts'

/** The parts of a request that schemas are compared with. */
type Sent = Partial<Pick<FastifyRequest, 'query' | 'body' | 'params'>>

const codeOfStatus: { readonly [status: number]: ErrorCode } = {
  400: 'GBX_BAD_REQUEST',
  401: 'GBX_UNAUTHORIZED',
  // A path out of the documentation's own directory.
  403: 'GBX_NOT_FOUND',
  404: 'GBX_NOT_FOUND',
  408: 'GBX_REQUEST_TIMEOUT',
  413: 'GBX_BODY_TOO_LARGE',
  // A key in the path that is longer than any key.
  414: 'GBX_NOT_FOUND',
  415: 'GBX_UNSUPPORTED_MEDIA_TYPE',
  431: 'GBX_HEADERS_TOO_LARGE',
  503: 'GBX_STOPPING',
}

const messageOfCode: { readonly [code: string]: string } = {
  GBX_BAD_REQUEST: 'the request can not be read; is its URL encoded right?',
  GBX_NOT_FOUND: 'not found',
  GBX_BODY_TOO_LARGE: 'the body is larger than BODY_BYTES_MAX allows; send it in several requests',
  GBX_UNSUPPORTED_MEDIA_TYPE: 'the Content-Type must be application/x-www-form-urlencoded, in UTF-8 and without ' +
    'Content-Encoding',
}

/** Longest text of a library's error that a client is shown. */
const textCharactersMax = 200

/**
 * Any error as one of the catalogue. Where the result's status is 500 the caller must log `error`: its reply says that
 * the log does.
 * @param request whose it is, for a message about what it had
 */
export function toRequestError (error: unknown, request?: Sent): RequestError {
  if (error instanceof RequestError) return error
  if (error instanceof EntryRefusedError) return new RequestError(error.entryError)
  if (error instanceof Error) {
    if (isInvalid(error)) return invalidRequest(error, request)
    const code = 'statusCode' in error && typeof error.statusCode === 'number'
      ? codeOfStatus[error.statusCode]
      : undefined
    if (code !== undefined) {
      return new RequestError(code, messageOfCode[code] ?? error.message.slice(0, textCharactersMax))
    }
  }
  return new RequestError('GBX_INTERNAL', 'something went wrong; the log says what')
}

type Invalid = Error & Required<Pick<FastifyError, 'validation'>> & Pick<FastifyError, 'validationContext'>

function invalidRequest ({ validation, validationContext }: Invalid, request: Sent | undefined): RequestError {
  if (validationContext === 'body') {
    return new RequestError('GBX_BAD_REQUEST', describeInvalid(validation, request?.body, 'the body'))
  }
  if (validationContext === 'params') {
    return new RequestError('GBX_BAD_REQUEST', describeInvalid(validation, request?.params, 'the path'))
  }
  return new RequestError('GBX_BAD_QUERY', describeInvalid(validation, request?.query))
}

function isInvalid (error: Error): error is Invalid {
  return 'validation' in error && Array.isArray(error.validation)
}
