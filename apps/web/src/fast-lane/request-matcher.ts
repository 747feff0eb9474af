// Matches the one shape of request that the fast lane serves. It is pure, and strict on purpose: everything else, HTTP
// or not, is for Node's parser, so nothing unusual is ever decided here.
import type { AckLevel } from '@gearbox/protocol/ack-levels.ts'

/**
 * whole: fields say where its parts are. partial: more bytes may make it whole. other: no further bytes can make it
 * this shape.
 */
export type Match = 'whole' | 'partial' | 'other'

/** A longer head is for Node, which accepts 16 KiB; the heads of today's clients are under 1 KiB. */
const headBytesMax = 4096

const [tab, lineFeed, carriageReturn, space] = [0x09, 0x0a, 0x0d, 0x20]
const [zero, nine, colon, question] = [0x30, 0x39, 0x3a, 0x3f]

const version = Buffer.from(' HTTP/1.1\r\n')
const queries = (['memory', 'queued', 'stored'] as const).map((ack) => ({ ack, bytes: Buffer.from(`?ack=${ack}`) }))

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

type Header = 'host' | 'length' | 'type' | 'connection' | 'authorization' | 'idempotency key' | 'other'

/** Headers that change what a request is, in a way that is left to Node. */
const otherNames = [
  'transfer-encoding', 'content-encoding', 'expect', 'upgrade', 'origin', 'trailer', 'te', 'proxy-connection',
  'http2-settings',
]

/** The headers that matter here, by the length of their names. All others are ignored. */
const headersByLength: ReadonlyArray<ReadonlyArray<{ readonly name: Buffer, readonly header: Header }>> = (() => {
  const byLength: Array<Array<{ name: Buffer, header: Header }>> = Array.from({ length: 32 }, () => [])
  const known: ReadonlyArray<readonly [string, Header]> = [
    ['host', 'host'],
    ['content-length', 'length'],
    ['content-type', 'type'],
    ['connection', 'connection'],
    ['authorization', 'authorization'],
    ['idempotency-key', 'idempotency key'],
    ...otherNames.map((name) => [name, 'other'] as const),
  ]
  for (const [name, header] of known) byLength[name.length]!.push({ name: Buffer.from(name), header })
  return byLength
})()

/** What a request must have to match. */
export interface RequestMatcherOptions {
  /** The part of the path before /increment; default: none. */
  readonly basePath?: string
  /** Longest body that matches. */
  readonly bodyBytesMax: number
  /**
   * Whether the Host is one of ours; default: any is. Called only for a Host that differs from the last one allowed.
   */
  readonly isHostAllowed?: (host: string) => boolean
  /**
   * Whether the Authorization, or its absence, lets its sender count; default: all may. Called once per head that is
   * read.
   */
  readonly isCallerAllowed?: ((authorization: string | undefined) => boolean) | undefined
}

/**
 * Matches one request at a time, of all connections. It remembers the head of the last whole request: the next one
 * often begins with the same bytes, and then its head is not read again.
 */
export class RequestMatcher {
  readonly #path: Buffer
  readonly #bodyBytesMax: number
  readonly #isHostAllowed: (host: string) => boolean
  readonly #isCallerAllowed: RequestMatcherOptions['isCallerAllowed']
  /** The last Host that was allowed. */
  #host: Buffer = Buffer.alloc(0)
  /** These five are of the last whole request. The body is [bodyStart, bodyEnd) of the bytes that were read. */
  ack: AckLevel | undefined
  authorization: string | undefined
  idempotencyKey: string | undefined
  bodyStart = 0
  bodyEnd = 0
  /** The bits of the headers that the head has. */
  #seen = 0
  #length = 0
  /** The head of the last whole request, up to its body. */
  readonly #head = Buffer.alloc(headBytesMax)
  #headBytes = 0

  constructor ({ basePath = '', bodyBytesMax, isHostAllowed = () => true, isCallerAllowed }: RequestMatcherOptions) {
    this.#path = Buffer.from(`POST ${basePath}/increment`)
    this.#bodyBytesMax = bodyBytesMax
    this.#isHostAllowed = isHostAllowed
    this.#isCallerAllowed = isCallerAllowed
  }

  /**
   * Reads one request at the start of bytes [start, end). If it is partial and its head is whole, `bodyEnd` says where
   * it will end; with a partial head that is 0.
   */
  read (bytes: Buffer, start: number, end: number): Match {
    if (this.#headBytes > 0 && this.#isSameHead(bytes, start, end)) {
      return this.#findBody(start + this.#headBytes, end)
    }
    this.#headBytes = 0
    const matched = this.#readHead(bytes, start, end)
    if (matched === 'whole') {
      this.#headBytes = this.bodyStart - start
      this.#head.set(bytes.subarray(start, this.bodyStart))
    }
    return matched
  }

