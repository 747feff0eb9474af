// Reads files of Vegeta targets, in both of its formats, as Vegeta reads them.
import { createReadStream, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'

export interface Target {
  /** Where it stands, for messages. */
  readonly line: number
  readonly method: string
  /** With its fragment, as results have it. */
  readonly url: string
  readonly body: Buffer
  readonly idempotencyKey: string | undefined
}

/** @throws FatalError that names the line */
export async function * readTargets (path: string): AsyncGenerator<Target> {
  const lines = numberedLines(path)
  for await (const first of lines) {
    if (first.text === '' || (first.text.startsWith('#'))) continue
    yield * first.text.startsWith('{') ? jsonTargets(path, first, lines) : httpTargets(path, first, lines)
  }
}

interface Line { readonly number: number, readonly text: string }

async function * numberedLines (path: string): AsyncGenerator<Line> {
  let number = 0
  try {
    for await (const text of createInterface({ input: createReadStream(path), crlfDelay: Infinity })) {
      yield { number: ++number, text: text.trim() }
    }
  } catch (error) {
    throw new FatalError(`the targets can't be read: ${reasonOf(error)}`, 2)
  }
}

async function * jsonTargets (path: string, first: Line, rest: AsyncGenerator<Line>): AsyncGenerator<Target> {
  yield jsonTarget(path, first)
  for await (const line of rest) if (line.text !== '') yield jsonTarget(path, line)
}

function jsonTarget (path: string, { number, text }: Line): Target {
  let target: unknown
  try {
    target = JSON.parse(text)
  } catch (error) {
    throw bad(path, number, reasonOf(error))
  }
  if (typeof target !== 'object' || target === null || !('method' in target && typeof target.method === 'string') ||
    !('url' in target && typeof target.url === 'string')) {
    throw bad(path, number, 'it has no method or no url')
  }
  const headers = 'header' in target && typeof target.header === 'object' && target.header !== null
    ? Object.entries(target.header)
    : []
  const key: unknown = headers.find(([name]) => isIdempotencyKey(name))?.[1]
  return {
    line: number,
    method: target.method,
    url: target.url,
    body: 'body' in target && typeof target.body === 'string' ? Buffer.from(target.body, 'base64') : Buffer.alloc(0),
    idempotencyKey: Array.isArray(key) && typeof key[0] === 'string' ? key[0] : undefined,
  }
}

/** METHOD URL, then headers, then the body's file behind an @; a blank line or the next METHOD ends it. */
async function * httpTargets (path: string, first: Line, rest: AsyncGenerator<Line>): AsyncGenerator<Target> {
  let open: Target | undefined = startOf(path, first)
  for await (const { number, text } of rest) {
    if (open === undefined || text === '' || /^[A-Z]+\s/.test(text)) {
      if (open !== undefined) yield open
      open = text === '' || text.startsWith('#') ? undefined : startOf(path, { number, text })
    } else if (text.startsWith('@')) {
      try {
        yield { ...open, body: readFileSync(text.slice(1)) }
      } catch (error) {
        throw bad(path, number, `its body can't be read: ${reasonOf(error)}`)
      }
      open = undefined
    } else if (!text.startsWith('#')) {
      const colon = text.indexOf(':')
      if (colon > 0 && isIdempotencyKey(text.slice(0, colon).trim())) {
        open = { ...open, idempotencyKey: text.slice(colon + 1).trim() }
      }
    }
  }
  if (open !== undefined) yield open
}

function startOf (path: string, { number, text }: Line): Target {
  const [, method, url] = /^([A-Z]+)\s+(\S+)$/.exec(text) ?? []
  if (method === undefined || url === undefined) throw bad(path, number, 'a target starts with METHOD URL')
  return { line: number, method, url, body: Buffer.alloc(0), idempotencyKey: undefined }
}

function isIdempotencyKey (name: string): boolean {
  return name.toLowerCase() === 'idempotency-key'
}

function bad (path: string, line: number, why: string): FatalError {
  return new FatalError(`${path}, line ${line}: ${why}`, 2)
}
