// What is checked of every request before its route gets it, whichever plugin the route belongs to: that there is a
// route for its path, that the route has its method, and that it knows the query parameters. For every port that
// Fastify serves.
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { RequestError } from './errors.ts'
import { checkQuery } from './query.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Whether a 405 does not name its method: for a route that answers as if it were not there. */
    unlisted?: boolean
  }
}

/** The paths and methods of all routes that are registered after it was constructed. */
export class Routing {
  readonly #methods = new Map<string, Set<string>>()
  readonly #notFound: string

  /** @param notFound the message of a 404; it should say where to find the paths */
  constructor (app: FastifyInstance, notFound: string) {
    this.#notFound = notFound
    app.addHook('onRoute', ({ url, method, config }) => {
      if (config?.unlisted === true) return
      const methods = this.#methods.get(url) ?? new Set()
      for (const name of [method].flat()) methods.add(name)
      if (methods.has('HEAD')) methods.add('GET')
      this.#methods.set(url, methods)
    })
  }

  /**
   * For `onRequest`, after the checks of who may come in.
   * @returns why the request goes no further; undefined if it may
   */
  check (request: FastifyRequest): RequestError | undefined {
    // Before its body: Fastify would read that, and judge its type and size, before it says that there is no route.
    return request.is404 ? this.refuse(request) : checkQuery(request)
  }

  /** A 405 with `Allow` where the path has other methods, else a 404. */
  refuse (request: FastifyRequest): RequestError {
    const methods = this.#methodsOf(request.url)
    if (methods === undefined || methods.has(request.method)) {
      return new RequestError('GBX_NOT_FOUND', this.#notFound)
    }
    const names = [...methods].sort()
    const allow = { allow: names.join(', ') }
    return new RequestError('GBX_METHOD_NOT_ALLOWED', `method not allowed; use ${names.join(' or ')}`, allow)
  }

  #methodsOf (url: string): ReadonlySet<string> | undefined {
    const segments = pathOf(url)?.split('/')
    if (segments === undefined) return undefined
    for (const [pattern, methods] of this.#methods) {
      if (matches(pattern.split('/'), segments)) return methods
    }
    return undefined
  }
}

/** A URL's path as routes are compared with it; undefined if it can't be decoded. */
function pathOf (url: string): string | undefined {
  try {
    return decodeURI(url.replace(/^https?:\/\/[^/?#]*/i, '').split(/[?#]/, 1)[0]!)
  } catch {
    return undefined
  }
}

/**
 * As the router does it: `:name` matches one segment, also an empty one; a `*` at the end matches all that are left.
 */
function matches (parts: readonly string[], segments: readonly string[]): boolean {
  const isWildcard = parts.length > 1 && parts.at(-1) === '*'
  const fixed = isWildcard ? parts.length - 1 : parts.length
  if (isWildcard ? segments.length < parts.length : segments.length !== parts.length) return false
  return parts.slice(0, fixed).every((part, i) => part === segments[i] || part.startsWith(':'))
}
