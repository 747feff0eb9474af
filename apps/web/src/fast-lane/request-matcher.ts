// Matches the shape of an increment, the first of the two that the fast lane serves. It is pure, and strict on purpose:
// everything else, HTTP or not, is for Node's parser, so nothing unusual is ever decided here.
import type { AckLevel } from '@gearbox/protocol/ack-levels.ts'
import {
  headerNames, headerOf, HostCheck, isFormType, isKeepAlive, LastHead, matches, readHeaders, version,
  type HeaderReader, type Match,
} from './head.ts'

const [zero, nine, question] = [0x30, 0x39, 0x3f]

const queries = (['memory', 'queued', 'stored'] as const).map((ack) => ({ ack, bytes: Buffer.from(`?ack=${ack}`) }))

type Header = 'host' | 'length' | 'type' | 'connection' | 'authorization' | 'idempotency key'

const names = headerNames<Header>({
  host: 'host',
  'content-length': 'length',
  'content-type': 'type',
  connection: 'connection',
  authorization: 'authorization',
  'idempotency-key': 'idempotency key',
})

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
export class RequestMatcher implements HeaderReader {
  readonly #path: Buffer
  readonly #bodyBytesMax: number
  readonly #host: HostCheck
  readonly #isCallerAllowed: RequestMatcherOptions['isCallerAllowed']
  /** These five are of the last whole request. The body is [bodyStart, bodyEnd) of the bytes that were read. */
  ack: AckLevel | undefined
  authorization: string | undefined
  idempotencyKey: string | undefined
  bodyStart = 0
  bodyEnd = 0
  /** The bits of the headers that the head has. */
  #seen = 0
  #length = 0
  readonly #head = new LastHead()

  constructor ({ basePath = '', bodyBytesMax, isHostAllowed = () => true, isCallerAllowed }: RequestMatcherOptions) {
    this.#path = Buffer.from(`POST ${basePath}/increment`)
    this.#bodyBytesMax = bodyBytesMax
    this.#host = new HostCheck(isHostAllowed)
    this.#isCallerAllowed = isCallerAllowed
  }

  /**
   * Reads one request at the start of bytes [start, end). If it is partial and its head is whole, `bodyEnd` says where
   * it will end; with a partial head that is 0.
   */
  read (bytes: Buffer, start: number, end: number): Match {
    const head = this.#head
    if (head.length > 0 && head.begins(bytes, start, end)) return this.#findBody(start + head.length, end)
    this.bodyEnd = 0
    // A request for another path leaves the last head as it is.
    const begun = matches(bytes, start, end, this.#path)
    if (begun !== 'whole') return begun
    head.length = 0
    const matched = this.#readHead(bytes, start, end)
    if (matched === 'whole') head.keep(bytes, start, this.bodyStart, this.authorization !== undefined)
    return matched
  }

  #readHead (bytes: Buffer, start: number, end: number): Match {
    this.ack = undefined
    this.authorization = this.idempotencyKey = undefined
    this.#seen = 0
    this.#length = -1
    let at = start + this.#path.length
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
    const bodyStart = readHeaders(bytes, start, at + version.length, end, this)
    if (typeof bodyStart === 'string') return bodyStart
    return this.#isCallerAllowed?.(this.authorization) === false ? 'other' : this.#findBody(bodyStart, end)
  }

  readHeader (bytes: Buffer, nameStart: number, nameEnd: number, valueStart: number, valueEnd: number): boolean {
    const header = headerOf(names, bytes, nameStart, nameEnd)
    return header === undefined || (header !== 'other' && this.#readValue(header, bytes, valueStart, valueEnd))
  }

  /** Each of these may be in a request once. @returns whether it has a value of this shape */
  #readValue (header: Header, bytes: Buffer, start: number, end: number): boolean {
    const bit = bitOf[header]
    if ((this.#seen & bit) !== 0 || start === end) return false
    this.#seen |= bit
    switch (header) {
      case 'host': return this.#host.allows(bytes, start, end)
      case 'length':
        this.#length = readLength(bytes, start, end)
        return this.#length > 0 && this.#length <= this.#bodyBytesMax
      case 'type': return isFormType(bytes, start, end)
      case 'connection': return isKeepAlive(bytes, start, end)
      case 'authorization':
        this.authorization = bytes.toString('latin1', start, end)
        return true
      case 'idempotency key':
        this.idempotencyKey = bytes.toString('latin1', start, end)
        return true
    }
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
