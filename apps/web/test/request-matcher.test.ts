// What the fast lane's matcher matches as a whole request of its shape, and what it leaves to Node's parser.
import { describe, expect, test } from 'vitest'
import { RequestMatcher } from '../src/fast-lane/request-matcher.ts'

const bodyBytesMax = 100
const formType = 'application/x-www-form-urlencoded'

/** A request of the shape. Lines are added behind its headers. */
function request (...lines: readonly string[]): string {
  return `POST /increment HTTP/1.1\r\nHost: x\r\nContent-Type: ${formType}\r\nContent-Length: ` +
    `3\r\n${lines.map((line) => `${line}\r\n`).join('')}\r\na=1`
}

function read (text: string): { matched: string, matcher: RequestMatcher } {
  const matcher = new RequestMatcher({ bodyBytesMax })
  const bytes = Buffer.from(text, 'latin1')
  return { matched: matcher.read(bytes, 0, bytes.length), matcher }
}

const usual = request()
const headOf = (bytes: number): string => {
  const rest = request('X: ').length - 3
  return request(`X: ${'x'.repeat(bytes - rest)}`)
}

describe('a request matches as whole', () => {
  test.each<[name: string, text: string]>([
    ['the usual head', usual],
    ['names in any case',
      usual.replace('Host', 'hOST').replace('Content-Type', 'content-type').replace('Content-Length',
        'CONTENT-LENGTH')],
    ['no blank, or several, before a value, and behind it',
      usual.replace('Host: x', 'Host:x \t').replace('Length: 3', 'Length:\t 3  ')],
    ['Connection: keep-alive', request('Connection: Keep-Alive')],
    ['headers that mean nothing here',
      request('User-Agent: wrk/4', 'Accept: */*', 'X-Empty:', "!#$%&'*+-.^_`|~09: x", 'Content-Lengths: 9',
        'Hosts: y')],
    ['UTF-8 as charset', usual.replace(formType, `${formType}; charset=UTF-8`)],
    ['a head of 4096 bytes', headOf(4096)],
  ])('with %s', (_name, text) => {
    const { matched, matcher } = read(text)
    expect(matched).toBe('whole')
    expect(text.slice(matcher.bodyStart, matcher.bodyEnd)).toBe('a=1')
  })

  test.each(['memory', 'queued', 'stored'] as const)('with ?ack=%s', (ack) => {
    const { matched, matcher } = read(usual.replace('/increment', `/increment?ack=${ack}`))
    expect([matched, matcher.ack]).toEqual(['whole', ack])
  })

  test('without anything of the request before it', () => {
    const matcher = new RequestMatcher({ bodyBytesMax })
    const first = Buffer.from(request('Authorization: Bearer a b', 'Idempotency-Key:\tk\t').replace('/increment',
      '/increment?ack=memory'))
    expect(matcher.read(first, 0, first.length)).toBe('whole')
    expect(matcher).toMatchObject({ ack: 'memory', authorization: 'Bearer a b', idempotencyKey: 'k' })
    const second = Buffer.from(usual)
    expect(matcher.read(second, 0, second.length)).toBe('whole')
    expect([matcher.ack, matcher.authorization, matcher.idempotencyKey]).toEqual([undefined, undefined, undefined])
  })

  test('behind another, whatever is around it', () => {
    const bytes = Buffer.from(`${usual}${request('X: y').replace('a=1', 'b=2')}GET / HTTP/1.1\r\n`)
    const matcher = new RequestMatcher({ bodyBytesMax })
    expect(matcher.read(bytes, 0, bytes.length)).toBe('whole')
    expect(matcher.bodyEnd).toBe(usual.length)
    expect(matcher.read(bytes, matcher.bodyEnd, bytes.length)).toBe('whole')
    expect(bytes.toString('latin1', matcher.bodyStart, matcher.bodyEnd)).toBe('b=2')
    expect(matcher.read(bytes, matcher.bodyEnd, bytes.length)).toBe('other')
  })
})

