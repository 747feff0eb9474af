// The bodies of plugins' routes: forms, decoded by the rules of POST /increment, as an object of their fields. What a
// route's schema does not know is refused, as it is in a query.
import { isUtf8 } from 'node:buffer'
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { echo, textOf } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { checkFields } from '@gearbox/runtime/http/query.ts'
import { formTypeName } from '../http/write-checks.ts'
import { decode } from '../increment/form.ts'

const [ampersand, equalsSign] = [0x26, 0x3d]

/** Lets routes of this scope take forms. @param fieldsMax more are refused */
export function addFormParser (scope: FastifyInstance, fieldsMax: number): void {
  scope.removeContentTypeParser(formTypeName)
  scope.addContentTypeParser(formTypeName, { parseAs: 'buffer' }, (request, body: Buffer, done) => {
    try {
      done(null, readForm(request, body, fieldsMax))
    } catch (error) {
      done(error instanceof Error ? error : new Error(String(error)))
    }
  })
}

function readForm (request: FastifyRequest, body: Buffer, fieldsMax: number): Readonly<Record<string, string>> {
  const fields = parseFields(body, fieldsMax)
  const wrong = checkFields(fields, request.routeOptions.schema?.body)
  if (wrong !== undefined) throw new RequestError('GBX_BAD_REQUEST', wrong)
  return fields
}

/**
 * Parses a form: pieces between `&`, each split at its first `=`; then `+` and `%XX` are decoded, as strict UTF-8.
 * @returns an object without a prototype @throws RequestError (400) that names the field
 */
export function parseFields (body: Buffer, fieldsMax: number): Record<string, string> {
  const fields: Record<string, string> = Object.create(null)
  if (body.length === 0) return fields
  let count = 0
  for (let start = 0; start <= body.length;) {
    if (++count > fieldsMax) {
      throw new RequestError('GBX_TOO_MANY_PAIRS', `a form of more than ${fieldsMax} fields`)
    }
    const found = body.indexOf(ampersand, start)
    const end = found === -1 ? body.length : found
    const equals = body.subarray(start, end).indexOf(equalsSign)
    if (end === start) throw badField(count, '', 'is empty; fields are joined by single "&"s')
    if (equals === -1) throw badField(count, textOf(body.subarray(start, end)), 'has no "="')
    const name = decodeText(body, start, start + equals, count, 'name')
    if (name === '') throw badField(count, '', 'has no name')
    const value = decodeText(body, start + equals + 1, end, count, 'value')
    if (name in fields) throw badField(count, name, 'is given twice; give it once')
    fields[name] = value
    start = end + 1
  }
  return fields
}

function decodeText (body: Buffer, start: number, end: number, number: number, what: string): string {
  const bytes = decode(body, start, end)
  const sent = (): string => textOf(body.subarray(start, end))
  if (bytes === undefined) throw badField(number, sent(), `has a ${what} with a "%" and no two hex digits behind it`)
  if (!isUtf8(bytes)) throw badField(number, sent(), `has a ${what} that is not UTF-8`)
  return bytes.toString()
}

function badField (number: number, name: string, why: string): RequestError {
  return new RequestError('GBX_BAD_REQUEST', `field ${number} (${echo(name)}): ${why}`)
}
