// What the fuzz programs send: requests of the fast lane's shapes, requests that are just not of them, and both with
// bytes changed. All is drawn from a seed. Strings hold bytes (latin1).
import { acceptedRows, refusedRows } from '@gearbox/web/fixtures/odd-bodies.ts'
import { Random } from '@gearbox/test-kit/random.ts'

export const apiKeys = ['first-key', 'second/key+=='] as const

/** A request that can still be changed part by part. */
interface Draft {
  line: string
  /** Each without its end of line. */
  headers: string[]
  endOfLine: string
  body: string
  /** What follows the body, which belongs to no request. */
  rest: string
}

/** What a client sends on one connection. */
export interface Case {
  /** What it is made of, to find it again by eye. */
  readonly names: readonly string[]
  /** In as many writes, of which the server sees each by itself. */
  readonly pieces: readonly Buffer[]
}

const formType = 'application/x-www-form-urlencoded'
const queries = ['', '', '?ack=queued', '?ack=memory', '?ack=stored'] as const
const shortBodies = ['a=1', 'foo=1&bar=-20&foo=3', 'key=test1&value=1', 'a=x', 'a=1&', '%61=%31', 'a+b=1',
  'a=9223372036854775807', 'a=9223372036854775808', '\xc3\xa9=1', '\xff=1', 'k=1&l=2&m=3&n=4&o=5&p=6', '=', '&',
  'a=%'] as const
/** Each byte of it makes paths.ts slower by as much as a whole request does; the long ones come seldom. */
const oddBodies = [...acceptedRows,
  ...refusedRows].filter(({ body }) => body.length > 0).map(({ body }) => body.toString('latin1'))
const oddShortBodies = oddBodies.filter((body) => body.length <= 300)

function drawBody (random: Random): string {
  if (random.chance(0.7)) return random.pick(shortBodies)
  const bodies = random.chance(0.03) ? oddBodies : oddShortBodies
  return bodies[random.int(0, bodies.length - 1)]!
}

/** Eight letters that no two requests share, so that no two cases have an Idempotency-Key in common. */
function drawTag (random: Random): string {
  return Array.from({ length: 8 }, () => String.fromCharCode(random.int(0x61, 0x7a))).join('')
}

function drawCase (random: Random, name: string): string {
  return random.pick([name, name.toLowerCase(), name.toUpperCase(),
    Array.from(name, (letter) => random.chance(0.5) ? letter.toUpperCase() : letter.toLowerCase()).join('')])
}

function drawHeader (random: Random, name: string, value: string): string {
  const before = random.chance(0.8) ? ' ' : random.pick(['', '  ', '\t', ' \t '])
  const after = random.chance(0.9) ? '' : random.pick([' ', '\t', '  \t'])
  return `${random.chance(0.5) ? name : drawCase(random, name)}:${before}${value}${after}`
}

/** What the requests for tickets of one connection have in common. */
interface Line {
  readonly name: string
  /**
   * Whether they have a Content-Type. Node serves those of a connection that have none before those that have one, and
   * the fast lane serves all in their order.
   */
  readonly hasType: boolean
}

function drawLine (random: Random): Line {
  return { name: drawTag(random), hasType: random.chance(0.2) }
}

/** A request of one of the fast lane's shapes, at least as to its head. */
function drawUsual (random: Random, line: Line): Draft {
  return random.chance(0.65) ? drawIncrement(random) : drawTicket(random, line)
}

function drawIncrement (random: Random): Draft {
  const body = drawBody(random)
  const headers = [...drawShared(random), drawType(random), drawHeader(random, 'Content-Length', String(body.length))]
  if (random.chance(0.3)) headers.push(drawIdempotencyKey(random))
  if (random.chance(0.1)) headers.push('Accept: */*')
  const line = `POST ${drawBase(random)}/increment${random.pick(queries)} HTTP/1.1`
  return { line, headers: random.shuffle(headers), endOfLine: '\r\n', body, rest: '' }
}

