// What the fast lane's second matcher matches as a whole request of its shape, and what it leaves to Node's parser.
import { describe, expect, test } from 'vitest'
import { PostMatcher, type PostMatcherOptions } from '../src/fast-lane/post-matcher.ts'

const formType = 'application/x-www-form-urlencoded'

/** A request of the shape. Lines are added behind its headers. */
function request (...lines: readonly string[]): string {
  return `POST /tickets/boat HTTP/1.1\r\nHost: x\r\n${lines.map((line) => `${line}\r\n`).join('')}\r\n`
}

function create (options: Partial<PostMatcherOptions> = {}): PostMatcher {
  return new PostMatcher({
    prefix: '/tickets/', isHostAllowed: (host) => host === 'x', isCallerAllowed: undefined, ...options,
  })
}

function read (text: string, matcher = create()): { matched: string, matcher: PostMatcher } {
  const bytes = Buffer.from(text, 'latin1')
  return { matched: matcher.read(bytes, 0, bytes.length), matcher }
}

const usual = request()
const headOf = (bytes: number): string => request(`X: ${'x'.repeat(bytes - request('X: ').length)}`)
const named = (name: string): string => usual.replace('boat', () => name)

describe('a request matches as whole', () => {
  test.each<[name: string, text: string]>([
    ['the usual head', usual],
    ['a length of 0', request('Content-Length: 0')],
    ['a form\'s type', request('Content-Length: 0', `Content-Type: ${formType}`)],
    ['a form\'s type and no length', request(`Content-Type: ${formType}; charset=UTF-8`)],
    ['any Accept', request('Accept: */*')],
    ['an Accept of JSON', request('accept:application/json \t')],
    ['Connection: keep-alive', request('Connection: Keep-Alive')],
    ['headers that mean nothing here', request('User-Agent: wrk/4', 'X-Empty:', 'Accept-Encoding: gzip', 'Accepts: y')],
    ['a head of 4096 bytes', headOf(4096)],
  ])('with %s', (_name, text) => {
    const { matched, matcher } = read(text)
    expect([matched, matcher.name, matcher.end]).toEqual(['whole', 'boat', text.length])
  })

  test.each(['a', '-._~', '...', 'AZaz09', 'n'.repeat(256)])('with the name %s', (name) => {
    const { matched, matcher } = read(named(name))
    expect([matched, matcher.name]).toEqual(['whole', name])
  })

  test('behind another, whatever is around it', () => {
    const bytes = Buffer.from(`${usual}${named('dock')}${usual}GET / HTTP/1.1\r\n`)
    const matcher = create()
    const names = []
    let at = 0
    for (; matcher.read(bytes, at, bytes.length) === 'whole'; at = matcher.end) names.push(matcher.name)
    expect(names).toEqual(['boat', 'dock', 'boat'])
    expect(at).toBe(bytes.length - 'GET / HTTP/1.1\r\n'.length)
  })
})

describe('a caller', () => {
  const options = { isCallerAllowed: (authorization: string | undefined) => authorization === 'Bearer a' }

  test('is checked for each head that differs, and not let in by the head before', () => {
    const matcher = create(options)
    const right = request('Authorization: Bearer a')
    expect(read(right, matcher).matched).toBe('whole')
    expect(read(right, matcher).matched).toBe('whole')
    expect(read(request('Authorization: Bearer b'), matcher).matched).toBe('other')
    expect(read(usual, matcher).matched).toBe('other')
    expect(read(right, matcher).matched).toBe('whole')
  })

  test('may be let in for sending no key', () => {
    const matcher = create({ isCallerAllowed: (authorization) => authorization === undefined })
    expect(read(usual, matcher).matched).toBe('whole')
    expect(read(request('Authorization: Bearer b'), matcher).matched).toBe('other')
  })
})

test('every beginning of a request is partial', () => {
  const bytes = Buffer.from(request('Connection: keep-alive', 'Content-Length: 0', 'Accept: */*'))
  const matcher = create()
  for (let end = 0; end < bytes.length; end++) expect(matcher.read(bytes, 0, end), `${end} bytes`).toBe('partial')
  expect(matcher.read(bytes, 0, bytes.length)).toBe('whole')
  for (let end = 0; end < bytes.length; end++) expect(matcher.read(bytes, 0, end), `${end} bytes`).toBe('partial')
})

describe('a request is left to Node', () => {
  test.each<[name: string, text: string]>([
    ...['Transfer-Encoding: chunked', 'Expect: 100-continue', 'Upgrade: h2c', 'Connection: close', 'Connection:',
      'TE: trailers', 'Trailer: X', 'Content-Encoding: gzip', 'Origin: http://x', 'Proxy-Connection: close',
      'HTTP2-Settings: x', 'Idempotency-Key: k', 'Idempotency-Key:', 'Authorization: ', 'Host: x', 'Content-Length: 1',
      'Content-Length: 00', 'Content-Length: +0', 'Content-Length:', 'Content-Type: text/plain', 'Content-Type:',
      `Content-Type: ${formType.toUpperCase()}`, 'Accept: text/plain', 'Accept: */*;q=0.1', 'Accept: text/html, */*',
      'Accept: APPLICATION/JSON', 'Accept:'].map((line): [string, string] => [line, request(line)]),
    ...['Connection: keep-alive', 'Content-Length: 0', 'Accept: */*', 'Authorization: a', `Content-Type: ${formType}`]
      .map((line): [string, string] => [`two of ${line}`, request(line, line)]),
    ['no Host', usual.replace('Host: x\r\n', '')],
    ['an empty Host', usual.replace('Host: x', 'Host:')],
    ['a Host that is not ours', usual.replace('Host: x', 'Host: y')],
    ...[' x: y', 'x : y', ': y', 'x', 'x\0: y', 'x: a\0', 'x: \xe9', 'x: a\rb', 'x: a\nb', 'x: a\r\n b']
      .map((line): [string, string] => [`the line ${JSON.stringify(line)}`, request(line)]),
    ['line feeds alone', usual.replaceAll('\r\n', '\n')],
    ['a line feed alone at the end of the head', usual.replace('\r\n\r\n', '\r\n\n')],
    ...['', '.', '..', 'a%62', 'a/b', '/a', 'a/', 'a;b', 'a,b', 'a:b', 'a@b', 'a+b', 'a!b', 'a*', '\xe9', 'a\0', 'a\\b',
      'a?', 'a?count=2', 'a#b', 'n'.repeat(257)].map((name): [string, string] => [`the name ${name}`, named(name)]),
    ...['/Tickets/boat', '/tickets', '/ticketsboat', '//tickets/boat', 'http://x/tickets/boat', '/increment']
      .map((path): [string, string] => [path, usual.replace('/tickets/boat', path)]),
    ...['post', 'GET', 'PUT', ' POST', '\r\nPOST', 'POST ']
      .map((method): [string, string] => [`the method ${JSON.stringify(method)}`, usual.replace('POST', method)]),
    ...[' HTTP/1.0', ' HTTP/1.2', ' http/1.1', '  HTTP/1.1', '\tHTTP/1.1', ' HTTP/1.1 ', '']
      .map((version): [string, string] =>
        [`the version ${JSON.stringify(version)}`, usual.replace(' HTTP/1.1', version)]),
    ['a head of 4097 bytes', headOf(4097)],
  ])('with %s', (_name, text) => {
    expect(read(text).matched).toBe('other')
  })
})
