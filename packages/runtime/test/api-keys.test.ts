// Which API key is for what.
import { describe, expect, test } from 'vitest'
import { ApiKeys, keyFor, parseApiKey, type Need } from '../src/access/api-keys.ts'

const keys = (text: string): ApiKeys => new ApiKeys(text.split(',').map(parseApiKey))
const status = (of: ApiKeys, authorization: string | undefined, need: Need): number =>
  of.refusal(authorization, need)?.statusCode ?? 200

test.each<[entry: string, sent: string, count: number, read: number, admin: number]>([
  ['k', 'k', 200, 200, 403],
  ['count:k', 'k', 200, 403, 403],
  ['read:k', 'k', 403, 200, 403],
  ['admin:k', 'k', 200, 200, 200],
  ['count:a:b', 'a:b', 200, 403, 403],
  ['count:read:b', 'read:b', 200, 403, 403],
  ['mine:k', 'mine:k', 200, 200, 403],
  ['Count:k', 'Count:k', 200, 200, 403],
  [':k', ':k', 200, 200, 403],
  ['count', 'count', 200, 200, 403],
  ['count:k,read:k', 'k', 200, 200, 403],
  ['count:k', 'count:k', 401, 401, 401],
  ['count:k', 'x', 401, 401, 401],
])('with API_KEYS=%s the key %s', (entry, sent, count, read, admin) => {
  const of = keys(entry)
  expect((['count', 'read', 'admin'] as const).map((need) => status(of, `Bearer ${sent}`, need)))
    .toEqual([count, read, admin])
  expect(status(of, `Bearer ${sent}`, 'any')).toBe(count === 401 ? 401 : 200)
  expect(status(of, `Bearer ${sent}`, 'none')).toBe(200)
})

describe('an Authorization', () => {
  test.each(['Bearer k', 'bearer k', 'BEARER k', 'Bearer  k ', 'Bearer \tk'])('%j is let in', (authorization) => {
    expect(status(keys('k'), authorization, 'count')).toBe(200)
  })

  test.each([undefined, '', 'Bearer', 'Bearer ', 'Bearerk', 'Basic k', 'k', 'Bearer K', 'Bearer k, k', 'Bearer kk',
    'Bearer\tk', `Bearer ${' '.repeat(20_000)}k x`])('%j is not', (authorization) => {
    expect(keys('k').refusal(authorization, 'count'))
      .toMatchObject({ statusCode: 401, code: 'GBX_UNAUTHORIZED', headers: { 'www-authenticate': 'Bearer' } })
  })

  test('is not needed without API_KEYS', () => {
    const none = new ApiKeys([])
    for (const need of ['count', 'read', 'admin', 'any', 'none'] as const) {
      expect(none.refusal(undefined, need)).toBeUndefined()
    }
  })

  test('with a key for something else gets a 403 that names the scope and nothing of the key', () => {
    const refusal = keys('count:s3cret').refusal('Bearer s3cret', 'read')
    expect(refusal).toMatchObject({
      statusCode: 403,
      code: 'GBX_FORBIDDEN_SCOPE',
      message: expect.stringContaining('"read"'),
      headers: { 'www-authenticate': 'Bearer error="insufficient_scope", scope="read"' },
    })
    expect(JSON.stringify(refusal)).not.toContain('s3cret')
  })
})

test('our own programs use the first key that has the scope they need', () => {
  const of = (text: string): string | undefined => keyFor('read', text.split(',').map(parseApiKey))
  expect(of('count:a,read:b,c')).toBe('b')
  expect(of('count:a,admin:b')).toBe('b')
  expect(of('a:b')).toBe('a:b')
  expect(of('count:a')).toBeUndefined()
})
