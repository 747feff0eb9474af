// Matches the second shape that the fast lane serves: the plainest POST to one of a plugin's routes, without a query
// and without a body. It is pure and as strict as request-matcher.ts: everything else is for Node's parser.
import {
  headerNames, headerOf, HostCheck, isFormType, isKeepAlive, LastHead, matches, readHeaders, version,
  type HeaderReader, type Match,
} from './head.ts'

const [zero, space] = [0x30, 0x20]

/** As long as a key. */
const nameBytesMax = 256

/** By byte: 1 if a name may contain it as it is: the unreserved characters of RFC 3986, which no router decodes. */
const nameBytes = new Uint8Array(256)
for (const character of 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~') {
  nameBytes[character.charCodeAt(0)] = 1
}

/** Whatever a route makes of Accept, these ask for its JSON. */
const acceptable = ['*/*', 'application/json'].map((type) => Buffer.from(type))

type Header = 'host' | 'length' | 'type' | 'connection' | 'accept' | 'authorization'

const names = headerNames<Header>({
  host: 'host',
  'content-length': 'length',
  'content-type': 'type',
  connection: 'connection',
  accept: 'accept',
  authorization: 'authorization',
  'idempotency-key': 'other',
})

/** What a request must have to match. */
export interface PostMatcherOptions {
  /** What comes before the name in the path, with BASE_PATH. It ends with a slash. */
  readonly prefix: string
  /** Whether the Host is one of ours. Called only for a Host that differs from the last one allowed. */
  readonly isHostAllowed: (host: string) => boolean
  /**
   * Whether the Authorization, or its absence, lets its sender in; undefined: all may. Called once per head that is
   * read.
   */
  readonly isCallerAllowed: ((authorization: string | undefined) => boolean) | undefined
}

/**
 * Matches one request at a time, of all connections. It remembers the head of the last whole request, as
 * `RequestMatcher` does.
 */
export class PostMatcher implements HeaderReader {
  readonly #path: Buffer
  readonly #host: HostCheck
  readonly #isCallerAllowed: PostMatcherOptions['isCallerAllowed']
  /** These two are of the last whole request: the name in its path, and where it ends in the bytes that were read. */
  name = ''
  end = 0
  #authorization: string | undefined
  /** The bits of the headers that the head has. */
  #seen = 0
  readonly #head = new LastHead()

  constructor ({ prefix, isHostAllowed, isCallerAllowed }: PostMatcherOptions) {
    this.#path = Buffer.from(`POST ${prefix}`)
    this.#host = new HostCheck(isHostAllowed)
    this.#isCallerAllowed = isCallerAllowed
  }

  /** Reads one request at the start of bytes [start, end). */
  read (bytes: Buffer, start: number, end: number): Match {
    const head = this.#head
    if (head.length > 0 && head.begins(bytes, start, end)) {
      this.end = start + head.length
      return 'whole'
    }
    const begun = matches(bytes, start, end, this.#path)
    if (begun !== 'whole') return begun
    head.length = 0
    const matched = this.#readHead(bytes, start, end)
    if (matched === 'whole') head.keep(bytes, start, this.end, this.#authorization !== undefined)
    return matched
  }

  #readHead (bytes: Buffer, start: number, end: number): Match {
    this.#authorization = undefined
    this.#seen = 0
    const nameStart = start + this.#path.length
    const last = Math.min(end, nameStart + nameBytesMax + 1)
    let at = nameStart
    while (at < last && nameBytes[bytes[at]!] === 1) at++
    if (at - nameStart > nameBytesMax) return 'other'
    if (at === end) return 'partial'
    if (at === nameStart || bytes[at] !== space) return 'other'
    const name = bytes.toString('latin1', nameStart, at)
    // Clients and proxies take these out of a path.
    if (name === '.' || name === '..') return 'other'
    const versioned = matches(bytes, at, end, version)
    if (versioned !== 'whole') return versioned
    const headEnd = readHeaders(bytes, start, at + version.length, end, this)
    if (typeof headEnd === 'string') return headEnd
    if ((this.#seen & bitOf.host) === 0 || this.#isCallerAllowed?.(this.#authorization) === false) return 'other'
    this.name = name
    this.end = headEnd
    return 'whole'
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
      case 'length': return end - start === 1 && bytes[start] === zero
      case 'type': return isFormType(bytes, start, end)
      case 'connection': return isKeepAlive(bytes, start, end)
      case 'accept':
        return acceptable.some((type) => type.length === end - start && matches(bytes, start, end, type) === 'whole')
      case 'authorization':
        this.#authorization = bytes.toString('latin1', start, end)
        return true
    }
  }
}

const bitOf = { host: 1, length: 2, type: 4, connection: 8, accept: 16, authorization: 32 } as const