  /**
   * Whether these bytes begin with the last head. If that has an API key, all of it is compared, in a time that depends
   * on no key.
   */
  #isSameHead (bytes: Buffer, start: number, end: number): boolean {
    if (this.authorization === undefined) return matches(bytes, start, end, this.#head, this.#headBytes) === 'whole'
    if (end - start < this.#headBytes) return false
    let difference = 0
    for (let i = 0; i < this.#headBytes; i++) difference |= bytes[start + i]! ^ this.#head[i]!
    return difference === 0
  }

  #readHead (bytes: Buffer, start: number, end: number): Match {
    this.ack = undefined
    this.authorization = this.idempotencyKey = undefined
    this.bodyEnd = 0
    this.#seen = 0
    this.#length = -1
    let at = start + this.#path.length
    const begun = matches(bytes, start, end, this.#path)
    if (begun !== 'whole') return begun
    if (at === end) return 'partial'
    if (bytes[at] === question) {
      // The first letter of the level is different in each.
      const first = at + '?ack='.length
      if (first >= end) return matches(bytes, at, end, queries[0]!.bytes)
      const query = queries.find((candidate) => candidate.bytes[first - at] === bytes[first])
      if (query === undefined) return 'other'
      const matched = matches(bytes, at, end, query.bytes)
      if (matched !== 'whole') return matched
      at += query.bytes.length
      this.ack = query.ack
    }
    const versioned = matches(bytes, at, end, version)
    if (versioned !== 'whole') return versioned
    return this.#readHeaders(bytes, start, at + version.length, end)
  }

  #readHeaders (bytes: Buffer, start: number, from: number, end: number): Match {
    const last = Math.min(end, start + headBytesMax)
    const partial = last < end ? 'other' : 'partial'
    for (let at = from; ;) {
      if (at >= last) return partial
      if (bytes[at] === carriageReturn) {
        if (at + 1 >= last) return partial
        if (bytes[at + 1] !== lineFeed || this.#isCallerAllowed?.(this.authorization) === false) return 'other'
        return this.#findBody(at + 2, end)
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
      if (!this.#readHeader(bytes, nameStart, nameEnd, valueStart, valueEnd)) return 'other'
    }
  }

  /** @returns false if the header makes the request another shape */
  #readHeader (bytes: Buffer, nameStart: number, nameEnd: number, valueStart: number, valueEnd: number): boolean {
    const candidates = headersByLength[nameEnd - nameStart]
    if (candidates === undefined) return true
    for (const { name, header } of candidates) {
      let i = 0
      while (i < name.length && tokens[bytes[nameStart + i]!] === name[i]) i++
      if (i < name.length) continue
      return header !== 'other' && this.#readValue(header, bytes, valueStart, valueEnd)
    }
    return true
  }

  /** Each of these may be in a request once. @returns whether it has a value of this shape */
  #readValue (header: Exclude<Header, 'other'>, bytes: Buffer, start: number, end: number): boolean {
    const bit = bitOf[header]
    if ((this.#seen & bit) !== 0 || start === end) return false
    this.#seen |= bit
    switch (header) {
      case 'host': return this.#readHost(bytes, start, end)
      case 'length':
        this.#length = readLength(bytes, start, end)
        return this.#length > 0 && this.#length <= this.#bodyBytesMax
      case 'type':
        return formTypes.some((type) => type.length === end - start && matches(bytes, start, end, type) === 'whole')
      case 'connection':
        return end - start === 10 && bytes.toString('latin1', start, end).toLowerCase() === 'keep-alive'
      case 'authorization':
        this.authorization = bytes.toString('latin1', start, end)
        return true
      case 'idempotency key':
        this.idempotencyKey = bytes.toString('latin1', start, end)
        return true
    }
  }

  /** Heads that differ mostly have the same Host, so it becomes a string only if it differs from the last one. */
  #readHost (bytes: Buffer, start: number, end: number): boolean {
    if (end - start === this.#host.length && matches(bytes, start, end, this.#host) === 'whole') return true
    if (!this.#isHostAllowed(bytes.toString('latin1', start, end))) return false
    this.#host = Buffer.copyBytesFrom(bytes, start, end - start)
    return true
  }

  #findBody (bodyStart: number, end: number): Match {
    if ((this.#seen & needed) !== needed) return 'other'
    this.bodyStart = bodyStart
    this.bodyEnd = bodyStart + this.#length
    return this.bodyEnd <= end ? 'whole' : 'partial'
  }
}

const bitOf = { host: 1, length: 2, type: 4, connection: 8, authorization: 16, 'idempotency key': 32 } as const
const needed = bitOf.host | bitOf.length | bitOf.type

/** Whether [at, end) begins with all of what is expected (whole), or is a beginning of it (partial). */
function matches (bytes: Buffer, at: number, end: number, expected: Buffer, expectedBytes = expected.length): Match {
  const length = Math.min(end - at, expectedBytes)
  for (let i = 0; i < length; i++) {
    if (bytes[at + i] !== expected[i]) return 'other'
  }
  return length === expectedBytes ? 'whole' : 'partial'
}

/** Digits only, none of them a leading zero, at most 8 (more than any limit on a body); -1 for anything else. */
function readLength (bytes: Buffer, start: number, end: number): number {
  if (end - start > 8 || bytes[start] === zero) return -1
  let length = 0
  for (let at = start; at < end; at++) {
    const digit = bytes[at]!
    if (digit < zero || digit > nine) return -1
    length = length * 10 + digit - zero
  }
  return length
}
