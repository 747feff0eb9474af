// Which pages may count: those of CORS_ORIGINS, in the one form in which browsers send an Origin, and those of the host
// itself.
import { describe, expect, test } from 'vitest'
import { Hosts } from '../src/access/hosts.ts'
import { Origins, parseOrigin } from '../src/access/origins.ts'

function origins (corsOrigins: readonly string[], hostsAllowed: readonly string[] = []): Origins {
  return new Origins(corsOrigins.map(parseOrigin), new Hosts({ host: '127.0.0.1', hostsAllowed, apiKeys: [] }, []))
}

describe('CORS_ORIGINS', () => {
  test('* lets in all, also pages without an origin', () => {
    const all = origins(['https://a.example', '*'])
    expect(all.any).toBe(true)
    for (const origin of ['https://b.example', 'null', 'http://localhost:8080', 'chrome-extension://abc', '']) {
      expect(all.isListed(origin)).toBe(true)
      expect(all.mayCount(origin, 'c.example')).toBe(true)
    }
  })

  const some = origins(['https://*.example.org', 'http://*.local.test:8080', 'https://exact.example'])

  test.each(['https://a.example.org', 'https://a.b.example.org', 'https://xn--bcher-kva.example.org',
    'https://a_b-c.example.org', 'http://x.local.test:8080', 'https://exact.example'])('lets in %s', (origin) => {
    expect(some.isListed(origin)).toBe(true)
  })

  test.each([
    'https://example.org', 'http://a.example.org', 'https://a.example.org:8443', 'https://evil-example.org',
    'https://.example.org', 'https://..example.org', 'https://a..example.org',
    'https://a.example.org.evil.example', 'https://evil.example/.example.org', 'https://evil.example?.example.org',
    'https://evil.example#.example.org', 'https://evil.example:1.example.org',
    'https://evil@a.example.org', 'https://*.example.org', 'https://A.example.org', 'https://a b.example.org',
    'http://x.local.test', 'https://exact.example:443', 'https://a.exact.example', 'null', '',
  ])('does not let in %j', (origin) => {
    expect(some.isListed(origin)).toBe(false)
    expect(some.mayCount(origin, '127.0.0.1:3333')).toBe(false)
  })
})

describe('a page of the host itself', () => {
  const none = origins([], ['counter.example'])

  test.each([
    ['http://127.0.0.1:3333', '127.0.0.1:3333'], ['http://localhost', 'localhost'], ['http://localhost',
      'LOCALHOST:80'], ['https://a.example', 'a.example'], ['https://a.example', 'a.example:443'],
    ['https://a.example:8443', 'a.example:8443'], ['http://[::1]:3333', '[::1]:3333'], ['http://127.0.0.1:3333',
      '127.1:3333'],
    // A proxy has changed the Host, and the name is one of ours.
    ['https://counter.example', '127.0.0.1:3333'], ['http://counter.example', 'gearbox'],
  ])('%s with Host %s may count', (origin, host) => {
    expect(none.mayCount(origin, host)).toBe(true)
  })

  test.each([
    ['http://127.0.0.1:3334', '127.0.0.1:3333'], ['http://localhost:3333', '127.0.0.1:3333'], ['https://a.example',
      'a.example:80'], ['http://a.example', 'a.example:443'],
    ['https://other.example', '127.0.0.1:3333'], ['https://counter.example:8443', '127.0.0.1:3333'],
    ['https://counter.example.evil.example', '127.0.0.1:3333'], ['http://192.0.2.1', '127.0.0.1:3333'],
    ['http://gearbox', '127.0.0.1:3333'], ['file://', ''], ['http://', ''], ['null', 'null'], ['http://a.example/',
      'a.example'], ['http://A.example', 'a.example'], ['ftp://a.example', 'a.example'],
    ['http://a.example', undefined], ['http://a.example', 'evil@a.example'], ['http://a.example', 'a.example/x'],
    ['http://a.example', 'a.ex\tample'],
  ])('%s with Host %s may not', (origin, host) => {
    expect(none.mayCount(origin, host)).toBe(false)
  })

  test('is no other page because any Host is answered', () => {
    expect(origins([], ['*']).mayCount('https://b.example', 'a.example')).toBe(false)
  })
})
