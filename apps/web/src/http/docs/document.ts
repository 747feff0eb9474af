// The OpenAPI document: what it says of the service, and of every route alike.
import swagger from '@fastify/swagger'
import type { FastifyInstance, FastifySchema } from 'fastify'
import type { Config } from '@gearbox/runtime/config.ts'
import { errorSchema } from '@gearbox/runtime/http/errors.ts'
import { version } from '@gearbox/runtime/version.ts'

const badQuery = {
  description: 'a query parameter that is not known, repeated, or has a value that is not allowed',
  ...errorSchema,
}

const bearer = {
  type: 'http',
  scheme: 'bearer',
  description: 'One of API_KEYS. `count:KEY` may count, `read:KEY` may read, `admin:KEY` may do everything, ' +
    'a key alone counts and reads.',
} as const

const description = 'Sums key=int increments exactly into SQLite. A 204 says that the ack level asked for was ' +
  'reached, a 202 that the increment is in memory only; 4xx and 503 say that nothing was counted.'

interface Described {
  readonly schema: FastifySchema
  readonly url: string
}

/** Makes the document of all routes that are registered afterwards. */
export async function addDocument (
  app: FastifyInstance, { basePath, apiKeys }: Pick<Config, 'basePath' | 'apiKeys'>
): Promise<void> {
  await app.register(swagger, {
    transform: describeRoute,
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Gearbox', version, description },
      ...(basePath === '' ? {} : { servers: [{ url: basePath }] }),
      ...(apiKeys.length > 0
        ? { components: { securitySchemes: { bearer } }, security: [{ bearer: [] }] }
        : {}),
    },
  })
}

/** Every route refuses queries that it does not know. */
function describeRoute ({ schema, url }: Described): Described {
  const response = typeof schema?.response === 'object' ? schema.response : {}
  return { schema: { ...schema, response: { 400: badQuery, ...response } }, url }
}
