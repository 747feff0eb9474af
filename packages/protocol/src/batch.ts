// The batch: the unit that travels from a web worker through the queue into the database.
// A worker encodes it once; its bytes never change after that, whoever sends or keeps them.
import { isUtf8 } from 'node:buffer'
import type { Sum } from './int64.ts'
import { JsonBytes, type SumEntry } from './json-bytes.ts'
import { entryBytesMax, entryLevelsMax, isTooDeep, parseEntries, type PluginEntry } from './plugin-entry.ts'

/**
 * The newest version. A consumer reads it and the ones before. A batch without entries of plugins is written as version
 * 1, so that a consumer of the release before can read it.
 */
export const batchVersion = 2

/**
 * JSON bytes of a batch, at most about this many. Redis copies and hashes an element in one go, and a worker
 * builds one in a single event-loop iteration: of 16-byte keys in 2 ms, and in up to 9 when the code is cold.
 */
export const batchBytesMax = 256 * 1024

/**
 * JSON bytes of one idempotent request at most, as it can't be divided. A push of it must get through within the 2.5 s
 * that a command has, also over a slow network, and it is applied in one step.
 */
export const idempotentBytesMax = 4 * 1024 * 1024

/** A request with an idempotency key. It travels unsummed (in JSON under `once`) and is applied whole or not at all. */
export interface IdempotentRequest {
  /** SHA-256 over caller and key: the same for every repeat, whichever worker got it. */
  readonly id: string
  /** When it was accepted, Unix ms. */
  readonly at: number
  /** Each within 64 bits. */
  readonly sums: ReadonlyMap<string, Sum>
  /**
   * How long its replies wait, in ms, if all of them wait for level `stored`: then nothing was promised yet, and the
   * request can still be refused. Undefined if a reply promised it, or may have. It may change until it is encoded.
   */
  storedWithinMs?: number | undefined
}

/** A batch as its producer keeps it. */
export interface Batch {
  readonly seq: number
  /** When the oldest increment in it was accepted, Unix ms. */
  readonly at: number
  readonly increments: number
  /** How many entries of plugins it has; undefined: unknown, as it was read from a file. */
  readonly entries?: number
  readonly element: Buffer
}

/** A batch without its sums and idempotent requests. */
export interface Header {
  readonly producer: string
  readonly seq: number
  readonly at: number
  readonly requests: number
  readonly increments: number
  /** False only if the batch surely has no idempotent requests. */
  readonly once: boolean
  /** Whether it has entries of plugins; `readEntries` returns them. */
  readonly entries: boolean
  /**
   * How long replies wait, in ms, if everything in `sums` was asked for at level `stored`: nothing of it was promised
   * yet, so what can't be applied can be refused. Undefined if any of it was promised, or may have been.
   */
  readonly storedWithinMs?: number
}

/** Where the entries of a batch come from. What it has returned is in the batch and is not returned again. */
export interface Source {
  /**
   * The next sum, within 64 bits, of a key that this batch does not have yet; undefined at the end. Keys are UTF-8
   * without control characters. The next call may change the object that this one returned.
   */
  nextSum (): Readonly<SumEntry> | undefined
  /** The next idempotent request; undefined at the end. */
  nextIdempotent (): IdempotentRequest | undefined
  /**
   * The next entry of a plugin as JSON, at most entryBytesMax of it; undefined at the end. `entry` is its number in
   * this batch, from 0.
   */
  nextEntry? (seq: number, entry: number): string | undefined
  /** False if what was returned must not be refused although the header says that it may be. Read last. */
  readonly refusable?: boolean
}

/** The batch that is being encoded: one at a time, in the same memory. */
const json = new JsonBytes(batchBytesMax)

/** Encodes the next entries of a source, up to about batchBytesMax, as one batch. The source may have more. */
export function encodeBatch (header: Omit<Header, 'once' | 'entries'>, source: Source): Batch {
  const { producer, seq, at, requests, increments, storedWithinMs } = header
  json.clear()
  json.text(`{"v":1,"producer":"${producer}","seq":${seq},"at":${at},` +
    `"requests":${requests},"increments":${increments},"sums":{`)
  for (let first = true; json.length < batchBytesMax; first = false) {
    const sum = source.nextSum()
    if (sum === undefined) break
    json.pair(sum, first)
  }
  json.text('},"once":[')
  for (let separator = ''; json.length < batchBytesMax; separator = ',') {
    const once = source.nextIdempotent()
    if (once === undefined) break
    const { id, at, storedWithinMs } = once
    json.text(`${separator}{"id":"${id}","at":${at}${refusable(storedWithinMs)},"sums":{${sumsText(once)}}}`)
  }
  json.text(`]${refusable(source.refusable === false ? undefined : storedWithinMs)}`)
  const entries = encodeEntries(seq, source)
  json.text(entries === 0 ? '}' : ']}')
  const element = json.copy()
  if (entries > 0) element[versionAt] = versionTwo
  return { seq, at, increments, entries, element }
}

