// API_KEYS: who may call, and what for. One check for every path into the service: the fast path, Fastify's routes and METRICS_PORT.
import { hash } from 'node:crypto'

/** What a key may be for. `admin` is for everything. */
export const scopes = ['count', 'read', 'admin'] as const
export type Scope = typeof scopes[number]

/** An entry of API_KEYS. */
export interface ApiKey {
  readonly key: string
  readonly scopes: readonly Scope[]
}

/**
 * What a request needs: a scope, `any` key, or `none`. A route that names nothing needs `admin`, so that one that was forgotten is
 * closed and not open.
 */
export type Need = Scope | 'any' | 'none'

/** A request that is refused before anybody looks at what it asks for. */
export interface Refusal {
  readonly statusCode: 401 | 403 | 421
  readonly code: 'GBX_UNAUTHORIZED' | 'GBX_FORBIDDEN_SCOPE' | 'GBX_UNKNOWN_HOST'
  readonly message: string
  /** The reply's WWW-Authenticate header. */
  readonly challenge?: string
}

/** In any case: the scheme's name is no secret (RFC 9110, 11.1). */
const prefix = 'bearer '

const unauthorized: Refusal = {
  statusCode: 401,
  code: 'GBX_UNAUTHORIZED',
  message: 'send one of the API keys as "Authorization: Bearer KEY"',
  challenge: 'Bearer',
}

/**
 * One entry of API_KEYS: `count:KEY`, `read:KEY`, `admin:KEY`, or a key alone, which counts and reads. Only these three words before
 * the first colon are scopes: any other colon is a part of the key.
 * @throws Error that shows nothing of the key
 */
export function parseApiKey (text: string): ApiKey {
  const [, word, scoped] = /^(count|read|admin):(.*)$/s.exec(text) ?? []
  const key = scoped ?? text
  if (!/^[\x21-\x7e]+$/.test(key)) {
    throw new Error('must be comma-separated keys of visible ASCII, none of them empty, each alone or behind count:, read: or admin:')
  }
  const scope = scopes.find((name) => name === word)
  return { key, scopes: scope === undefined ? ['count', 'read'] : [scope] }
}

/** The first key that is good for a scope, for programs that call this service themselves. */
export function keyFor (scope: Scope, apiKeys: readonly ApiKey[]): string | undefined {
  return apiKeys.find((entry) => allows(new Set(entry.scopes), scope))?.key
}

/** The keys of one process. Without any, everybody may do everything. */
export class ApiKeys {
  /** Scopes by the SHA-256 of the key: how long a look-up takes then says nothing of any key. */
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

  /** Why a request with this Authorization header is refused; undefined: it is not. */
  refusal (authorization: string | undefined, need: Need): Refusal | undefined {
    if (!this.any || need === 'none') return undefined
    const found = authorization?.slice(0, prefix.length).toLowerCase() === prefix
      ? this.#scopes.get(digest(authorization.slice(prefix.length).trim()))
      : undefined
    if (found === undefined) return unauthorized
    if (need === 'any' || allows(found, need)) return undefined
    return {
      statusCode: 403,
      code: 'GBX_FORBIDDEN_SCOPE',
      message: `this API key is not for that: it needs the scope "${need}" (in API_KEYS: ${need}:KEY, or admin:KEY)`,
      challenge: `Bearer error="insufficient_scope", scope="${need}"`,
    }
  }
}

function allows (scopes: ReadonlySet<Scope>, need: Scope): boolean {
  return scopes.has(need) || scopes.has('admin')
}

function digest (key: string): string {
  return hash('sha256', key)
}
