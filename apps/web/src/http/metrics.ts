// GET /metrics: Prometheus text of every process under `npm start`; a worker without a parent says where to scrape.
import type { FastifyInstance } from 'fastify'
import { errorSchema, RequestError } from '@gearbox/runtime/http/errors.ts'
import { metricsContentType } from '@gearbox/runtime/metrics.ts'
import type { ParentLink } from '@gearbox/runtime/process/parent-link.ts'

const schema = {
  tags: ['operation'],
  summary: 'Metrics for Prometheus',
  description: 'Under npm start of all workers and the consumer. Every process that was started by itself has them ' +
    'on its own METRICS_PORT.',
  produces: ['text/plain'],
  response: {
    200: { type: 'string' },
    404: { description: 'GBX_METRICS_ELSEWHERE: scrape each process on its METRICS_PORT', ...errorSchema },
  },
} as const

/** What the route needs. */
export interface MetricsOptions {
  /** Resolves to the text; rejects with a RequestError that says where to scrape. */
  readonly metrics: () => Promise<string>
}

/** Adds GET /metrics, for keys that may read. */
export async function metricsRoutes (app: FastifyInstance, { metrics }: MetricsOptions): Promise<void> {
  app.get('/metrics', { config: { needs: 'read' }, schema }, async (_request, reply) => {
    const text = await metrics()
    reply.type(metricsContentType)
    return text
  })
}

/**
 * The reply of /metrics on the shared port: under a parent the metrics of all processes. Without one they would be
 * those of a random worker, another at each scrape; so the reply names the port that belongs to one process.
 * @param ownAddress where this worker's METRICS_PORT is
 * @throws RequestError
 */
export async function scrapeAll (link: ParentLink | undefined, ownAddress: string | undefined): Promise<string> {
  if (link === undefined) {
    const where = ownAddress === undefined
      ? '(this one has none: set METRICS_PORT, another port for each process)'
      : `(this one: ${ownAddress}/metrics)`
    throw new RequestError('GBX_METRICS_ELSEWHERE', 'web workers may share this port, so it has no metrics; ' +
      `scrape each worker on its METRICS_PORT ${where}`)
  }
  const text = await link.scrape()
  if (text === '') {
    throw new RequestError('GBX_STOPPING', 'npm start was killed, and this worker is stopping; its metrics are gone')
  }
  return text
}
