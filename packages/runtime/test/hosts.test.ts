// Which Hosts are ours. What a browser could be made to send for a page that somebody else serves must never be among
// them.
import { hostname } from 'node:os'
import { describe, expect, test } from 'vitest'
import { Hosts, machineNames, parseHost } from '../src/access/hosts.ts'

const base = { host: '127.0.0.1', hostsAllowed: [], apiKeys: [] }
const machine = ['web1.corp.example', 'web1']
const hosts = new Hosts({ ...base, host: 'Counter.Internal.Example', hostsAllowed: ['listed.example'] }, machine)

describe('a Host', () => {
  test.each([
    '127.0.0.1', '127.0.0.1:3333', '192.0.2.7:80', '0.0.0.0', '[::1]', '[::1]:3333', '[2001:DB8::1]',
    '[::ffff:127.0.0.1]', '127.0.0.1.',
    'localhost', 'localhost:3333', 'LOCALHOST', 'LocalHost:1', 'localhost.', 'localhost.:3333', 'localhost:',
    'gearbox', 'gearbox:3333', 'gearbox_web_1', 'x', 'a-b', '1',
    'web1.corp.example', 'WEB1.Corp.Example:3333', 'web1.corp.example.', 'counter.internal.example', 'listed.example',
    'listed.example:443', 'Listed.Example.',
    // Browsers send these as 127.0.0.1, so no page can be behind them.
    '127.1', '0x7f.1', '0177.0.0.1', '2130706433', '0x7f000001', '127.0.0.0x1',
  ])('%s is ours', (host) => {
    expect(hosts.allows(host)).toBe(true)
  })

  test.each([
    'evil.example', 'evil.example:3333', 'EVIL.EXAMPLE', 'evil.example.', 'evil.example.:80',
    'localhost.evil.example', 'app.localhost', '127.0.0.1.evil.example', '127.0.0.1.nip.io', 'localhost.localdomain',
    '[::1].evil.example',
    'listed.example.evil.example', 'evil-listed.example', 'sub.listed.example', 'xn--bcher-kva.example', 'corp.example',
    'web2.corp.example',
    'localhost:3333:80', 'localhost:x', 'localhost@evil.example', 'evil.example@localhost', 'user:password@localhost',
    'localhost/evil.example', 'localhost#evil.example',
    'localhost?', 'localhost\\evil.example', 'local host', ' localhost', 'localhost,evil.example', 'localhost;',
    '%6cocalhost', 'b\xfccher', 'evil\x2eexample',
    '', ':', ':3333', '.', '..', '.localhost', 'localhost..', '::1', '[::1', '[]', '[evil.example]', '[::1]x', '[v1.x]',
    '[::g]',
    '256.0.0.1', '1.2.3.4.5', '127.0.0.x1', '08.0.0.1.example', '127..1', '0x.evil.example',
    `${'x.'.repeat(4000)}example`, `${'.'.repeat(8000)}`,
  ])('%j is not', (host) => {
    expect(hosts.allows(host)).toBe(false)
  })

  test.each<[string, Partial<typeof base>]>([['with API keys', { apiKeys: ['k'] as never[] }],
    ['with *', { hostsAllowed: ['*'] as never[] }]])('is any %s', (_name, change) => {
    const open = new Hosts({ ...base, ...change }, machine)
    for (const host of ['evil.example', '', 'a b', '127.0.0.1']) expect(open.allows(host)).toBe(true)
    expect(open.refusal({ url: 'http://evil.example/', host: 'other.example' })).toBeUndefined()
    expect(open.isListed('evil.example')).toBe(false)
  })

  test('is ours if it is a name of this machine', () => {
    const hostsFile =
      '127.0.0.1 localhost\n127.0.1.1\tWeb1.corp.example web1 # web1.comment.example\n192.0.2.1 other.example\n# ' +
        '192.0.2.2 web1.old.example web1\n192.0.2.3 web10.corp.example web10'
    expect(machineNames('web1', hostsFile)).toEqual(['web1', 'web1.corp.example'])
    expect(machineNames('Web1.Corp.Example', '')).toEqual(['web1.corp.example'])
    expect(machineNames('web', hostsFile)).toEqual(['web'])
    expect(new Hosts(base).allows(hostname())).toBe(true)
    expect(new Hosts(base).allows('evil.example')).toBe(false)
  })

  test('is refused if either is not ours: the header, or that of a whole URL as the target', () => {
    expect(hosts.refusal({ url: '/', host: 'localhost' })).toBeUndefined()
    expect(hosts.refusal({ url: '/', host: undefined })).toBeUndefined()
    expect(hosts.refusal({ url: '*', host: 'localhost' })).toBeUndefined()
    expect(hosts.refusal({ url: 'http://localhost:3333/increment', host: 'localhost' })).toBeUndefined()
    for (const url of ['http://evil.example/increment', 'HTTPS://evil.example', 'http://localhost@evil.example/',
      'http://evil.example?/increment', 'http:///increment']) {
      expect(hosts.refusal({ url, host: 'localhost' })?.statusCode, url).toBe(421)
    }
    expect(hosts.refusal({ url: 'http://localhost/increment', host: 'evil.example' })?.statusCode).toBe(421)
    expect(hosts.refusal({ url: '/http://evil.example/', host: 'localhost' })).toBeUndefined()
  })

  test('that is refused is named, in at most 64 characters, together with the variable that would let it in', () => {
    expect(hosts.refusal({ host: 'evil.example' }))
      .toMatchObject({
        statusCode: 421,
        code: 'GBX_UNKNOWN_HOST',
        message: expect.stringMatching(/^"evil\.example" .*HOSTS_ALLOWED/),
      })
    expect(hosts.refusal({ host: `${'x'.repeat(1000)}.example` })?.message).toMatch(/^"x{63}…"/)
  })
})

test.each([
  ['Counter.Example', 'counter.example'], ['counter.example.', 'counter.example'], ['bücher.example',
    'xn--bcher-kva.example'], ['*', '*'], ['::1', '[::1]'], ['[::1]', '[::1]'], ['a_b.example', 'a_b.example'],
])('HOSTS_ALLOWED reads %s as %s', (text, host) => {
  expect(parseHost(text)).toBe(host)
})
