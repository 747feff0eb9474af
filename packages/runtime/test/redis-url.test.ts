// REDIS_URL: what it means, and that no refusal and no shown form repeats any of a secret.
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { parseRedisUrl, type RedisAddress } from '../src/redis-url.ts'

const plain: RedisAddress = {
  host: '127.0.0.1',
  port: 6379,
  path: undefined,
  tls: false,
  username: undefined,
  password: undefined,
  db: 0,
  family: 0,
  shown: 'redis://127.0.0.1',
}

/** The message of a refusal. */
function refusal (text: string): string {
  try {
    parseRedisUrl(text)
  } catch (error) {
    return error instanceof Error ? error.message : String(error)
  }
  throw new Error(`${text} was not refused`)
}

test.each<[url: string, address: Partial<RedisAddress>]>([
  ['redis://127.0.0.1', {}],
  ['redis://127.0.0.1/', {}],
  ['REDIS://127.0.0.1:6379/0', { shown: 'redis://127.0.0.1:6379' }],
  ['redis://127.0.0.1:6390/3', { port: 6390, db: 3, shown: 'redis://127.0.0.1:6390/3' }],
  ['redis://[::1]:6390', { host: '::1', port: 6390, shown: 'redis://[::1]:6390' }],
  ['redis://redis.example?family=6&db=2',
    { host: 'redis.example', family: 6, db: 2, shown: 'redis://redis.example/2' }],
  ['redis://:s%2Fp%40%23%25@127.0.0.1', { password: 's/p@#%' }],
  ['redis://us%3Aer:pass@127.0.0.1', { username: 'us:er', password: 'pass' }],
  ['redis://:a:b@127.0.0.1', { password: 'a:b' }],
  ['redis://user:@127.0.0.1', { username: 'user' }],
  // Written in capitals it still means TLS.
  ['REDISS://:pass@redis.example:6380',
    { host: 'redis.example', port: 6380, tls: true, password: 'pass', shown: 'rediss://redis.example:6380' }],
  ['redis:///run/redis.sock', { host: undefined, port: 0, path: '/run/redis.sock', shown: 'redis:///run/redis.sock' }],
  ['redis:///path.sock?db=4',
    { host: undefined, port: 0, path: '/path.sock', db: 4, shown: 'redis:///path.sock?db=4' }],
  ['redis://user:p%2Fw@/run/a%20b.sock',
    {
      host: undefined,
      port: 0,
      path: '/run/a b.sock',
      username: 'user',
      password: 'p/w',
      shown: 'redis:///run/a b.sock',
    }],
])('%s', (url, address) => {
  expect(parseRedisUrl(url)).toEqual({ ...plain, ...address })
})

describe('a REDIS_URL is refused', () => {
  test.each([
    'http://127.0.0.1', 'redis:127.0.0.1', '127.0.0.1:6379', 'redis://', 'redis:///', 'redis:///1', 'redis://:pw@',
    'redis://h:0', 'redis://h:65536', 'redis://h:x', 'redis://h/x', 'redis://h/1/2',
    'redis://h/-1', 'redis://h/9999999999', 'redis://h#x', 'redis://h?family=5', 'redis://h?db=x', 'redis://h/1?db=2',
    'redis://h?db=1&db=2', 'rediss:///path.sock', 'redis://a b', 'redis://h\n', 'redis://a\\b',
    // An option of the client library would break promises: a command that is sent again can count twice.
    'redis://h?maxRetriesPerRequest=5', 'redis://h?enableOfflineQueue=true', 'redis://h?password=s3cret',
    'redis://user:@/s3cretXyz@redis.example', 'redis:///run/a@b.sock',
    // Most likely a password.
    'redis://s3cret@h', 'redis://:50%off@h',
  ])('%s', (url) => {
    expect(refusal(url)).toMatch(/^must /)
  })

  // What a URL parser takes for host, database, query or fragment.
  test.each([
    'redis://user:12/s3cretXyz@redis.example', 'redis://user:12#s3cretXyz@redis.example',
    'redis://user:12?s3cretXyz@redis.example', 'redis://:s3cretXyz/x@redis.example',
    'redis://s3cretXyz:6379/1@redis.example',
    'redis://user:s3cretXyz\\x@redis.example', 'redis://:s3cretXyz%@redis.example',
    'redis://:s3cretXyz%zz@redis.example:6379', 'redis://u:p@10.0.0.1/s3cretXyz@redis.example',
    'redis://:s3cret Xyz@h',
  ])('%s: a password that is not percent-encoded, and nothing of it is repeated', (url) => {
    const message = refusal(url)
    expect(message).toMatch(/percent-encode/)
    expect(message).not.toMatch(/s3cret|Xyz/i)
  })
})

test('any user and password, percent-encoded, arrive as they are and are not shown', () => {
  fc.assert(fc.property(fc.string({ unit: 'grapheme', minLength: 1 }),
    fc.string({ unit: 'binary', minLength: 1 }).filter((text) => text.isWellFormed()), (username, password) => {
      const address =
      parseRedisUrl(`redis://${encodeURIComponent(username)}:${encodeURIComponent(password)}@redis.example:6379/1`)
      expect(address).toEqual({
        ...plain,
        host: 'redis.example',
        db: 1,
        username,
        password,
        shown: 'redis://redis.example:6379/1',
      })
    }))
})

test('a password as it is either works or is refused, and never becomes a host, a database or an option', () => {
  const hard = fc.array(fc.constantFrom('/', '#', '?', '@', ':', '%', '&', '=', '1', '0', 'db', 'family', 's3cret',
    'localhost', '[', ']', '.', '~')).map((parts) => parts.join(''))
  fc.assert(fc.property(hard, (password) => {
    let address: RedisAddress
    try {
      address = parseRedisUrl(`redis://user:${password}@redis.example`)
    } catch (error) {
      expect(String(error)).not.toContain('s3cret')
      return
    }
    expect(address).toMatchObject({
      host: 'redis.example',
      port: 6379,
      db: 0,
      family: 0,
      shown: 'redis://redis.example',
    })
  }), { numRuns: 500 })
})
