// Whether a request may come in, as Fastify's hooks check it: the host that it is for, then its API key. The checks
// themselves are in packages/runtime, as METRICS_PORT makes them too.
import type { IncomingMessage } from 'node:http'
import type { FastifyRequest } from 'fastify'
import type { ApiKeys, Need } from '@gearbox/runtime/access/api-keys.ts'
import type { Hosts } from '@gearbox/runtime/access/hosts.ts'
import type { RequestError } from '@gearbox/runtime/http/errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a request's API key must be for; by default `admin`, so that a route that forgets it is closed. */
    needs?: Need
    /** Whether it answers under any Host: only for replies that tell a stranger nothing. */
    anyHost?: boolean
  }
}

/** Why a request is not for this service; undefined: it is. */
export function refuseHost (
  hosts: Hosts, { raw, routeOptions }: Pick<FastifyRequest, 'raw'> & Partial<FastifyRequest>
): RequestError | undefined {
  return routeOptions?.config?.anyHost === true ? undefined : hosts.refusal({ url: raw.url, host: raw.headers.host })
}

/** How many Host headers a request has. Node keeps the first; a proxy may have checked another. */
export function countHosts ({ rawHeaders }: IncomingMessage): number {
  let found = 0
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (rawHeaders[i]!.length === 4 && rawHeaders[i]!.toLowerCase() === 'host') found++
  }
  return found
}

/**
 * Why a request's API key does not let it in; undefined: it does. A path without a route needs any key, so that
 * strangers can't find out which paths there are.
 */
export function refuseCaller (
  apiKeys: ApiKeys, { is404, raw, routeOptions }: FastifyRequest
): RequestError | undefined {
  return apiKeys.refusal(raw.headers.authorization, is404 ? 'any' : routeOptions.config?.needs ?? 'admin')
}
