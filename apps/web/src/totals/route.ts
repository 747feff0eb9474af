// GET /totals/KEY, /totals?key= and /totals: totals as they are in the database.
import type { FastifyInstance } from 'fastify'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { errorSchema, RequestError } from '@gearbox/runtime/http/errors.ts'
import type { Total } from './reader.ts'
import type { Totals } from './reads.ts'

const totalSchema = {
  type: 'object',
  required: ['key', 'total'],
  properties: {
    key: { type: 'string' },
    total: {
      oneOf: [{ type: 'integer', format: 'int64' }, { type: 'string', pattern: '^-?[0-9]+$' }],
      description: 'a number with every digit, also past 2^53; a string with numbers=string',
    },
  },
} as const

const pageSchema = {
  type: 'object',
  required: ['totals', 'next'],
  properties: {
    totals: { type: 'array', items: totalSchema },
    next: { type: ['string', 'null'], description: 'the next page\'s "after"; null: this was the last page' },
  },
} as const

const numbersSchema = {
  type: 'string',
  enum: ['string'],
  description: 'string: totals are JSON strings, for readers that round integers past 2^53, as JavaScript does',
} as const

/**
 * Longest "after", in characters. Keys that Gearbox counted have at most 256 bytes, and a total before them 21
 * characters; a database that was migrated may have longer keys.
 */
const afterCharactersMax = 4096

const errors = {
  400: { description: 'a query that can not be read', ...errorSchema },
  404: { description: 'nothing was ever stored under this key', ...errorSchema },
  503: { description: 'no database on this host', ...errorSchema },
} as const

const oneSchema = {
  tags: ['reading'],
  summary: "One key's total",
  params: { type: 'object', properties: { key: { type: 'string' } } },
  querystring: { type: 'object', properties: { numbers: numbersSchema } },
  response: { 200: totalSchema, ...errors },
} as const

const listSchema = {
  tags: ['reading'],
  summary: 'Totals page by page, or the total of ?key=',
  description: 'With `key` the reply is one total, as from `/totals/KEY`. Pages are by key, or by total with the ' +
    'largest first; each page reads what is stored then.',
  querystring: {
    type: 'object',
    properties: {
      key: { type: 'string', description: 'for keys with "/" or dots' },
      prefix: { type: 'string', default: '' },
      after: { type: 'string', maxLength: afterCharactersMax, description: 'the "next" of the page before' },
      limit: { type: 'integer', minimum: 1, maximum: 1000, default: 100 },
      order: { type: 'string', enum: ['key', 'total'], default: 'key' },
      numbers: numbersSchema,
    },
  },
  response: { 200: { oneOf: [pageSchema, totalSchema] }, ...errors },
} as const

interface NumbersQuery { numbers?: 'string' }
interface ListQuery extends NumbersQuery {
  key?: string
  prefix: string
  after?: string
  limit: number
  order: 'key' | 'total'
}

/** A total as the reply has it. */
interface SentTotal {
  readonly key: string
  readonly total: bigint | string
}

/** Adds the routes, for keys that may read. */
export async function totalsRoutes (app: FastifyInstance, { totals }: { readonly totals: Totals }): Promise<void> {
  // The compiled serializers choose among schemas by validating, which no bigint passes.
  const options = { config: { needs: 'read' }, serializerCompiler: () => toJson } as const

  app.get<{ Params: { key: string }, Querystring: NumbersQuery }>('/totals/:key', { ...options, schema: oneSchema },
    async ({ params, query }) => toSent(readOne(totals, params.key), query))

  app.get<{ Querystring: ListQuery }>('/totals', { ...options, schema: listSchema }, async ({ query }) => {
    const { key, prefix, after, limit, order } = query
    if (key !== undefined) return toSent(readOne(totals, key), query)
    const page = await totals.list({ prefix, after: after === '' ? undefined : after, limit, order })
    return { totals: page.totals.map((total) => toSent(total, query)), next: page.next }
  })
}

/** @throws RequestError (404, 503) */
function readOne (totals: Totals, key: string): Total {
  const total = totals.get(key)
  if (total === undefined) throw new RequestError('GBX_NOT_FOUND', `nothing was ever stored under ${echo(key)}`)
  return { key, total }
}

function toSent ({ key, total }: Total, { numbers }: NumbersQuery): SentTotal {
  return { key, total: numbers === 'string' ? String(total) : total }
}

/** A reply's body. JSON.stringify has no bigints. */
function toJson (value: SentTotal | { readonly totals: readonly SentTotal[], readonly next: string | null }): string {
  if ('totals' in value) {
    return `{"totals":[${value.totals.map(toJson).join(',')}],"next":${JSON.stringify(value.next)}}`
  }
  const total = typeof value.total === 'string' ? `"${value.total}"` : value.total
  return `{"key":${JSON.stringify(value.key)},"total":${total}}`
}
