// What the matchers of the fast lane share: which bytes a head may have, how its headers are read, and the head of the
// request before. It is as strict as they are: what it does not know to be harmless is "other", and Node's parser's.

/**
 * whole: fields say where its parts are. partial: more bytes may make it whole. other: no further bytes can make it
 * this shape.
 */
export type Match = 'whole' | 'partial' | 'other'

/** A longer head is for Node, which accepts 16 KiB; the heads of today's clients are under 1 KiB. */
const headBytesMax = 4096

const [tab, lineFeed, carriageReturn, space, colon] = [0x09, 0x0a, 0x0d, 0x20, 0x3a]

/** What follows the path of a request. */
export const version = Buffer.from(' HTTP/1.1\r\n')

/** By byte: the byte in lower case if a header's name may contain it (RFC 9110, 5.6.2: token), else 0. */
const tokens = new Uint8Array(256)
for (const character of "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz") {
  tokens[character.charCodeAt(0)] = character.charCodeAt(0)
  tokens[character.toUpperCase().charCodeAt(0)] = character.charCodeAt(0)
}

/** By byte: 1 if a header's value may contain it (visible ASCII, spaces and tabs), else 0. */
const valueBytes = new Uint8Array(256).fill(1, space, 0x7f)
valueBytes[tab] = 1

const formTypes = ['', ';charset=utf-8', ';charset=UTF-8', '; charset=utf-8', '; charset=UTF-8']
  .map((parameter) => Buffer.from(`application/x-www-form-urlencoded${parameter}`))

/** Headers that change what a request is, in a way that is left to Node. */
const otherNames = [
  'transfer-encoding', 'content-encoding', 'expect', 'upgrade', 'origin', 'trailer', 'te', 'proxy-connection',
  'http2-settings',
] as const

/** Longest name of a header that matters. */
const nameBytesMax = 31

/** Headers that matter to a matcher, by the length of their names. All others are ignored. */
export type HeaderNames<Header extends string> =
  ReadonlyArray<ReadonlyArray<{ readonly name: Buffer, readonly header: Header | 'other' }>>

/** @param known what a matcher calls each of the headers that it reads, by their lower-case names */
export function headerNames<Header extends string> (
  known: Readonly<Record<string, Header | 'other'>>
): HeaderNames<Header> {
  const byLength: Array<Array<{ name: Buffer, header: Header | 'other' }>> =
    Array.from({ length: nameBytesMax + 1 }, () => [])
  const add = (name: string, header: Header | 'other'): void => {
    byLength[name.length]!.push({ name: Buffer.from(name), header })
  }
  for (const [name, header] of Object.entries(known)) add(name, header)
  for (const name of otherNames) add(name, 'other')
  return byLength
}

/** @returns what a matcher calls the header with this name, or `undefined` for one that does not matter */
export function headerOf<Header extends string> (
  names: HeaderNames<Header>, bytes: Buffer, start: number, end: number
): Header | 'other' | undefined {
  const candidates = names[end - start]
  if (candidates === undefined) return undefined
  for (const { name, header } of candidates) {
    let i = 0
    while (i < name.length && tokens[bytes[start + i]!] === name[i]) i++
    if (i === name.length) return header
  }
  return undefined
}

/** Gets the headers of one head, one by one. */
export interface HeaderReader {
  /** @returns false if the header makes the request another shape */
  readHeader (bytes: Buffer, nameStart: number, nameEnd: number, valueStart: number, valueEnd: number): boolean
}

/**
 * Reads the headers of a head that begins at `start`, from `from` on.
 * @returns where they end, behind the empty line; or 'partial' or 'other'
 */
export function readHeaders (
  bytes: Buffer, start: number, from: number, end: number, reader: HeaderReader
): number | 'partial' | 'other' {
  const last = Math.min(end, start + headBytesMax)
  const partial = last < end ? 'other' : 'partial'
  for (let at = from; ;) {
    if (at >= last) return partial
    if (bytes[at] === carriageReturn) {
      if (at + 1 >= last) return partial
      return bytes[at + 1] === lineFeed ? at + 2 : 'other'
    }
    const nameStart = at
    while (at < last && tokens[bytes[at]!] !== 0) at++
    if (at >= last) return partial
    if (bytes[at] !== colon || at === nameStart) return 'other'
    const nameEnd = at++
    while (at < last && (bytes[at] === space || bytes[at] === tab)) at++
    const valueStart = at
    while (at < last && valueBytes[bytes[at]!] === 1) at++
    let valueEnd = at
    while (valueEnd > valueStart && (bytes[valueEnd - 1] === space || bytes[valueEnd - 1] === tab)) valueEnd--
    if (at + 1 >= last) return at < last && bytes[at] !== carriageReturn ? 'other' : partial
    if (bytes[at] !== carriageReturn || bytes[at + 1] !== lineFeed) return 'other'
    at += 2
    if (!reader.readHeader(bytes, nameStart, nameEnd, valueStart, valueEnd)) return 'other'
  }
}

/** Whether a Content-Type is a form in UTF-8, in one of the spellings that clients use. */
export function isFormType (bytes: Buffer, start: number, end: number): boolean {
  return formTypes.some((type) => type.length === end - start && matches(bytes, start, end, type) === 'whole')
}

/** Whether a Connection only says what is so in any case. */
export function isKeepAlive (bytes: Buffer, start: number, end: number): boolean {
  return end - start === 10 && bytes.toString('latin1', start, end).toLowerCase() === 'keep-alive'
}

/** Heads that differ mostly have the same Host, so it becomes a string only if it differs from the last one allowed. */
export class HostCheck {
  readonly #isAllowed: (host: string) => boolean
  #last: Buffer = Buffer.alloc(0)

  constructor (isAllowed: (host: string) => boolean) {
    this.#isAllowed = isAllowed
  }

  allows (bytes: Buffer, start: number, end: number): boolean {
    if (end - start === this.#last.length && matches(bytes, start, end, this.#last) === 'whole') return true
    if (!this.#isAllowed(bytes.toString('latin1', start, end))) return false
    this.#last = Buffer.copyBytesFrom(bytes, start, end - start)
    return true
  }
}

/** The head of the last whole request, up to its body. The next one often begins with the same bytes. */
export class LastHead {
  readonly #bytes = Buffer.alloc(headBytesMax)
  /** 0 if there is none. */
  length = 0
  /** Whether it has an API key. */
  #isSecret = false

  /** Keeps the bytes [start, end). */
  keep (bytes: Buffer, start: number, end: number, isSecret: boolean): void {
    this.length = end - start
    this.#bytes.set(bytes.subarray(start, end))
    this.#isSecret = isSecret
  }

  /**
   * Whether these bytes begin with it. If it has an API key, all of it is compared, in a time that depends on no key.
   */
  begins (bytes: Buffer, start: number, end: number): boolean {
    const { length } = this
    if (!this.#isSecret) return matches(bytes, start, end, this.#bytes, length) === 'whole'
    if (end - start < length) return false
    let difference = 0
    for (let i = 0; i < length; i++) difference |= bytes[start + i]! ^ this.#bytes[i]!
    return difference === 0
  }
}

/** Whether [at, end) begins with all of what is expected (whole), or is a beginning of it (partial). */
export function matches (
  bytes: Buffer, at: number, end: number, expected: Buffer, expectedBytes = expected.length
): Match {
  const length = Math.min(end - at, expectedBytes)
  for (let i = 0; i < length; i++) {
    if (bytes[at + i] !== expected[i]) return 'other'
  }
  return length === expectedBytes ? 'whole' : 'partial'
}
