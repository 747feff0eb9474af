// GET /healthz: this process lives. GET /readyz: its queue takes batches, and it is not about to stop.
import type { FastifyInstance } from 'fastify'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { errorSchema, RequestError } from '@gearbox/runtime/http/errors.ts'
import type { Flusher } from '../deliver/flusher.ts'

const okSchema = { type: 'object', properties: { status: { type: 'string', enum: ['ok'] } } } as const

const healthSchema = {
  tags: ['operation'],
  summary: 'The process lives',
  security: [],
  response: { 200: okSchema },
} as const

const readySchema = {
  tags: ['operation'],
  summary: 'The queue can be reached',
  security: [],
  response: { 200: okSchema, 503: { description: 'why it can not', ...errorSchema } },
} as const

/** A load balancer has neither our host names nor our keys. */
const open = { needs: 'none', anyHost: true } as const

/** What the checks ask. */
export interface HealthOptions {
  readonly flusher: Flusher
  readonly queue: ProducerQueue
  /** Whether new requests should go elsewhere, as a stop is coming. */
  readonly draining: (() => boolean) | undefined
  /** Why the consumer of this installation exited for good; undefined while there is one, or none is known of. */
  readonly consumerExited: (() => string | undefined) | undefined
}

/** Adds both checks. They answer under any host and without a key. */
export async function healthRoutes (app: FastifyInstance, options: HealthOptions): Promise<void> {
  app.get('/healthz', { config: open, schema: healthSchema }, async () => ({ status: 'ok' }))

  app.get('/readyz', { config: open, schema: readySchema }, async () => {
    await checkReady(options)
    return { status: 'ok' }
  })
}

/** @throws RequestError (503) with the first reason why this worker is not ready */
async function checkReady ({ flusher, queue, draining, consumerExited }: HealthOptions): Promise<void> {
  if (draining?.() === true) {
    const message = 'this worker is about to stop (DRAIN_MS); send new requests to another one'
    throw new RequestError('GBX_STOPPING', message)
  }
  const exited = consumerExited?.()
  if (exited !== undefined) throw unreachable(`nothing is stored: ${exited}`)
  const what = flusher.storeFailure === undefined ? "the queue can't be reached" : 'nothing is stored'
  if (flusher.failure !== undefined) throw unreachable(`${what}: ${flusher.failure}`)
  const reported = await queue.check().catch((error: unknown) => { throw unreachable(`${what}: ${reasonOf(error)}`) })
  if (reported !== undefined) throw unreachable(`nothing is stored: ${reported}`)
}

function unreachable (message: string): RequestError {
  return new RequestError('GBX_QUEUE_UNREACHABLE', message)
}
