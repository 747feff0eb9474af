// GET /healthz: this process lives. GET /readyz: its queue takes batches.
import type { FastifyInstance } from 'fastify'
import type { ProducerQueue } from '@gearbox/queue/queue.ts'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { errorSchema, RequestError } from '../errors.ts'
import type { Flusher } from '../flusher.ts'

const okSchema = { type: 'object', properties: { status: { type: 'string', enum: ['ok'] } } } as const

/** A balancer knows neither our names nor our keys. */
const open = { needs: 'none', anyHost: true } as const

export async function healthRoutes (app: FastifyInstance, { flusher, queue }: { flusher: Flusher, queue: ProducerQueue }): Promise<void> {
  app.get('/healthz', { config: open, schema: { tags: ['operation'], summary: 'The process lives', security: [], response: { 200: okSchema } } }, async () => ({ status: 'ok' }))

  app.get('/readyz', {
    config: open,
    schema: { tags: ['operation'], summary: 'The queue can be reached', security: [], response: { 200: okSchema, 503: { description: 'why it can not', ...errorSchema } } },
  }, async () => {
    const failure = flusher.failure ?? await queue.check().then(() => undefined, reasonOf)
    if (failure !== undefined) throw new RequestError('GBX_QUEUE_UNREACHABLE', `the queue can't be reached: ${failure}`)
    return { status: 'ok' }
  })
}
