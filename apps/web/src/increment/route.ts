// POST /increment on the standard path: requests that are not of the fast lane's shape. Fastify passes them to it;
// it passes them on to `admit`. Its schema is what /docs shows.
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'
import { ackLevels } from '@gearbox/protocol/ack-levels.ts'
import type { Origins } from '@gearbox/runtime/access/origins.ts'
import { errorSchema } from '@gearbox/runtime/http/errors.ts'
import { admit, refusal, type AdmitOptions } from './admit.ts'
import { notPending, type Outcome } from '../deliver/pending-replies.ts'
import { checkForm, checkOrigin, formTypeName } from '../http/write-checks.ts'

/** What the route works with. */
export interface IncrementOptions extends AdmitOptions {
  readonly origins: Origins
}

interface Query { ack?: unknown, form?: unknown }

const schema = {
  tags: ['counting'],
  summary: 'Adds to totals',
  description: 'Pairs such as `foo=1&bar=-20&foo=3`: each adds to its key. A body of exactly the two fields ' +
    '`key` and `value` adds `value` to the counter named by `key` (`form=pairs` turns that reading off).',
  consumes: [formTypeName],
  querystring: {
    type: 'object',
    properties: {
      ack: {
        type: 'string',
        enum: ackLevels,
        description: 'how safe the increment is to be when the reply comes; default: ACK',
      },
      form: { type: 'string', enum: ['pairs'], description: 'key=…&value=… is two pairs as well' },
    },
  },
  headers: {
    type: 'object',
    properties: {
      'Idempotency-Key': {
        type: 'string',
        minLength: 1,
        maxLength: 255,
        pattern: '^[!-~]+$',
        description: '1 to 255 visible ASCII characters: ' +
          'within IDEMPOTENCY_HOURS requests with the same one count once',
      },
    },
  },
  body: { type: 'object', additionalProperties: { type: 'integer', format: 'int64' }, examples: ['foo=1&bar=-20'] },
  response: {
    202: {
      type: 'null',
      description: 'in memory only: asked for, or the level was not reached in time; it is still being delivered',
    },
    204: { type: 'null', description: 'the ack level asked for was reached' },
    ...Object.fromEntries([
      [400, 'malformed: the message says which pair, and why'],
      [401, 'API_KEYS is set and the request has none of them'],
      [403, 'a page of an origin that CORS_ORIGINS does not list, or an API key that may not count'],
      [408, 'the request did not arrive in time'],
      [413, 'more than BODY_BYTES_MAX'],
      [415, 'another Content-Type or charset, or a Content-Encoding'],
      [421, 'a Host that is none of this service (HOSTS_ALLOWED)'],
      [422, 'the request alone leaves 64 bits, a total would (GBX_TOTAL_OVERFLOW names the keys), ' +
        'or an Idempotency-Key came with another body'],
      [503, 'a limit is reached or the queue out of reach: try again after Retry-After'],
    ].map(([status, description]) => [status, { description, ...errorSchema }])),
  },
} as const

/** Registers the route. Its replies come when their ack level is reached. */
export async function incrementRoutes (app: FastifyInstance, options: IncrementOptions): Promise<void> {
  app.post<{ Querystring: Query, Body: Buffer | undefined }>('/increment', {
    config: { needs: 'count' },
    schema,
    // The schema is for the document: what it says is checked below, with messages that name the pair.
    validatorCompiler: () => () => true,
    onRequest: (request, _reply, done) => done(checkOrigin(request, options.origins) ?? checkForm(request)),
  }, (request, reply) => {
    const { query: { ack, form }, headers, body: bytes = noBody } = request
    const { authorization, 'idempotency-key': idempotencyKey } = headers
    // While its reply is pending, all of a request stays in memory: without its body that is known to be little.
    request.body = undefined
    const outcome = admit(options, { ack, form, idempotencyKey, authorization, bytes, start: 0, end: bytes.length }, {
      ...notPending, ownBytes: replyBytes + headerBytes(request), settle: (outcome) => settle(reply, outcome),
    })
    if (outcome === 'accepted') settle(reply, outcome)
  })
}

const noBody = Buffer.alloc(0)

/**
 * About what Node and Fastify keep of a request until it is answered, besides its headers: 2.4 KB in V8's heap were
 * measured.
 */
const replyBytes = 4 * 1024

function headerBytes ({ raw }: FastifyRequest): number {
  return raw.rawHeaders.reduce((bytes, text) => bytes + text.length, 0)
}

function settle (reply: FastifyReply, outcome: Outcome): void {
  if (outcome === 'reached') reply.code(204).send()
  else if (typeof outcome === 'string') reply.code(202).send()
  else reply.send(refusal(outcome.refused))
}