/** Where `{"v":1` has its version, and what is written there if the batch has entries of plugins. */
const [versionAt, versionTwo] = ['{"v":'.length, 0x32]

const entriesStart = ',"plugins":['

/** @returns how many entries were written; if any, their array is still open */
function encodeEntries (seq: number, source: Source): number {
  let entries = 0
  for (; json.length < batchBytesMax; entries++) {
    const entry = source.nextEntry?.(seq, entries)
    if (entry === undefined) break
    json.text(entries === 0 ? `${entriesStart}${entry}` : `,${entry}`)
  }
  return entries
}

/** An entry has more levels of arrays and objects than entryLevelsMax. */
export class EntryTooDeepError extends RangeError {
  constructor () {
    super(`an entry is nested too deep; at most ${entryLevelsMax} levels can be sent`)
  }
}

/** An entry as JSON. @throws EntryTooDeepError; RangeError if it is longer than entryBytesMax */
export function encodeEntry ({ plugin, data, id, at }: PluginEntry): string {
  const text = stringify({ plugin, data, id, at })
  const bytes = Buffer.byteLength(text)
  if (bytes > entryBytesMax) throw new RangeError(`an entry of ${bytes} bytes; at most ${entryBytesMax} can be sent`)
  if (isTooDeep(text)) throw new EntryTooDeepError()
  return text
}

function stringify (value: object): string {
  try {
    return JSON.stringify(value)
  } catch (error) {
    // It has more levels than the stack.
    if (error instanceof RangeError && error.message.includes('call stack')) throw new EntryTooDeepError()
    throw error
  }
}

function sumsText ({ sums }: Pick<IdempotentRequest, 'sums'>): string {
  return Array.from(sums, ([key, sum]) => `${JSON.stringify(key)}:${sum}`).join(',')
}

/** Whether an idempotent request fits into a batch. @param bodyBytes bytes of the body that it came in */
export function fits (once: IdempotentRequest, bodyBytes: number): boolean {
  // A key's byte becomes two at most, and so does what separates two pairs: most fit without being encoded to find out.
  return 2 * bodyBytes <= idempotentBytesMax || Buffer.byteLength(sumsText(once)) <= idempotentBytesMax
}

/**
 * Bytes of a batch that no worker wrote, at most. It is parsed whole, which holds up everything else: the worst of this
 * size take some 50 ms.
 */
export const foreignBytesMax = 1024 * 1024

/** The fields that say that nothing was promised yet. */
function refusable (storedWithinMs: number | undefined): string {
  return storedWithinMs === undefined ? '' : `,"ack":"stored","timeout":${storedWithinMs}`
}

/**
 * The same batch as if all of it had been promised: what can't be applied is then kept in `rejected`. For a batch whose
 * replies have all been given, such as one that waits in a file. The bytes can only be those of the two fields: in a
 * string their quotes would be escaped, and no sum is a string.
 */
export function withoutRefusals (element: Buffer): Buffer {
  const json = element.toString('latin1')
  if (!json.includes('"ack":"stored"')) return element
  // In an entry of a plugin the same bytes can be data.
  const end = json.indexOf(entriesStart)
  const sums = end === -1 ? json : json.slice(0, end)
  const rest = end === -1 ? '' : json.slice(end)
  return Buffer.from(sums.replace(/,"ack":"stored","timeout":\d{1,15}/g, '') + rest, 'latin1')
}

/**
 * No number of a header is larger: all of them are exact in a double, and every such `at` is a date. Whatever is larger
 * was not written by a worker.
 */
const headerNumberMax = 999_999_999_999_999

/** How every batch begins that a worker wrote. */
const written = new RegExp('^\\{"v":(\\d{1,9}),"producer":"([0-9a-f-]{36})","seq":(\\d{1,15}),"at":(\\d{1,15}),' +
  '"requests":(\\d{1,15}),"increments":(\\d{1,15}),"sums":\\{')

/**
 * Reads the header of a batch, without its sums: only SQLite reads those, as JSON numbers here can't hold 64 bits.
 * @returns the header, or why the element is not a batch
 */
export function readHeader (element: Buffer): Header | string {
  if (!isUtf8(element)) return 'not UTF-8'
  // A worker's batch is matched without parsing a megabyte of sums; the database checks the rest.
  const match = written.exec(element.toString('latin1', 0, 256))
  const entriesAt = match?.[1] === '2' ? element.indexOf(entriesStart) : -1
  if (match !== null && (match[1] === '1' || entriesAt > 0) && Number(match[3]) > 0) {
    return {
      producer: match[2]!,
      seq: Number(match[3]),
      at: Number(match[4]),
      requests: Number(match[5]),
      increments: Number(match[6]),
      ...readEnd(element, entriesAt > 0 ? entriesAt : element.length - 1),
      entries: entriesAt > 0,
    }
  }
  if (element.length > foreignBytesMax) return `not written by a worker, and longer than ${foreignBytesMax} bytes`
  let value: unknown
  try {
    value = JSON.parse(element.toString())
  } catch {
    return 'not JSON'
  }
  return checkHeader(value)
}