function drawTicket (random: Random, { name, hasType }: Line): Draft {
  const headers = drawShared(random)
  if (random.chance(0.5)) headers.push(drawHeader(random, 'Content-Length', '0'))
  if (hasType) headers.push(drawType(random))
  if (random.chance(0.4)) headers.push(drawHeader(random, 'Accept', random.pick(['*/*', '*/*', 'application/json'])))
  const line = `POST ${drawBase(random)}/tickets/${name} HTTP/1.1`
  return { line, headers: random.shuffle(headers), endOfLine: '\r\n', body: '', rest: '' }
}

function drawBase (random: Random): string {
  return random.chance(0.9) ? '' : '/base'
}

function drawType (random: Random): string {
  return drawHeader(random, 'Content-Type',
    formType + random.pick(['', '', '', ';charset=utf-8', '; charset=utf-8', '; charset=UTF-8', ';charset=UTF-8']))
}

function drawIdempotencyKey (random: Random): string {
  return drawHeader(random, 'Idempotency-Key', drawTag(random) + (random.chance(0.8)
    ? ''
    : random.pick(['x'.repeat(247), 'x'.repeat(248), ' x', '\tx', '!~"\\', '\x7f', '\xe9'])))
}

/** Headers that every request can have. */
function drawShared (random: Random): string[] {
  const headers = [
    drawHeader(random, 'Host',
      random.pick(random.chance(0.9)
        ? ['x', 'localhost:3333', '[::1]', 'LOCALHOST.']
        : ['a b', 'evil.example', 'listed.example:80', '127.0.0.1.evil.example'])),
  ]
  if (random.chance(0.3)) {
    headers.push(drawHeader(random, 'Connection', random.pick(['keep-alive', 'Keep-Alive', 'KEEP-ALIVE'])))
  }
  if (random.chance(0.3)) {
    headers.push(drawHeader(random, 'Authorization',
      random.pick([`Bearer ${apiKeys[0]}`, `Bearer ${apiKeys[0]}`, `Bearer ${apiKeys[1]}`, 'Bearer wrong',
        `bearer ${apiKeys[0]}`, `Bearer  ${apiKeys[0]}`, apiKeys[0]])))
  }
  for (const other of ['User-Agent: wrk', 'Accept-Encoding: gzip, deflate', 'Keep-Alive: timeout=1, max=1', 'X-Empty:',
    'X-Forwarded-For: 1.2.3.4', 'Cookie: a=b', "!#$%&'*+-.^_`|~: x"]) {
    if (random.chance(0.1)) headers.push(other)
  }
  return headers
}

type Quirk = (draft: Draft, random: Random) => void

const isNamed = (name: string) => (header: string): boolean => header.toLowerCase().startsWith(`${name}:`)
/** Changes all headers of a name. */
const change = (name: string, to: (header: string) => string): Quirk =>
  (draft) => { draft.headers = draft.headers.map((header) => isNamed(name)(header) ? to(header) : header) }
const drop = (name: string): Quirk =>
  (draft) => { draft.headers = draft.headers.filter((header) => !isNamed(name)(header)) }
const add = (...choices: readonly [string, ...string[]]): Quirk =>
  (draft, random) => { draft.headers.splice(random.int(0, draft.headers.length), 0, random.pick(choices)) }
const set = (name: string, ...choices: readonly [string, ...string[]]): Quirk => (draft, random) => {
  drop(name)(draft, random)
  add(...choices)(draft, random)
}
/** Changes the path of a request for a ticket; @ is where the line's name is. */
const path = (...choices: readonly [string, ...string[]]): Quirk => (draft, random) => {
  draft.line = draft.line.replace(/\/tickets\/([a-z]{8})\S*/,
    (_path, name: string) => random.pick(choices).replace('@', name))
}
const line = (...choices: readonly [string, ...string[]]): Quirk =>
  (draft, random) => { draft.line = random.pick(choices) }
