// GET /metrics: Prometheus text.
import type { FastifyInstance } from 'fastify'

export async function metricsRoutes (app: FastifyInstance, { metrics }: { metrics: () => Promise<string> }): Promise<void> {
  app.get('/metrics', {
    schema: { tags: ['operation'], summary: 'Figures for Prometheus', description: 'Under npm start of all workers and the consumer.', produces: ['text/plain'], response: { 200: { type: 'string' } } },
  }, async (_request, reply) => {
    reply.type('text/plain; version=0.0.4; charset=utf-8')
    return await metrics()
  })
}