/**
 * Bytes of the entries in one batch that are read, at most. A worker adds entries until the batch has batchBytesMax, so
 * what it writes has one entry more than that at most. The shortest of that size take a second to apply.
 */
const entriesBytesMax = 2 * batchBytesMax

/**
 * Reads the entries of plugins of a batch whose header says that there are some.
 * @returns the entries, in their order; or why they can't be read
 */
export function readEntries (element: Buffer): PluginEntry[] | string {
  // Our own begin where the first of these bytes are: in a key their quotes would be escaped.
  const start = element.indexOf(entriesStart)
  const isOurs = written.test(element.toString('latin1', 0, 256)) && start > 0
  if (isOurs && element.length - start > entriesBytesMax) return '"plugins" has more than a worker sends'
  try {
    const value: unknown = isOurs
      ? JSON.parse(element.toString('utf8', start + entriesStart.length - 1, element.length - 1))
      : Reflect.get(JSON.parse(element.toString()), 'plugins')
    return parseEntries(value) ?? '"plugins" is not an array of entries'
  } catch {
    return '"plugins" is not JSON'
  }
}

/**
 * The JSON of a batch whose header says that it has entries, without them: SQLite can't read what is nested deeper than
 * 1,000 levels, and what a plugin sends must not cost others their sums.
 */
export function withoutEntries (element: Buffer): string {
  const start = element.indexOf(entriesStart)
  const isOurs = written.test(element.toString('latin1', 0, 256)) && start > 0
  return isOurs ? `${element.toString('utf8', 0, start)}}` : element.toString()
}

const emptyOnce = ',"once":['
const [bracket, brace] = [0x5d, 0x7d]

/**
 * What a worker writes behind the last idempotent request, and whether there is any.
 * @param end where the entries of plugins begin, or else the last brace
 */
function readEnd (element: Buffer, end: number): Pick<Header, 'once' | 'storedWithinMs'> {
  if (element[element.length - 1] !== brace) return { once: true }
  if (element[end - 1] === bracket) return { once: !hasEmptyOnce(element, end - 1) }
  const tail = /\](,"ack":"stored","timeout":(\d{1,15}))$/.exec(element.toString('latin1', Math.max(0, end - 47), end))
  if (tail === null) return { once: true }
  return { once: !hasEmptyOnce(element, end - tail[1]!.length - 1), storedWithinMs: Number(tail[2]) }
}

/** @param end where `once` ends, with its bracket */
function hasEmptyOnce (element: Buffer, end: number): boolean {
  return end >= emptyOnce.length && element.toString('latin1', end - emptyOnce.length, end) === emptyOnce
}

function checkHeader (value: unknown): Header | string {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return 'not a JSON object'
  const field = (name: string): unknown => Object.hasOwn(value, name) ? Reflect.get(value, name) : undefined
  const version = field('v')
  if (version !== 0 && version !== 1 && version !== batchVersion) return `"v" is not a version up to ${batchVersion}`
  const producer = field('producer')
  if (typeof producer !== 'string' || !/^[0-9a-f-]{36}$/i.test(producer)) return '"producer" is not a UUID'
  const numbers: { [name: string]: number } = {}
  for (const name of ['seq', 'at', 'requests', 'increments']) {
    const number = field(name)
    const least = name === 'seq' ? 1 : 0
    if (typeof number !== 'number' || !Number.isInteger(number) || number < least || number > headerNumberMax) {
      return `"${name}" is not a whole number of at most 15 digits`
    }
    numbers[name] = number
  }
  const sums = field('sums')
  if (typeof sums !== 'object' || sums === null || Array.isArray(sums)) return '"sums" is not an object'
  const once = field('once') ?? []
  if (!Array.isArray(once)) return '"once" is not an array'
  const entries = version === batchVersion ? parseEntries(field('plugins') ?? []) : []
  if (entries === undefined) return '"plugins" is not an array of entries'
  const { seq, at, requests, increments } = numbers as Record<'seq' | 'at' | 'requests' | 'increments', number>
  const timeout = field('ack') === 'stored' ? field('timeout') : undefined
  return {
    producer,
    seq,
    at,
    requests,
    increments,
    once: once.length > 0,
    entries: entries.length > 0,
    ...(typeof timeout === 'number' && Number.isInteger(timeout) && timeout >= 0
      ? { storedWithinMs: timeout }
      : {}),
  }
}

/**
 * The version of a well-formed batch that a newer program wrote, and that this one can't read without losing something;
 * undefined of everything else, whether it can be read or not.
 */
export function newerVersion (element: Buffer): number | undefined {
  if (element.length > elementReadMax || !isUtf8(element)) return undefined
  let value: unknown
  try {
    value = JSON.parse(element.toString())
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null || !('v' in value) || typeof value.v !== 'number') return undefined
  if (!Number.isSafeInteger(value.v) || value.v <= batchVersion) return undefined
  return typeof checkHeader({ ...value, v: 1 }) === 'string' ? undefined : value.v
}

/** No version will make elements longer: Redis would be busy with them for too long. */
const elementReadMax = 8 * 1024 * 1024
