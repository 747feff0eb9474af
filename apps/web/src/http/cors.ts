// CORS_ORIGINS: the headers that let a listed page send its requests and read their
// replies.
import cors from '@fastify/cors'
import type { FastifyInstance } from 'fastify'
import type { Origins } from '@gearbox/runtime/access/origins.ts'
import type { Routing } from '@gearbox/runtime/http/routing.ts'

/** Adds the headers of CORS to every reply, and answers preflights. Hooks that are added later do not run for those. */
export async function addCors (app: FastifyInstance, origins: Origins, routing: Routing): Promise<void> {
  // An OPTIONS that is no preflight is answered like any other method that a path does not have.
  app.addHook('onRequest', (request, _reply, done) => {
    const { origin, 'access-control-request-method': method } = request.headers
    const isPreflight = origin !== undefined && method !== undefined
    done(request.method === 'OPTIONS' && !isPreflight ? routing.refuse(request) : undefined)
  })
  await app.register(cors, {
    delegator: ({ method, headers: { origin } }, done) => {
      const listed = origin !== undefined && origins.isListed(origin)
      done(null, {
        // A preflight is answered in any case; without Access-Control-Allow-Origin that is a refusal.
        origin: listed ? (origins.any ? '*' : true) : (method === 'OPTIONS' ? [] : false),
        methods: ['GET', 'HEAD', 'POST', 'PUT', 'DELETE'],
        // Pages can't read it otherwise.
        exposedHeaders: ['Retry-After'],
      })
    },
  })
}
