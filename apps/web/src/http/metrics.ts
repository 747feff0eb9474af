// GET /metrics: Prometheus text of every process under `npm start`; a worker without a parent says where to scrape.
import type { FastifyInstance } from 'fastify'
import { metricsContentType } from '@gearbox/runtime/metrics.ts'
import { errorSchema } from '@gearbox/runtime/http/errors.ts'

const schema = {
  tags: ['operation'],
  summary: 'Metrics for Prometheus',
  description: 'Under npm start of all workers and the consumer. Every process that was started by itself has them on its own METRICS_PORT.',
  produces: ['text/plain'],
  response: { 200: { type: 'string' }, 404: { description: 'GBX_METRICS_ELSEWHERE: scrape each process on its METRICS_PORT', ...errorSchema } },
} as const

/** @param options `metrics` gives the text, or throws a RequestError that says where it is to be had */
export async function metricsRoutes (app: FastifyInstance, { metrics }: { metrics: () => Promise<string> }): Promise<void> {
  app.get('/metrics', { config: { needs: 'read' }, schema }, async (_request, reply) => {
    const text = await metrics()
    reply.type(metricsContentType)
    return text
  })
}
