// Which routes of a plugin the fast lane answers for: what the plugin asks for with `fastPost`, checked against the
// routes that it has.
import type { RouteOptions } from 'fastify'
import type { FastPostHandler } from '@gearbox/runtime/plugin.ts'
import type { RouteAccess } from '../http/access.ts'

/** Has plain requests for `POST {prefix}NAME` answered by the fast lane; the prefix is with BASE_PATH. */
export type AddFastPost = (prefix: string, access: RouteAccess, handler: FastPostHandler) => void

/** A path of whole segments, with a slash at both ends: whatever decodes or joins paths leaves it as it is. */
const prefixPattern = /^(?:\/[\w.~-]+)+\/$/

/** The POST routes of one plugin, and for which of them it wants the fast lane. */
export class FastPostRoutes {
  readonly #routes = new Map<string, RouteAccess>()
  readonly #wanted: Array<{ readonly prefix: string, readonly handler: FastPostHandler }> = []

  /** A route that the plugin has. */
  addRoute ({ url, method, config = {} }: RouteOptions): void {
    if ([method].flat().includes('POST')) this.#routes.set(url, config)
  }

  /** What `fastPost` does. */
  add (prefix: string, handler: FastPostHandler): void {
    this.#wanted.push({ prefix, handler })
  }

  /**
   * Checks all of it, once the plugin has all of its routes.
   * @param basePath the part of every path before the plugin's
   * @throws Error if a name behind the prefix is not for one route of the plugin
   */
  finish (basePath: string, fastPost: AddFastPost): void {
    for (const { prefix, handler } of this.#wanted) {
      if (!prefixPattern.test(prefix)) {
        throw new Error(`fastPost needs a path with a slash at both ends, not ${JSON.stringify(prefix)}`)
      }
      const path = `${basePath}${prefix}`
      const routes = [...this.#routes].filter(([url]) => url.startsWith(path) && !url.slice(path.length).includes('/'))
      const [[url, access] = []] = routes
      if (routes.length !== 1 || url === undefined || access === undefined || !/:\w+$/.test(url)) {
        throw new Error(`fastPost(${JSON.stringify(prefix)}) needs one route "POST ${prefix}:name", and no other there`)
      }
      fastPost(path, access, handler)
    }
  }
}