const length = (of: (bytes: number) => string): Quirk =>
  (draft) => change('content-length', (header) => `${header.split(':', 1)[0]}: ${of(draft.body.length)}`)(draft,
    new Random(0))
const both = (one: Quirk, other: Quirk): Quirk => (draft, random) => {
  one(draft, random)
  other(draft, random)
}
const chunk: Quirk = (draft, random) => {
  const size = random.pick([draft.body.length, draft.body.length, draft.body.length + 1, 0])
  const [extension, trailer] = [random.pick(['', '', ';a=b', ' ']), random.pick(['', 'X: y\r\n'])]
  draft.body = `${size.toString(16)}${extension}\r\n${draft.body}\r\n0\r\n${trailer}\r\n`
}

/** Ways of not being of the shape, or of only just being so. */
const quirks: Readonly<Record<string, Quirk>> = {
  'no Host': drop('host'),
  'an empty Host': set('host', 'Host:', 'Host: ', 'Host:\t'),
  'two Hosts': add('Host: y', 'host: x', 'Host:'),
  'no Content-Length': drop('content-length'),
  'two Content-Lengths': (draft, random) => add(`Content-Length: ${draft.body.length}`, 'Content-Length: 0',
    'Content-Length:', `content-length: ${draft.body.length + 1}`)(draft, random),
  'a list of lengths': length((bytes) => `${bytes}, ${bytes}`),
  'a length with zeros before': length((bytes) => `00${bytes}`),
  'a signed length': length((bytes) => `+${bytes}`),
  'a negative length': length((bytes) => `-${bytes}`),
  'a hexadecimal length': length((bytes) => `0x${bytes.toString(16)}`),
  'a length with a fraction': length((bytes) => `${bytes}.0`),
  'a length with a letter': length((bytes) => `${bytes}a`),
  'a length with a space in it': length((bytes) => `${bytes} 1`),
  'a length with a tab behind': length((bytes) => `${bytes}\t`),
  'a length with spaces behind': length((bytes) => `${bytes}  `),
  'a length that is too long': length((bytes) => String(bytes + 1)),
  'a length that is too short': length((bytes) => String(Math.max(0, bytes - 1))),
  'a huge length': (draft, random) =>
    length(() => random.pick(['65536', '65537', '99999999', '100000000', '18446744073709551616',
      '99999999999999999999999']))(draft, random),
  'an empty length': length(() => ''),
  'no body': both((draft) => { draft.body = '' }, length(() => '0')),
  'a body over the limit': both((draft, random) => {
    draft.body = `a=${'0'.repeat(random.pick([398, 399, 400, 65_533, 65_535, 70_000]))}`
  }, length(String)),
  'many pairs': both((draft, random) => {
    draft.body = Array.from({ length: random.pick([5, 6, 999, 1001]) }, (_, i) => `k${i}=1`).join('&')
  }, length(String)),
  chunks: both(both(drop('content-length'),
    add('Transfer-Encoding: chunked', 'transfer-encoding:chunked', 'Transfer-Encoding: Chunked')), chunk),
  'chunks and a length': both(add('Transfer-Encoding: chunked', 'Transfer-Encoding: identity', 'Transfer-Encoding:'),
    chunk),
  'an odd Transfer-Encoding': add('Transfer-Encoding: gzip, chunked', 'Transfer-Encoding: chunked, gzip',
    'Transfer-Encoding: xchunked', 'Transfer-Encoding : chunked', 'Transfer-Encoding: \x0bchunked',
    'Transfer_Encoding: chunked', 'Transfer-Encoding\0: chunked'),
  TE: add('TE: trailers', 'Trailer: X'),
  Expect: add('Expect: 100-continue', 'Expect: 100-Continue', 'Expect: miracles', 'Expect:'),
  Upgrade: add('Upgrade: h2c', 'Upgrade: websocket', 'Upgrade:'),
  'Connection: Upgrade': both(add('Upgrade: h2c'), add('Connection: Upgrade', 'Connection: upgrade, keep-alive')),
  'HTTP/2 settings': both(add('HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA'), add('Connection: Upgrade, HTTP2-Settings')),
  'another Connection': set('connection', 'Connection: close', 'Connection: Close', 'Connection: keep-alive, close',
    'Connection: close, keep-alive', 'Connection: keep-alive, x', 'Connection:', 'Connection: keep-alive ',
    'Connection: keepalive', 'Connection: keep-alive,', 'Connection: transfer-encoding'),
  'two Connections': both(add('Connection: keep-alive'), add('Connection: close', 'Connection: keep-alive')),
  'Proxy-Connection': add('Proxy-Connection: close', 'Proxy-Connection: keep-alive'),
  'a page of somewhere': add('Origin: https://friend.example', 'Origin: https://stranger.example', 'Origin: http://x',
    'Origin: null', 'Origin:'),
  'a Content-Encoding': add('Content-Encoding: gzip', 'Content-Encoding: identity', 'Content-Encoding:'),
  'another type': set('content-type', 'Content-Type: application/json', `Content-Type: ${formType}x`,
    `Content-Type: ${formType}, text/plain`, 'Content-Type:', 'Content-Type: text/plain'),
  'a parameter of the type': set('content-type', `Content-Type: ${formType};charset=utf-16`,
    `Content-Type: ${formType}; charset=latin1`, `Content-Type: ${formType};`,
      `Content-Type: ${formType} ;charset="utf-8"`, `Content-Type: ${formType}; CHARSET=Utf-8`,
        `Content-Type: ${formType.toUpperCase()}`, `Content-Type: ${formType}; charset=utf-8; charset=utf-8`,
          `Content-Type: ${formType};  charset=utf-8`, `Content-Type: ${formType}; charset=utf8`),
  'two types': add(`Content-Type: ${formType}`, 'Content-Type: text/plain'),
  'no type': drop('content-type'),
  'two Idempotency-Keys': both(add('Idempotency-Key: zzzzzzzzz'),
    add('Idempotency-Key: zzzzzzzzz', 'Idempotency-Key:')),
  'an empty Idempotency-Key': set('idempotency-key', 'Idempotency-Key:', 'Idempotency-Key: \t'),
  'two Authorizations': both(add(`Authorization: Bearer ${apiKeys[0]}`),
    add(`Authorization: Bearer ${apiKeys[1]}`, 'Authorization:', `Proxy-Authorization: Bearer ${apiKeys[0]}`)),
  'an odd Authorization': set('authorization', `Authorization: Bearer\t${apiKeys[0]}`,
    `Authorization: BEARER ${apiKeys[0]}`, `Authorization: Bearer ${apiKeys[0]},${apiKeys[1]}`,
      `Authorization: Bearer ${apiKeys[0]} x`, 'Authorization:', 'Authorization: Bearer',
        `Authorization: Bearer ${apiKeys[0]}\t `, 'Authorization: Basic Og=='),
  'a folded header': add('X-Folded: a\r\n b', 'X-Folded: a\r\n\tb', 'X-Folded:\r\n b', 'Content-Type:\r\n x',
    'X-Folded: a\r\n '),
  'a space before the colon': change('content-length', (header) => header.replace(':', ' :')),
  'a space before the first name': (draft) => { draft.headers[0] = ` ${draft.headers[0]}` },
  'an odd name': add(': x', 'X Y: z', 'X\tY: z', 'X(Y): z', 'X', 'X\xe9: z', 'X\0: z', 'X"Y": z', ' '),
  'an odd byte in a value': add('X: a\0b', 'X: a\x01b', 'X: a\x7fb', 'X: \xff\xfe', 'X: \xc3\xa9', 'X: a\rb', 'X: a\nb',
    'X: a\x0bb', 'X: a\x0cb', 'X: a\tb'),
  'line feeds alone': (draft) => { draft.endOfLine = '\n' },
  'carriage returns alone': (draft) => { draft.endOfLine = '\r' },
  'two carriage returns': (draft) => { draft.endOfLine = '\r\r\n' },
  'a line feed alone, once': change('host', (header) => `${header}\nX: y`),
  'a carriage return alone, once': change('host', (header) => `${header}\rX: y`),
  'another version': line('POST /increment HTTP/1.0', 'POST /increment HTTP/1.2', 'POST /increment HTTP/2.0',
    'POST /increment HTTP/0.9', 'POST /increment', 'POST /increment HTTP/1.1.1', 'POST /increment HTTP/01.1',
    'POST /increment http/1.1', 'POST /increment HTTPS/1.1', 'POST /increment HTTP/1.1 ',
    'POST /increment HTTP/1.1\t'),
  'HTTP/1.0 that is kept alive': both(line('POST /increment HTTP/1.0'), add('Connection: keep-alive')),
  'another method': line('GET /increment HTTP/1.1', 'post /increment HTTP/1.1', 'PUT /increment HTTP/1.1',
    'OPTIONS /increment HTTP/1.1', 'HEAD /increment HTTP/1.1', 'POSTX /increment HTTP/1.1', 'POS /increment HTTP/1.1',
    'CONNECT x:80 HTTP/1.1', 'M-SEARCH * HTTP/1.1'),
  'other blanks in the first line': line('POST  /increment HTTP/1.1', 'POST /increment  HTTP/1.1',
    'POST\t/increment HTTP/1.1', ' POST /increment HTTP/1.1', 'POST /increment\tHTTP/1.1'),
  'another path': line('POST /increment/ HTTP/1.1', 'POST /Increment HTTP/1.1', 'POST /%69ncrement HTTP/1.1',
    'POST http://x/increment HTTP/1.1', 'POST //increment HTTP/1.1', 'POST /increment#x HTTP/1.1',
    'POST /increments HTTP/1.1', 'POST * HTTP/1.1', 'POST /healthz HTTP/1.1', 'POST /increment; HTTP/1.1',
    'POST /./increment HTTP/1.1', 'POST /increment%00 HTTP/1.1', 'POST /incr\xe9ment HTTP/1.1'),
  'another query': line(...['?', '?ack=', '?ack=sure', '?ack=MEMORY', '?ack=memory&', '?&ack=memory',
    '?ack=memory&ack=memory', '?ack=memory&form=pairs', '?form=pairs', '?form=', '?ack=%6demory', '?Ack=memory',
    '?ack=memoryx', '?ack=memor', '?ack=queued#x', '?ack=stored;x', '?ack=q', '?ack[]=memory', '??ack=memory',
    '?ack=stored+'].map((query) => `POST /increment${query} HTTP/1.1`) as [string, ...string[]]),
  'another Accept': set('accept', 'Accept: text/plain', 'Accept: text/plain;q=0.5, */*;q=0.1', 'Accept: */*;q=0.8',
    'Accept: application/*', 'Accept: application/json, text/plain', 'Accept:', 'Accept: APPLICATION/JSON',
    'Accept: application/json;q=0, text/plain'),
  'two Accepts': both(add('Accept: */*'), add('Accept: text/plain', 'accept: */*', 'Accept:')),
  'a form for a ticket': both(both((draft, random) => {
    draft.body = random.pick(['count=2', 'holder=me', 'holder=%C3%A9', 'count=0', 'count=1&count=1', 'x', 'x=1', '&'])
  }, set('content-type', `Content-Type: ${formType}`)), both(drop('content-length'),
    (draft, random) => add(`Content-Length: ${draft.body.length}`)(draft, random))),
  'an Idempotency-Key for a ticket': (draft, random) => add(drawIdempotencyKey(random))(draft, random),
  'a query for a ticket': (draft, random) => {
    const query = random.pick(['?', '?count=3', '?count=1', '?holder=x', '?x=1', '?count=', '#x', '?count=1001'])
    draft.line = draft.line.replace(/(\/tickets\/\S*)/, (all) => `${all}${query}`)
  },
  'an odd line': path('/tickets/', '/tickets/.', '/tickets/..', '/tickets/...', '/tickets/@-._~9Z', '/tickets/@%62c',
    '/tickets/%2e%2e', '/tickets/@/b', '/tickets//@', '/tickets/@/', '/tickets/@;b', '/tickets/@,b', '/tickets/@:b',
    '/tickets/@+b', '/tickets/@!b', '/tickets/@\xe9', '/tickets/@%C3%A9', '/tickets/@%00', '/tickets/@%', '/Tickets/@',
    '/tickets', '/ticket/@', '/tickets/@\\b', '/tickets/@/serve', '/tickets/@/log', '/tickets/*', '/tickets/:name',
    '/tickets/constructor', '/tickets/__proto__', '/tickets/@#b'),
  'a long line': path(`/tickets/@${'n'.repeat(248)}`, `/tickets/@${'n'.repeat(249)}`, `/tickets/@${'9'.repeat(247)}`,
    `/tickets/@${'9'.repeat(248)}`, `/tickets/@${'9'.repeat(249)}`, `/tickets/@${'n'.repeat(3000)}`),
  'a ticket in another way': (draft, random) => {
    draft.line = draft.line.replace(/^POST (\/(?:base\/)?tickets\/\S*) HTTP\/1\.1$/, (_all, path: string) =>
      random.pick([`POST ${path} HTTP/1.0`, `GET ${path} HTTP/1.1`, `PUT ${path} HTTP/1.1`, `POST  ${path} HTTP/1.1`,
        `POST ${path}  HTTP/1.1`, `POST ${path}\tHTTP/1.1`, `POST http://x${path} HTTP/1.1`, `POST ${path}`,
        `POST ${path} HTTP/1.1 `, `DELETE ${path}/1 HTTP/1.1`, `post ${path} HTTP/1.1`]))
  },
  'a blank line before': (draft, random) => {
    draft.line = `${random.pick(['\r\n', '\r\n\r\n', '\n', '\r', '\r\n\r\n\r\n'])}${draft.line}`
  },
  'a blank line behind': (draft, random) => { draft.rest = random.pick(['\r\n', '\r\n\r\n', '\n', '\r', ' ', '\0']) },
  'garbage behind': (draft, random) => {
    draft.rest = random.pick(['no request\r\n\r\n', '\x16\x03\x01\x02\x00\x01', 'a=1',
      'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'])
  },
  'a GET behind': (draft, random) => {
    draft.rest = `GET ${random.pick(['/healthz', '/nothing', '/increment', '/healthz?a=b'])} ` +
    'HTTP/1.1\r\nHost: x\r\n\r\n'
  },
  'a long header': add(`X-Long: ${'x'.repeat(3500)}`, `X-Long: ${'x'.repeat(4096)}`, `X-Long: ${'x'.repeat(16_000)}`,
    `X-Long: ${'x'.repeat(17_000)}`, `${'x'.repeat(4000)}: y`),
  'many headers': (draft, random) => {
    draft.headers.push(...Array.from({ length: random.pick([90, 200, 500, 900, 2100]) }, (_, i) => `x${i % 10}:`))
  },
  'a head of about as many bytes as the fast lane accepts': (draft, random) => {
    const bytes = draft.line.length + 2 + draft.headers.reduce((sum, header) => sum + header.length + 2, 0) + 2
    draft.headers.push(`X: ${'x'.repeat(Math.max(0, 4096 - bytes - 5 + random.int(-2, 2)))}`)
  },
}

