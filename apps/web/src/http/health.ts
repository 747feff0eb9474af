// GET /healthz: this process lives. GET /readyz: its queue takes batches, and nobody has asked it to stop.
import type { FastifyInstance } from 'fastify'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { errorSchema, RequestError } from '@gearbox/runtime/http/errors.ts'
import type { Flusher } from '../deliver/flusher.ts'

const okSchema = { type: 'object', properties: { status: { type: 'string', enum: ['ok'] } } } as const

/** A balancer knows neither our names nor our keys. */
const open = { needs: 'none', anyHost: true } as const

export interface HealthOptions {
  readonly flusher: Flusher
  readonly queue: ProducerQueue
  /** Whether requests had better go elsewhere, as a stop is coming. */
  readonly draining: (() => boolean) | undefined
  /** Why the consumer of this installation exited for good; undefined while there is one, or none is known of. */
  readonly consumerExited: (() => string | undefined) | undefined
}

export async function healthRoutes (app: FastifyInstance, { flusher, queue, draining, consumerExited }: HealthOptions): Promise<void> {
  app.get('/healthz', { config: open, schema: { tags: ['operation'], summary: 'The process lives', security: [], response: { 200: okSchema } } }, async () => ({ status: 'ok' }))

  app.get('/readyz', {
    config: open,
    schema: { tags: ['operation'], summary: 'The queue can be reached', security: [], response: { 200: okSchema, 503: { description: 'why it can not', ...errorSchema } } },
  }, async () => {
    if (draining?.() === true) {
      throw new RequestError('GBX_STOPPING', 'this worker is about to stop (DRAIN_MS); send new requests to another one')
    }
    const exited = consumerExited?.()
    if (exited !== undefined) throw new RequestError('GBX_QUEUE_UNREACHABLE', `nothing is stored: ${exited}`)
    const why = flusher.storeFailure === undefined ? "the queue can't be reached" : 'nothing is stored'
    if (flusher.failure !== undefined) throw new RequestError('GBX_QUEUE_UNREACHABLE', `${why}: ${flusher.failure}`)
    const reported = await queue.check().catch((error: unknown) => { throw new RequestError('GBX_QUEUE_UNREACHABLE', `${why}: ${reasonOf(error)}`) })
    if (reported !== undefined) throw new RequestError('GBX_QUEUE_UNREACHABLE', `nothing is stored: ${reported}`)
    return { status: 'ok' }
  })
}
