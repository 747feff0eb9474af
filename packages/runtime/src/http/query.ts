// The query parameters of a request, compared with the schema of its route: a name that the route does not know, a
// repeated one, and a value that is not allowed are refused with a message that shows them.
import type { FastifyRequest } from 'fastify'
import { findNearest } from '../nearest.ts'
import { echo } from './echo.ts'
import { RequestError } from './errors.ts'

/** What Ajv reports of a value, as far as it is used here. */
interface Invalid {
  readonly keyword: string
  readonly instancePath: string
  readonly params: Readonly<Record<string, unknown>>
  readonly message?: string
}

/** Known names that a message lists; if there are more it names only the nearest one. */
const listedMax = 8

/**
 * Compares a request's query with its route's `schema.querystring` as far as Ajv does not: a route without one knows no
 * parameters, a parameter may be repeated only where its type is `array`, and an integer is written in digits.
 * @returns what is wrong with it, if anything is
 */
export function checkQuery ({ url, query, routeOptions }: FastifyRequest): RequestError | undefined {
  const mark = url.search(/[?#]/)
  if (mark < 0) return undefined
  try {
    // A parser of queries leaves what can't be decoded as it is, and so would read another name or value.
    decodeURIComponent(url.slice(mark + 1))
  } catch {
    return new RequestError('GBX_BAD_QUERY', 'the query is not percent-encoded UTF-8')
  }
  const wrong = checkNames(query, propertiesOf(routeOptions.schema?.querystring), 'query parameter')
  return wrong === undefined ? undefined : new RequestError('GBX_BAD_QUERY', wrong)
}

/**
 * The same for the fields of a form. A schema with `additionalProperties` knows every name.
 * @param schema that of the route's body
 * @returns what is wrong, if anything is
 */
export function checkFields (fields: unknown, schema: unknown): string | undefined {
  const more = entriesOf(schema).find(([keyword]) => keyword === 'additionalProperties')?.[1]
  return more === undefined || more === false ? checkNames(fields, propertiesOf(schema), 'field') : undefined
}

function checkNames (sent: unknown, known: ReadonlyMap<string, unknown>, what: string): string | undefined {
  for (const [name, value] of entriesOf(sent)) {
    if (!known.has(name)) return describeUnknown(what, name, [...known.keys()])
    // Ajv accepts all that JavaScript can convert to a number: 0x10, 1e2, and 400 digits, which become Infinity.
    if (known.get(name) === 'integer' && typeof value === 'string' && !/^-?\d{1,15}$/.test(value)) {
      return `"${name}" must be a whole number, not ${echo(value)}`
    }
    if (Array.isArray(value) && known.get(name) !== 'array') {
      return `${what} ${echo(name)} is given ${value.length} times; give it once`
    }
  }
  return undefined
}

/**
 * A message about what Ajv found, with the value that was sent.
 * @param sent the part of the request that was compared, as parsed
 * @param what its name
 */
export function describeInvalid ([invalid]: readonly Invalid[], sent: unknown, what = 'the query'): string {
  const name = invalid?.instancePath.slice(1) ?? ''
  const value = entriesOf(sent).find(([known]) => known === name)?.[1]
  const allowed = invalid?.params.allowedValues
  const rule = Array.isArray(allowed) ? oneOf(allowed) : invalid?.message ?? 'is not allowed'
  return `${name === '' ? what : `"${name}"`} ${rule}${value === undefined ? '' : `, not ${echo(String(value))}`}`
}

/** The rule for a value that must be one of a few, as a message has it after the value's name. */
export function oneOf (allowed: readonly unknown[]): string {
  return allowed.length === 1 ? `can only be "${String(allowed[0])}"` : `must be one of ${allowed.join(', ')}`
}

/** The names in a schema and their types. */
function propertiesOf (schema: unknown): ReadonlyMap<string, unknown> {
  const properties = entriesOf(schema).find(([name]) => name === 'properties')?.[1]
  const typeOf = (property: unknown): unknown => entriesOf(property).find(([keyword]) => keyword === 'type')?.[1]
  return new Map(entriesOf(properties).map(([name, property]) => [name, typeOf(property)]))
}

function entriesOf (value: unknown): Array<[string, unknown]> {
  return typeof value === 'object' && value !== null ? Object.entries(value) : []
}

function describeUnknown (what: string, name: string, known: readonly string[]): string {
  const unknown = `unknown ${what} ${echo(name)}`
  if (known.length === 0) return `${unknown}; there are none here`
  const { nearest, distance } = findNearest(name, known)
  const isNear = distance <= Math.max(name.length, nearest.length) / 2
  const suggestion = `${unknown}; did you mean "${nearest}"?`
  if (known.length > listedMax) return suggestion
  return isNear ? `${suggestion} Known: ${known.join(', ')}` : `${unknown}; known: ${known.join(', ')}`
}