test('every beginning of a request is partial, and says where its body will end once its head is there', () => {
  const bytes = Buffer.from(request('Connection: keep-alive', 'Idempotency-Key: k').replace('/increment',
    '/increment?ack=stored'))
  const matcher = new RequestMatcher({ bodyBytesMax })
  for (let end = 0; end < bytes.length; end++) {
    expect(matcher.read(bytes, 0, end), `${end} bytes`).toBe('partial')
    expect(matcher.bodyEnd, `after ${end} bytes`).toBe(end < bytes.length - 3 ? 0 : bytes.length)
  }
})

describe('a request is left to Node', () => {
  test.each<[name: string, text: string]>([
    ...['Transfer-Encoding: chunked', 'Expect: 100-continue', 'Upgrade: h2c', 'Connection: close',
      'Connection: keep-alive, close', 'Connection:', 'TE: trailers', 'Trailer: X', 'Content-Encoding: gzip',
      'Origin: http://x', 'Proxy-Connection: close', 'HTTP2-Settings: x', 'transfer-encoding:', 'EXPECT:',
      'Idempotency-Key:', 'Authorization: ', 'Host: y', 'Content-Length: 3', `Content-Type: ${formType}`]
      .map((line): [string, string] => [line, request(line)]),
    ['two of a kind', request('Connection: keep-alive', 'Connection: keep-alive')],
    ['two Idempotency-Keys', request('Idempotency-Key: a', 'Idempotency-Key: a')],
    ['two Authorizations', request('Authorization: a', 'Authorization: a')],
    ...['0', '03', '+3', '-3', '3.0', '0x3', '3, 3', '3 3', '101', '100000000', '99999999999999999999',
      ''].map((length): [string, string] => [`Content-Length: ${length}`,
      usual.replace('Length: 3', `Length: ${length}`)]),
    ...['Host', 'Content-Type',
      'Content-Length'].map((name): [string, string] =>
      [`no ${name}`, usual.replace(new RegExp(`${name}: .*\r\n`), '')]),
    ['an empty Host', usual.replace('Host: x', 'Host:')],
    ...['text/plain', `${formType}x`, `${formType};`, `${formType}; charset=latin1`, formType.toUpperCase(),
      `${formType}, ${formType}`].map((type): [string, string] => [`the type ${type}`, usual.replace(formType, type)]),
    ...[' x: y', 'x : y', ': y', 'x', 'x y: z', 'x(y): z', 'x\0: y', 'x: a\0', 'x: a\x7f', 'x: \xe9', 'x\xe9: y',
      'x: a\rb', 'x: a\nb',
      'x: a\r\n b'].map((line): [string, string] => [`the line ${JSON.stringify(line)}`, request(line)]),
    ['line feeds alone', usual.replaceAll('\r\n', '\n')],
    ['a line feed alone at the end of the head', usual.replace('\r\n\r\n', '\r\n\n')],
    ...['post', 'GET', ' POST', '\r\nPOST',
      'POST '].map((method): [string, string] => [`the method ${JSON.stringify(method)}`,
      usual.replace('POST', method)]),
    ...['/increment/', '/Increment', '/increment?', '/increment?ack=', '/increment?ack=sure', '/increment?ack=memory&',
      '/increment?ack=memoryx', '/increment?form=pairs', '/%69ncrement', 'http://x/increment', '/increment#',
      '/increments'].map((url): [string, string] => [url, usual.replace('/increment', url)]),
    ...[' HTTP/1.0', ' HTTP/1.2', ' HTTP/2.0', ' http/1.1', '  HTTP/1.1', '\tHTTP/1.1', ' HTTP/1.1 ',
      ''].map((version): [string, string] => [`the version ${JSON.stringify(version)}`,
      usual.replace(' HTTP/1.1', version)]),
    ['a head of 4097 bytes', headOf(4097)],
  ])('with %s', (_name, text) => {
    expect(read(text).matched).toBe('other')
  })
})