const quirkNames = Object.keys(quirks)

function write ({ line, headers, endOfLine, body, rest }: Draft): string {
  return `${[line, ...headers].join(endOfLine)}${endOfLine}${endOfLine}${body}${rest}`
}

/** One request, of the shape or not, before any byte of it is changed. */
function drawRequest (random: Random, names: string[], forLine = drawLine(random)): string {
  const draft = drawUsual(random, forLine)
  while (random.chance(0.35)) {
    const name = quirkNames[random.int(0, quirkNames.length - 1)]!
    names.push(name)
    quirks[name]!(draft, random)
  }
  return write(draft)
}

const oddBytes = ['\r', '\n', '\r\n', '\r\n\r\n', ' ', '\t', ':', '\0', '\x7f', '\x80', '\xff', '0', '1', '9', ',', ';',
  '&', '=', '%', '+', '?', '/', 'HTTP/1.1', 'Content-Length: 3\r\n', 'Transfer-Encoding: chunked\r\n'] as const

/** Changes some bytes, those of the first head more often than others. */
function mutate (random: Random, bytes: string, names: string[], other: string): string {
  const at = random.int(0, random.chance(0.7) ? Math.min(bytes.length, 300) : bytes.length)
  const end = Math.min(bytes.length, at + random.pick([1, 1, 2, 4, 8, 40]))
  const name = random.pick(['flip', 'set', 'insert', 'delete', 'duplicate', 'splice', 'truncate', 'case'])
  names.push(`${name} at ${at}`)
  switch (name) {
    case 'flip': return bytes.slice(0,
      at) + String.fromCharCode((bytes.charCodeAt(at) || 0) ^ (1 << random.int(0, 7))) + bytes.slice(at + 1)
    case 'set': return bytes.slice(0, at) + random.pick(oddBytes) + bytes.slice(at + 1)
    case 'insert': return bytes.slice(0, at) + random.pick(oddBytes) + bytes.slice(at)
    case 'delete': return bytes.slice(0, at) + bytes.slice(end)
    case 'duplicate': return bytes.slice(0, end) + bytes.slice(at)
    case 'splice': return bytes.slice(0, at) + other.slice(random.int(0, other.length))
    case 'truncate': return bytes.slice(0, at)
    default: return bytes.slice(0, at) + (bytes[at] ?? '').toUpperCase() + bytes.slice(at + 1)
  }
}

