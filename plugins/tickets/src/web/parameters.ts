// What a request asks for, wherever it says so: the name in its path, and values in its query or its form. Each error
// names the value that is wrong.
import type { FastifyRequest } from 'fastify'
import { echo, replyError } from '@gearbox/runtime/plugin.ts'
import { countMax, numberMax } from '../entry.ts'

/** Longest name of a line and longest holder, in bytes of UTF-8: as long as a key. */
const textBytesMax = 256

/** Values by name, each at most once. */
export type Fields = ReadonlyMap<string, string>

/** The `:name` of a request's path. @throws RequestError (400) */
export function readName (name: string): string {
  if (name === '') throw replyError(400, 'GBX_BAD_NAME', 'a name needs at least one character: /tickets/NAME')
  return checkText(name, 'GBX_BAD_NAME', 'the name')
}

/**
 * The fields of a request's query and of its form together. Gearbox has compared both with the route's schema.
 * @throws RequestError (400) for a field that both have
 */
export function readFields ({ query, body }: FastifyRequest): Fields {
  const fields = new Map(entriesOf(query))
  for (const [name, value] of entriesOf(body)) {
    if (fields.has(name)) {
      throw replyError(400, 'GBX_BAD_QUERY', `"${name}" is in the query and in the form; give it once`)
    }
    fields.set(name, value)
  }
  return fields
}

function entriesOf (value: unknown): Array<[string, string]> {
  return typeof value !== 'object' || value === null
    ? []
    : Object.entries(value).map(([name, text]) => [name, String(text)])
}

/** How many tickets a request wants. @throws RequestError (400) */
export function readCount (fields: Fields): number {
  const text = fields.get('count')
  return text === undefined ? 1 : readInteger(text, 'count', 1, countMax)
}

/** What is to be kept with the tickets. @throws RequestError (400) */
export function readHolder (fields: Fields): string | undefined {
  const holder = fields.get('holder')
  return holder === undefined ? undefined : checkText(holder, 'GBX_BAD_HOLDER', '"holder"')
}

/** A whole number. @throws RequestError (400) */
export function readInteger (text: string, name: string, min: number, max: number): number {
  const value = Number(text)
  if (/^\d{1,16}$/.test(text) && value >= min && value <= max) return value
  throw replyError(400, 'GBX_BAD_QUERY', `"${name}" must be a whole number from ${min} to ${max}, not ${echo(text)}`)
}

/** The `:number` of a path. @throws RequestError (404) for a text that can't be one */
export function readNumber (text: string): number {
  const number = Number(text)
  if (/^[1-9]\d{0,15}$/.test(text) && number <= numberMax) return number
  throw replyError(404, 'GBX_NO_TICKET', `${echo(text)} is no ticket's number`)
}

function checkText (text: string, code: string, what: string): string {
  if (Buffer.byteLength(text) > textBytesMax) {
    throw replyError(400, code, `${what} has ${Buffer.byteLength(text)} bytes; at most ${textBytesMax} are allowed`)
  }
  if (/\p{Cc}/u.test(text)) throw replyError(400, code, `${what} has a control character`)
  if (!text.isWellFormed()) throw replyError(400, code, `${what} is not UTF-8`)
  return text
}
