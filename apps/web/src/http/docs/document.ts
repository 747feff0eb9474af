// What the OpenAPI document says of every route alike.
import type { FastifySchema } from 'fastify'
import { errorSchema } from '../errors.ts'

const badQuery = {
  description: 'a query parameter that is not known, repeated, or has a value that is not allowed',
  ...errorSchema,
}

interface Described {
  readonly schema: FastifySchema
  readonly url: string
}

/** For @fastify/swagger's `transform`: every route refuses queries that it does not know. */
export function describeRoute ({ schema, url }: Described): Described {
  const response = typeof schema?.response === 'object' ? schema.response : {}
  return { schema: { ...schema, response: { 400: badQuery, ...response } }, url }
}
