// The hooks that every request on the standard path passes: before its route, whether it may come in at all; after it,
// the count of its reply.
import type { FastifyInstance } from 'fastify'
import type { Hosts } from '@gearbox/runtime/access/hosts.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { countHosts, refuseHost } from './access.ts'
import type { UnparsedReplies } from './unparsed-replies.ts'

/**
 * Adds the first check of a request's head: its Host, whether this worker is stopping, and that it has one Host header.
 * To be called before any other `onRequest` hook is added, as the 421 comes before all other refusals.
 */
export function addHeadCheck (app: FastifyInstance, hosts: Hosts, isStopping: () => boolean): void {
  app.addHook('onRequest', (request, reply, done) => {
    const { raw } = request
    // Nothing is read behind it (unparsed-replies.ts).
    if (raw.headers.upgrade !== undefined) reply.header('connection', 'close')
    done(refuseHost(hosts, request) ?? (isStopping() ? stopping() : checkHostCount(countHosts(raw), raw.httpVersion)))
  })
}

/**
 * Keeps a request from its handler if its connection's input ended before it; calls `replied` with the status of every
 * reply.
 */
export function addReplyHooks (
  app: FastifyInstance, unparsed: UnparsedReplies, replied: (statusCode: number) => void
): void {
  app.addHook('preHandler', (request, reply, done) => {
    if (unparsed.isRead(request.raw)) done()
    else reply.hijack()
  })
  app.addHook('onResponse', (_request, reply, done) => {
    replied(reply.statusCode)
    done()
  })
}

function stopping (): RequestError {
  return new RequestError('GBX_STOPPING', 'this worker is stopping; send it again')
}

function checkHostCount (hostHeaders: number, httpVersion: string): RequestError | undefined {
  if (hostHeaders === 1 || (hostHeaders === 0 && httpVersion === '1.0')) return undefined
  return new RequestError('GBX_BAD_REQUEST', 'an HTTP/1.1 request needs one Host header')
}
