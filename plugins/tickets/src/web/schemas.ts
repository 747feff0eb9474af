// The schemas of the routes. They are for the document at /docs: what they say is checked by parameters.ts, with
// messages that name what is wrong.
import { errorSchema } from '@gearbox/runtime/plugin.ts'

const number = { type: 'integer', minimum: 1 } as const
const count = { type: 'integer', minimum: 0 } as const
const name = { type: 'string', description: 'the name of the line: as a key, 1 to 256 bytes' } as const
const text = { type: 'string', maxLength: 256 } as const
const tags = ['tickets'] as const

const receipt = {
  type: 'string', description: 'shows that a number is one\'s own: it sees the holder and gives the place up',
} as const

const receiptQuery = {
  type: 'object', properties: { receipt: { type: 'string', description: 'what the 201 said' } },
} as const

const namePath = { type: 'object', properties: { name } } as const
const placePath = { type: 'object', properties: { name, number } } as const

const idempotencyKey = {
  type: 'object',
  properties: {
    'Idempotency-Key': {
      type: 'string',
      minLength: 1,
      maxLength: 255,
      pattern: '^[!-~]+$',
      description: 'within IDEMPOTENCY_HOURS requests with the same one get the same reply, at any worker',
    },
  },
} as const

/** One ticket or several. */
const ticket = {
  oneOf: [
    { type: 'object', required: ['name', 'number', 'receipt'], properties: { name, number, receipt } },
    {
      type: 'object',
      required: ['name', 'first', 'last', 'receipt'],
      properties: { name, first: number, last: number, receipt },
    },
  ],
} as const

const pending = {
  type: 'object',
  required: ['request'],
  description: 'not stored within ACK_TIMEOUT_MS, and on its way: ask at Location',
  properties: { request: { type: 'string' } },
} as const

const line = {
  type: 'object',
  required: ['name', 'issued', 'serving', 'waiting', 'limit'],
  properties: {
    name,
    issued: { ...count, description: 'the last number that was issued' },
    serving: { ...count, description: 'the last number that was called' },
    waiting: { ...count, description: 'numbers that were not called and not given up' },
    limit: { type: ['integer', 'null'], description: 'the last number that may be issued' },
  },
} as const

const errors = {
  400: 'a name or a value that is not allowed: the message says which',
  401: 'API_KEYS is set and the request has none of them',
  403: 'an API key that is not for this, or a wrong receipt',
  404: 'no number of this name was issued, or not this one',
  409: 'GBX_SOLD_OUT: more than is left, which "left" says; nothing was issued',
  415: 'a body that is not a form',
  422: 'an Idempotency-Key that came with another request before, or too late',
  503: 'a limit is reached, the queue is out of reach, or there is no database: try again after Retry-After',
} as const

function failing (...statuses: ReadonlyArray<keyof typeof errors>): object {
  return Object.fromEntries(statuses.map((status) => [status, { description: errors[status], ...errorSchema }]))
}

function fields (properties: object): object {
  return { consumes: ['application/x-www-form-urlencoded'], body: { type: 'object', properties } }
}

/** `POST /tickets/NAME` */
export const issueSchema = {
  tags,
  summary: 'Takes the next number',
  description: 'Answered when the number is stored. `count` asks for several in a row, all or nothing. With ' +
    '`Accept: text/plain` the reply is `ticket number 0000000042`. A client that hangs up before its request leaves ' +
    'the worker gets no number.',
  params: namePath,
  querystring: {
    type: 'object',
    properties: {
      count: { type: 'integer', minimum: 1, maximum: 1000, default: 1 },
      holder: { ...text, description: 'kept with it; whoever has the receipt sees it' },
    },
  },
  headers: idempotencyKey,
  ...fields({ count: number, holder: text }),
  response: { 201: ticket, 202: pending, ...failing(400, 401, 403, 409, 415, 422, 503) },
} as const

