// GET /totals/KEY, /totals?key= and /totals: totals as they are in the database.
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
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
  304: { type: 'null', description: 'nothing was stored since the reply whose ETag is in If-None-Match' },
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

/** What the routes work with. */
export interface TotalsOptions {
  readonly totals: Totals
  /** How long a cache may answer without asking. */
  readonly maxAgeS: number
  /** Whether replies depend on the caller's key. */
  readonly hasApiKeys: boolean
}

/** Adds the routes, for keys that may read. */
export async function totalsRoutes (app: FastifyInstance, options: TotalsOptions): Promise<void> {
  const { totals } = options
  // The compiled serializers choose among schemas by validating, which no bigint passes.
  const route = { config: { needs: 'read' }, serializerCompiler: () => toJson } as const

  app.get<{ Params: { key: string }, Querystring: NumbersQuery }>('/totals/:key', { ...route, schema: oneSchema },
    async (request, reply) => await cached(request, reply, options, () =>
      toSent(readOne(totals, request.params.key), request.query)))

  app.get<{ Querystring: ListQuery }>('/totals', { ...route, schema: listSchema },
    async (request, reply) => await cached(request, reply, options, async () => {
      const { query } = request
      const { key, prefix, after, limit, order } = query
      if (key !== undefined) return toSent(readOne(totals, key), query)
      const page = await totals.list({ prefix, after: after === '' ? undefined : after, limit, order })
      return { totals: page.totals.map((total) => toSent(total, query)), next: page.next }
    }))
}

/**
 * Answers with what is read, in such a way that a cache can keep it; with a 304 if the client has it already. The
 * commit is read first: so the reply may be newer than its ETag, which then is never current again, but not older.
 */
async function cached (
  { headers }: FastifyRequest, reply: FastifyReply, { totals, maxAgeS, hasApiKeys }: TotalsOptions, read: () => unknown
): Promise<unknown> {
  const commit = totals.commit()
  const tag = commit === undefined ? undefined : `"${commit}"`
  const isKnown = tag !== undefined && tagsOf(headers['if-none-match']).includes(tag)
  const value = isKnown ? undefined : await read()
  reply.header('cache-control', `max-age=${maxAgeS}, must-revalidate`)
  if (tag !== undefined) reply.header('etag', tag)
  // A cache must not give to one caller what another one may read.
  if (hasApiKeys) reply.header('vary', [reply.getHeader('vary') ?? [], 'Authorization'].flat().join(', '))
  return isKnown ? await reply.code(304).send() : value
}

function tagsOf (ifNoneMatch = ''): string[] {
  return ifNoneMatch.split(',').map((text) => text.trim().replace(/^W\//, ''))
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
