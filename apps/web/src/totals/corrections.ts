// PUT and DELETE of /totals/KEY and /totals?key=: an administrator sets a total, or removes it. The correction travels
// to the consumer as an entry, alone in its batch, behind all that this worker accepted before it.
import { createHash } from 'node:crypto'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { parseInt64 } from '@gearbox/protocol/int64.ts'
import { keyProblem } from '@gearbox/protocol/key.ts'
import type { Json } from '@gearbox/protocol/plugin-entry.ts'
import type { ApiKey } from '@gearbox/runtime/access/api-keys.ts'
import type { Origins } from '@gearbox/runtime/access/origins.ts'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { errorSchema, RequestError } from '@gearbox/runtime/http/errors.ts'
import type { SubmitOptions, Submitted } from '@gearbox/runtime/plugin.ts'
import { checkForm, checkOrigin } from '../http/write-checks.ts'
import { parseForm } from '../increment/form.ts'
import { callerOf, checkKey } from '../increment/idempotency.ts'

/** What the routes work with. */
export interface CorrectionOptions {
  readonly apiKeys: readonly ApiKey[]
  readonly origins: Origins
  /** Sends a correction to the consumer, alone in its batch. @throws RequestError nothing was corrected */
  readonly submit: (correction: Json, options: SubmitOptions) => Promise<Submitted>
}

interface Query { key?: string, total?: string, 'if-total'?: string, numbers?: 'string' }

type CorrectionRequest = FastifyRequest<{ Params: { key?: string }, Querystring: Query, Body: Buffer | undefined }>

/** What the consumer returns: decimal digits, or null for a key that has no total. */
interface Corrected {
  readonly key: string
  readonly before: string | null
  readonly after: string | null
}

const integer = { type: 'string', pattern: '^-?[0-9]+$' } as const

const total = {
  oneOf: [{ type: 'integer', format: 'int64' }, integer, { type: 'null' }],
  description: 'a number with every digit, or null: there was none, or there is none now',
} as const

const query = {
  'if-total': { ...integer, description: 'only if the total is exactly this; otherwise 412' },
  numbers: { type: 'string', enum: ['string'], description: 'string: totals are JSON strings' },
} as const

const response = {
  200: {
    type: 'object',
    required: ['key', 'before', 'after'],
    properties: { key: { type: 'string' }, before: total, after: total },
  },
  202: { type: 'null', description: 'not stored within ACK_TIMEOUT_MS; it is still being delivered' },
  ...Object.fromEntries([
    [400, 'a total that can not be read'],
    [404, 'API_KEYS has no key for administrators, or nothing was ever stored under this key'],
    [412, 'the total is not what if-total says; nothing was changed'],
    [503, 'a limit is reached or the queue out of reach: try again after Retry-After'],
  ].map(([status, description]) => [status, { description, ...errorSchema }])),
} as const

const headers = {
  type: 'object',
  properties: { 'Idempotency-Key': { type: 'string', description: 'as for POST /increment' } },
} as const

/** Adds the routes, for keys of administrators. Where API_KEYS has none, they answer as if they were not there. */
export async function correctionRoutes (app: FastifyInstance, options: CorrectionOptions): Promise<void> {
  const isOpen = options.apiKeys.some(({ scopes }) => scopes.includes('admin'))
  const inPath = { type: 'object', properties: { key: { type: 'string' } } } as const
  const inQuery = { key: { type: 'string', description: 'for keys with "/" or dots' } } as const
  const set = {
    method: 'PUT',
    handler: async (request: CorrectionRequest, reply: FastifyReply) => {
      return await correct(options, request, reply, readTotal(request))
    },
  } as const
  const remove = {
    method: 'DELETE',
    handler: async (request: CorrectionRequest, reply: FastifyReply) => {
      return await correct(options, request, reply, undefined)
    },
  } as const
  for (const { method, handler } of [set, remove]) {
    const value = method === 'PUT' ? { total: { ...integer, description: 'the new total, here or in a form' } } : {}
    const common = {
      tags: ['correcting'],
      summary: method === 'PUT' ? 'Sets a total' : 'Removes a total',
      headers,
      response,
    }
    const querystring = { type: 'object', properties: { ...value, ...query } } as const
    const withKey = { type: 'object', properties: { ...inQuery, ...value, ...query } } as const
    for (const [url, schema] of [
      ['/totals/:key', { ...common, params: inPath, querystring }],
      ['/totals', { ...common, querystring: withKey }],
    ] as const) {
      app.route<{ Params: { key?: string }, Querystring: Query, Body: Buffer | undefined }>({
        method,
        url,
        // Without an administrator nobody may know more than that it is not there.
        config: { needs: isOpen ? 'admin' : 'any', unlisted: !isOpen },
        schema: { ...schema, hide: !isOpen },
        serializerCompiler: () => JSON.stringify,
        onRequest: (request, _reply, done) => {
          done(isOpen ? checkOrigin(request, options.origins) ?? checkForm(request) : notHere())
        },
        handler,
      })
    }
  }
}