/** One request alone, for the matcher. */
export function drawBytes (random: Random, names: string[] = []): Buffer {
  let bytes = drawRequest(random, names)
  while (random.chance(0.4)) bytes = mutate(random, bytes, names, drawRequest(random, []))
  return Buffer.from(bytes, 'latin1')
}

/** 1 to 5 requests on one connection in 1 to 6 pieces. */
export function drawCaseOf (random: Random): Case {
  const names: string[] = []
  let bytes = ''
  let last = ''
  // Only requests of one connection are for the same line, so that its numbers follow from their order.
  const forLine = drawLine(random)
  for (let left = random.pick([1, 1, 1, 2, 2, 3, 4, 5]); left > 0; left--) {
    // The same one again, with its Idempotency-Key.
    if (last === '' || !random.chance(0.2)) last = drawRequest(random, names, forLine)
    else names.push('again')
    bytes += last
  }
  while (random.chance(0.35)) bytes = mutate(random, bytes, names, last)
  const whole = Buffer.from(bytes, 'latin1')
  const cuts = Array.from({ length: random.pick([0, 0, 0, 1, 1, 2, 3, 4, 5]) },
    () => random.int(0, random.chance(0.7) ? Math.min(400, whole.length) : whole.length))
    .sort((one, other) => one - other)
  const pieces = [...cuts,
    whole.length].map((cut, i) => whole.subarray(cuts[i - 1] ?? 0, cut)).filter((piece) => piece.length > 0)
  return { names, pieces }
}
