// GET /totals/KEY, /totals?key= and /totals: what the database says.
import type { FastifyInstance } from 'fastify'
import { echo, errorSchema, RequestError } from '../errors.ts'
import type { Total, Totals } from '../totals.ts'

const totalSchema = {
  type: 'object',
  required: ['key', 'total'],
  properties: { key: { type: 'string' }, total: { type: 'integer', format: 'int64', description: 'every digit, also past 2^53' } },
} as const

const pageSchema = {
  type: 'object',
  required: ['totals', 'next'],
  properties: {
    totals: { type: 'array', items: totalSchema },
    next: { type: ['string', 'null'], description: 'the next page\'s "after"; null: this was the last page' },
  },
} as const

const errors = { 400: { description: 'a query that can not be read', ...errorSchema }, 404: { description: 'nothing was ever stored under this key', ...errorSchema }, 503: { description: 'no database on this host', ...errorSchema } } as const

interface ListQuery { key?: string, prefix: string, after?: string, limit: number, order: 'key' | 'total' }

export async function totalsRoutes (app: FastifyInstance, { totals }: { totals: Totals }): Promise<void> {
  app.get<{ Params: { key: string } }>('/totals/:key', {
    schema: {
      tags: ['reading'],
      summary: "One key's total",
      params: { type: 'object', properties: { key: { type: 'string' } } },
      response: { 200: totalSchema, ...errors },
    },
  }, async (request) => one(totals, request.params.key))

  app.get<{ Querystring: ListQuery }>('/totals', {
    schema: {
      tags: ['reading'],
      summary: 'Totals page by page, or the total of ?key=',
      description: 'With `key` the reply is one total, as from `/totals/KEY`. Pages are by key, or by total with the largest first; each page reads what is stored then.',
      querystring: {
        type: 'object',
        properties: {
          key: { type: 'string', description: 'for keys with "/" or dots' },
          prefix: { type: 'string', default: '' },
          after: { type: 'string', description: 'the "next" of the page before' },
          limit: { type: 'integer', minimum: 1, maximum: 1000, default: 100 },
          order: { type: 'string', enum: ['key', 'total'], default: 'key' },
        },
      },
      response: { 200: { oneOf: [pageSchema, totalSchema] }, ...errors },
    },
    // The compiled serializers choose among schemas by validating, which no bigint passes.
    serializerCompiler: () => toJson,
  }, async (request) => {
    const { key, prefix, after, limit, order } = request.query
    // Ajv takes the word Infinity for an integer.
    if (!Number.isSafeInteger(limit)) throw new RequestError('GBX_BAD_QUERY', `"limit" must be a whole number from 1 to 1000, not "${limit}"`)
    return key === undefined ? await totals.list({ prefix, after: after === '' ? undefined : after, limit, order }) : one(totals, key)
  })
}

/** JSON.stringify takes no bigints. */
function toJson (value: Total | { totals: readonly Total[], next: string | null }): string {
  if ('totals' in value) return `{"totals":[${value.totals.map(toJson).join(',')}],"next":${JSON.stringify(value.next)}}`
  return `{"key":${JSON.stringify(value.key)},"total":${value.total}}`
}

function one (totals: Totals, key: string): Total {
  const total = totals.get(key)
  if (total === undefined) throw new RequestError('GBX_NOT_FOUND', `nothing was ever stored under ${echo(key)}`)
  return { key, total }
}