/** `GET /tickets/NAME/requests/PRODUCER.N` */
export const requestSchema = {
  tags,
  summary: 'What became of a request that got a 202',
  params: { type: 'object', properties: { name, request: { type: 'string' } } },
  response: { 200: ticket, 202: pending, ...failing(404, 409, 503) },
} as const

/** `GET /tickets/NAME` */
export const lineSchema = {
  tags, summary: 'A line', params: namePath, response: { 200: line, ...failing(404, 503) },
} as const

/** `PUT /tickets/NAME` */
export const limitSchema = {
  tags,
  summary: 'Sets the last number that may be issued',
  description: 'A limit below what is issued is fine, and revokes nothing. An empty one lifts it.',
  params: namePath,
  querystring: { type: 'object', properties: { limit: { type: 'string', pattern: '^[0-9]*$' } } },
  ...fields({ limit: { type: 'string' } }),
  response: { 200: line, 202: { type: 'null' }, ...failing(400, 401, 403, 415, 503) },
} as const

/** `POST /tickets/NAME/serve` */
export const serveSchema = {
  tags,
  summary: 'Calls numbers',
  description: '`by`: the next so many that still wait. `to`: all up to a number; never back, never past what is ' +
    'issued.',
  params: namePath,
  querystring: {
    type: 'object',
    properties: { by: { type: 'integer', minimum: 1, maximum: 1000 }, to: { type: 'integer', minimum: 1 } },
  },
  headers: idempotencyKey,
  ...fields({ by: number, to: number }),
  response: {
    200: {
      type: 'object',
      required: ['serving', 'called'],
      properties: {
        serving: count,
        called: { type: 'array', items: number, description: 'the numbers that were called by this request' },
        more: { ...count, description: 'how many of them are not listed, where they are very many' },
      },
    },
    202: { type: 'null' },
    ...failing(400, 401, 403, 404, 415, 422, 503),
  },
} as const

/** `GET /tickets/NAME/NUMBER` */
export const placeSchema = {
  tags,
  summary: 'Where a number is in its line',
  description: 'With `Accept: text/html` a page for the person who waits, which updates by itself.',
  params: placePath,
  querystring: receiptQuery,
  response: {
    200: {
      type: 'object',
      required: ['name', 'number', 'at', 'state', 'ahead', 'wait_seconds'],
      properties: {
        name,
        number,
        at: { type: 'string', format: 'date-time', description: 'when it was issued' },
        state: { type: 'string', enum: ['waiting', 'called', 'given_up'] },
        ahead: { ...count, description: 'how many that wait are called before it' },
        wait_seconds: { type: ['integer', 'null'], description: 'about how long until it is called; null: unknown' },
        holder: { ...text, description: 'with its receipt or an admin key' },
      },
    },
    ...failing(400, 401, 403, 404, 503),
  },
} as const

/** `DELETE /tickets/NAME/NUMBER` */
export const giveUpSchema = {
  tags,
  summary: 'Gives a place up',
  description: 'Its number is never issued again, and makes room for no other. With its receipt, or an admin key.',
  params: placePath,
  querystring: receiptQuery,
  response: {
    204: { type: 'null', description: 'it is given up; also if it was before' },
    202: { type: 'null', description: 'not stored within ACK_TIMEOUT_MS; send it again, which does no harm' },
    ...failing(401, 403, 404, 503),
  },
} as const

/** `GET /tickets/NAME/log` */
export const logSchema = {
  tags,
  summary: 'All numbers in their order',
  description: 'One line of JSON per number: `{"number":42,"at":"2026-11-25T13:00:00.000Z","holder":"…"}`.',
  params: namePath,
  querystring: {
    type: 'object', properties: { after: { type: 'integer', minimum: 0, description: 'begin behind this number' } },
  },
  produces: ['application/x-ndjson'],
  response: { 200: { type: 'string' }, ...failing(400, 401, 403, 404, 503) },
} as const
