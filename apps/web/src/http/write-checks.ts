// What can be refused of a request that writes before its body is read: the page that sends it, and what the body is
// said to be. For POST /increment on the standard path and for the routes of plugins.
import type { FastifyRequest } from 'fastify'
import type { Origins } from '@gearbox/runtime/access/origins.ts'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'

/** The Content-Type of forms. */
export const formTypeName = 'application/x-www-form-urlencoded'

/** A 403 for a page that may not write; undefined if the request is of none, or of one that may. */
export function checkOrigin (
  { headers: { origin, host } }: FastifyRequest, origins: Origins
): RequestError | undefined {
  if (origin === undefined || origins.mayCount(origin, host)) return undefined
  return new RequestError('GBX_FORBIDDEN_ORIGIN',
    `origin ${echo(origin)} is not allowed: it is neither the Host of this request nor in CORS_ORIGINS. ` +
    'Where a proxy changes Host, let it pass on the one it got, or list the name in HOSTS_ALLOWED')
}

/** A 415 for a body that is no form in UTF-8 as it is; undefined if it is one, or there is no body. */
export function checkForm ({ headers }: FastifyRequest): RequestError | undefined {
  const {
    'content-type': type, 'content-encoding': encoding, 'content-length': length, 'transfer-encoding': transfer,
  } = headers
  const empty = transfer === undefined && (length === undefined || length === '0')
  if (encoding !== undefined) {
    return unsupported(`the body must come without Content-Encoding, not as ${echo(encoding)}`)
  }
  if (type === undefined) {
    return empty ? undefined : unsupported(`the Content-Type must be ${formTypeName}; none was sent`)
  }
  if (isForm(type)) return undefined
  if (/json/i.test(type)) return unsupported(`this takes no JSON; send foo=1&bar=-2 with Content-Type: ${formTypeName}`)
  return unsupported(`the Content-Type must be ${formTypeName}, in UTF-8, not ${echo(type)}`)
}

function unsupported (message: string): RequestError {
  return new RequestError('GBX_UNSUPPORTED_MEDIA_TYPE', message)
}

const formType = /^application\/x-www-form-urlencoded[ \t]*(?:;[ \t]*(?:charset=(?:utf-8|"utf-8")[ \t]*)?)*$/i

function isForm (type: string): boolean {
  return type === formTypeName || formType.test(type)
}
