// API_KEYS: who may call, and what for. One check for every way into the service: the fast lane, Fastify's routes and
// METRICS_PORT.
import { hash } from 'node:crypto'
import { RequestError, type ErrorHeaders } from '../http/errors.ts'

/** All scopes. `admin` includes the others. */
export const scopes = ['count', 'read', 'admin'] as const

/** What a key may be for. */
export type Scope = typeof scopes[number]

/** An entry of API_KEYS. */
export interface ApiKey {
  readonly key: string
  readonly scopes: readonly Scope[]
}

/**
 * What a request needs: a scope, `any` key, or `none`. A route that names nothing needs `admin`, so that one that was
 * forgotten is closed and not open.
 */
export type Need = Scope | 'any' | 'none'

/** In any case: the scheme's name is no secret (RFC 9110, 11.1). */
const prefix = 'bearer '

/**
 * One entry of API_KEYS: `count:KEY`, `read:KEY`, `admin:KEY`, or a key alone, which counts and reads. Only these three
 * words before the first colon are scopes: any other colon is a part of the key.
 * @throws Error that shows nothing of the key
 */
export function parseApiKey (text: string): ApiKey {
  const [, word, scoped] = /^(count|read|admin):(.*)$/s.exec(text) ?? []
  const key = scoped ?? text
  if (!/^[\x21-\x7e]+$/.test(key)) {
    throw new Error('must be comma-separated keys of visible ASCII, none of them empty, each alone or behind count:, ' +
      'read: or admin:')
  }
  const scope = scopes.find((name) => name === word)
  return { key, scopes: scope === undefined ? ['count', 'read'] : [scope] }
}

/** The first key that has a scope, for our own programs that send requests to this service. */
export function keyFor (scope: Scope, apiKeys: readonly ApiKey[]): string | undefined {
  return apiKeys.find((entry) => allows(new Set(entry.scopes), scope))?.key
}

/** The API keys that one process accepts. Without any, every caller may do everything. */
export class ApiKeys {
  /** Scopes by the SHA-256 of the key: so the time that a look-up takes depends on no key. */
  readonly #scopes = new Map<string, ReadonlySet<Scope>>()

  constructor (apiKeys: readonly ApiKey[]) {
    for (const { key, scopes } of apiKeys) {
      const id = digest(key)
      this.#scopes.set(id, new Set([...this.#scopes.get(id) ?? [], ...scopes]))
    }
  }

  /** Whether there are any, so that requests need one. */
  get any (): boolean {
    return this.#scopes.size > 0
  }

  /** Whether a request with this Authorization header has what it needs. */
  allows (authorization: string | undefined, need: Need): boolean {
    return this.refusal(authorization, need) === undefined
  }

  /**
   * A 401 or 403 with its `WWW-Authenticate`; undefined if a request with this Authorization header has what it needs.
   */
  refusal (authorization: string | undefined, need: Need): RequestError | undefined {
    if (!this.any || need === 'none') return undefined
    const found = authorization?.slice(0, prefix.length).toLowerCase() === prefix
      ? this.#scopes.get(digest(authorization.slice(prefix.length).trim()))
      : undefined
    if (found === undefined) {
      const message = 'send one of the API keys as "Authorization: Bearer KEY"'
      return new RequestError('GBX_UNAUTHORIZED', message, challenge(''))
    }
    if (need === 'any' || allows(found, need)) return undefined
    const message = `this API key is not for that: it needs the scope "${need}" ` +
      `(in API_KEYS: ${need}:KEY, or admin:KEY)`
    return new RequestError('GBX_FORBIDDEN_SCOPE', message, challenge(` error="insufficient_scope", scope="${need}"`))
  }
}

function allows (scopes: ReadonlySet<Scope>, need: Scope): boolean {
  return scopes.has(need) || scopes.has('admin')
}

function challenge (parameters: string): ErrorHeaders {
  return { 'www-authenticate': `Bearer${parameters}` }
}

function digest (key: string): string {
  return hash('sha256', key)
}