function notHere (): RequestError {
  return new RequestError('GBX_NOT_FOUND', 'totals are corrected by administrators, and API_KEYS has no key for one ' +
    '(admin:KEY); on the host of the database "npm run gearbox -- set KEY VALUE" does it')
}

async function correct (
  { submit }: CorrectionOptions, request: CorrectionRequest, reply: FastifyReply, after: bigint | undefined
): Promise<FastifyReply> {
  const { method, headers: { authorization, 'idempotency-key': idempotencyKey }, query } = request
  const key = request.params.key ?? query.key
  if (key === undefined) throw new RequestError('GBX_BAD_QUERY', 'name the key: /totals/KEY or /totals?key=KEY')
  if (after !== undefined) checkNewKey(key)
  const required = query['if-total']
  const correction = {
    key,
    total: after === undefined ? null : String(after),
    ...(required === undefined ? {} : { if: String(toInt64('if-total', required)) }),
    by: `API key ${fingerprint(callerOf(authorization))}`,
  }
  const submitted = await submit(correction, idempotencyKey === undefined
    ? {}
    : { idempotencyKey: checkKey(idempotencyKey), caller: callerOf(authorization), scope: `${method} ${key}` })
  if (submitted.state !== 'stored') return reply.code(202).send()
  return reply.type('application/json; charset=utf-8').send(toJson(parseCorrected(submitted.result), query))
}

/** Which of the administrators it was, without saying the key itself. */
function fingerprint (apiKey: string): string {
  return createHash('sha256').update(apiKey).digest('hex').slice(0, 8)
}

/** @throws RequestError (400) unless one total is sent, in the query or in a form */
function readTotal ({ query: { total }, body }: CorrectionRequest): bigint {
  const isEmpty = body === undefined || body.length === 0
  if (total !== undefined) {
    if (isEmpty) return toInt64('total', total)
    throw new RequestError('GBX_BAD_QUERY', 'send the total in the query or in a form, not in both')
  }
  if (isEmpty) throw new RequestError('GBX_BAD_QUERY', 'send the new total: total=N, in the query or in a form')
  const sums = parseForm(body, { pairsMax: 1, pairsOnly: true }).sums()
  const sent = sums.get('total')
  if (sent === undefined) throw new RequestError('GBX_BAD_PAIR', 'pair 1 must be total=N')
  return BigInt(sent)
}

/** @throws RequestError (400) */
function toInt64 (name: string, text: string): bigint {
  const value = parseInt64(text)
  if (value !== undefined) return value
  throw new RequestError('GBX_BAD_QUERY', `"${name}" must be a whole number within 64 bits, not ${echo(text)}`)
}

/** A key that counting could not have made would be one that nobody can count with. @throws RequestError (400) */
function checkNewKey (key: string): void {
  const problem = keyProblem(key)
  if (problem !== undefined) throw new RequestError('GBX_BAD_PAIR', `the key ${echo(key)} ${problem}`)
}

/** What the consumer returned. @throws Error if that is not a correction's result */
function parseCorrected (result: Json): Corrected {
  if (typeof result === 'object' && result !== null && 'key' in result && 'before' in result && 'after' in result) {
    const { key, before, after } = result
    if (typeof key === 'string' && isTotal(before) && isTotal(after)) return { key, before, after }
  }
  throw new Error(`the consumer returned ${JSON.stringify(result).slice(0, 200)}`)
}

function isTotal (value: Json): value is string | null {
  return value === null || typeof value === 'string'
}

function toJson ({ key, before, after }: Corrected, { numbers }: Query): string {
  const shown = (total: string | null): string => total === null || numbers !== 'string' ? String(total) : `"${total}"`
  return `{"key":${JSON.stringify(key)},"before":${shown(before)},"after":${shown(after)}}`
}
