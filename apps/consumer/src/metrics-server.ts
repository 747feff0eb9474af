// /metrics of a consumer that runs alone; under `npm start` the workers' /metrics shows it.
import bearerAuth from '@fastify/bearer-auth'
import fastify, { type FastifyInstance } from 'fastify'
import type { Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import type { Logger } from '@gearbox/runtime/logger.ts'
import type { Registry } from '@gearbox/runtime/metrics.ts'

/** Listens on HOST and `port`. With API_KEYS set it asks for one, as the workers do. @throws FatalError if it can't listen */
export async function serveMetrics (config: Config, port: number, registry: Registry, logger: Logger): Promise<FastifyInstance> {
  const app = fastify({ requestTimeout: config.requestTimeoutMs })
  if (config.apiKeys.length > 0) {
    await app.register(bearerAuth, { keys: new Set(config.apiKeys), verifyErrorLogLevel: 'debug' })
    app.addHook('onSend', async (_request, reply) => { if (reply.statusCode === 401) reply.header('www-authenticate', 'Bearer') })
  }
  app.get('/metrics', async (_request, reply) => {
    reply.type(registry.contentType)
    return await registry.metrics()
  })
  try {
    const address = await app.listen({ host: config.host, port })
    logger.info(`metrics at ${address}/metrics`)
  } catch (error) {
    throw new FatalError(`the metrics can't be served on ${config.host}:${port}: ${reasonOf(error)}. Set METRICS_PORT to a free port`)
  }
  return app
}
