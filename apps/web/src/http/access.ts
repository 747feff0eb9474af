// Who may come in, as Fastify's routes ask for it: the host that a request is for, then its API key. The checks themselves are in
// packages/runtime, as METRICS_PORT has the same.
import type { IncomingMessage } from 'node:http'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { ApiKeys, Need, Refusal } from '@gearbox/runtime/access/api-keys.ts'
import type { Hosts } from '@gearbox/runtime/access/hosts.ts'
import { RequestError } from './errors.ts'

declare module 'fastify' {
  interface FastifyContextConfig {
    /** What a request's API key must be for; a route that says nothing asks for `admin`. */
    needs?: Need
    /** Whether it answers under any Host: only what tells a stranger nothing may. */
    anyHost?: boolean
  }
}

/** Why a request is for somebody else; undefined: it is for this service. */
export function refuseHost (hosts: Hosts, { raw, routeOptions }: Pick<FastifyRequest, 'raw'> & Partial<FastifyRequest>): RequestError | undefined {
  if (routeOptions?.config?.anyHost === true) return undefined
  const refusal = hosts.refusal({ url: raw.url, host: raw.headers.host })
  return refusal === undefined ? undefined : toRequestError(refusal)
}

/** How many Host headers a request has, of which Node keeps the first and a proxy may have looked at another. */
export function countHosts ({ rawHeaders }: IncomingMessage): number {
  let found = 0
  for (let i = 0; i < rawHeaders.length; i += 2) if (rawHeaders[i]!.length === 4 && rawHeaders[i]!.toLowerCase() === 'host') found++
  return found
}

/** Why a request's API key does not let it in; undefined: it does. A path that there is not asks for any key, so that it says nothing to strangers. */
export function refuseCaller (apiKeys: ApiKeys, { is404, raw, routeOptions }: FastifyRequest, reply: FastifyReply): RequestError | undefined {
  const refusal = apiKeys.refusal(raw.headers.authorization, is404 ? 'any' : routeOptions.config?.needs ?? 'admin')
  if (refusal === undefined) return undefined
  if (refusal.challenge !== undefined) reply.header('www-authenticate', refusal.challenge)
  return toRequestError(refusal)
}

function toRequestError ({ code, message }: Refusal): RequestError {
  return new RequestError(code, message)
}
