// Whether a request may come in, as Fastify's hooks check it: the host that it is for, then its API key. The checks
// themselves are in packages/runtime, as METRICS_PORT makes them too.
import type { IncomingMessage } from 'node:http'
import type { FastifyContextConfig, FastifyRequest } from 'fastify'
import type { ApiKeys } from '@gearbox/runtime/access/api-keys.ts'
import type { PublicPart } from '@gearbox/runtime/config.ts'
import type { Hosts } from '@gearbox/runtime/access/hosts.ts'
import type { RequestError } from '@gearbox/runtime/http/errors.ts'

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

/** Why a request's API key does not let it in; undefined: it does. */
export function refuseCaller (
  apiKeys: ApiKeys, parts: readonly PublicPart[], { is404, raw, routeOptions: { config } }: FastifyRequest
): RequestError | undefined {
  const { authorization } = raw.headers
  // Any key for a path without a route, so that strangers can't find out which paths there are.
  return is404 ? apiKeys.refusal(authorization, 'any') : refuseForRoute(apiKeys, parts, config, authorization)
}

/**
 * Why an API key does not let its sender in to a route; undefined: it does. A route that is public needs none; a wrong
 * one is refused all the same, as its owner would want to know.
 */
export function refuseForRoute (
  apiKeys: ApiKeys, parts: readonly PublicPart[], config: RouteAccess | undefined, authorization: string | undefined
): RequestError | undefined {
  const isPublic = config?.public !== undefined && parts.includes(config.public)
  if (isPublic) return apiKeys.refusal(authorization, authorization === undefined ? 'none' : 'any')
  return apiKeys.refusal(authorization, config?.needs ?? 'admin')
}

/** Whom a route lets in. */
export type RouteAccess = Pick<FastifyContextConfig, 'needs' | 'public'>
