// What an Idempotency-Key makes of a request: the id under which it counts once, whichever worker gets its repeats.
import { createHash } from 'node:crypto'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'

/** Checks a key as a client sent it. @throws RequestError (400) */
export function checkKey (key: unknown): string {
  if (typeof key === 'string' && /^[\x21-\x7e]{1,255}$/.test(key)) return key
  const sent = typeof key === 'string' ? `, not ${echo(key)}` : ''
  throw new RequestError('GBX_BAD_IDEMPOTENCY_KEY',
    `the Idempotency-Key must be 1 to 255 visible ASCII characters, and one header${sent}`)
}

/** The bearer key, however the scheme before it is spelt. */
export function callerOf (authorization = ''): string {
  return authorization.replace(/^[ \t]*bearer[ \t]+/i, '').trim()
}

/**
 * The id of a key: a SHA-256 over the caller, the key, and what the key is for (nothing for POST /increment, a plugin's
 * name for what it counts, its name and scope for what it submits). Each has its length before it, so that no caller
 * can make another's id.
 */
export function idOf (caller: string, key: string, ...purpose: readonly string[]): string {
  const hash = createHash('sha256')
  for (const part of [caller, key, ...purpose]) hash.update(`${part.length}:${part}`)
  return hash.digest('hex')
}
