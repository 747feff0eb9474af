// What clients are answered: the body of each reply, and where its ticket is to be found.
import type { FastifyReply } from 'fastify'
import { replyError, type FastReply } from '@gearbox/runtime/plugin.ts'
import { soldOut } from '../sold-out.ts'
import { preferred } from './accept.ts'
import type { Outcome } from './waiting.ts'

/** Digits of a number as text: what the first program of this kind wrote. */
const textDigits = 10

/** What a reply about tickets is for. */
export interface Asked {
  readonly basePath: string
  readonly name: string
  readonly count: number
  readonly accept: string | undefined
  /** 201 for a new ticket, 200 for one that is asked for again. */
  readonly statusCode: 200 | 201
}

/** A reply before it is written. */
type Made =
  { readonly statusCode: number, readonly headers: Headers, readonly body: object } |
  { readonly headers: Headers, readonly error: unknown }

type Headers = Readonly<Record<string, string>>

/** Answers a request for tickets. */
export function sendOutcome (reply: FastifyReply, outcome: Outcome, asked: Asked): void {
  const made = makeReply(outcome, asked)
  reply.headers(made.headers)
  if ('error' in made) {
    reply.send(made.error)
    return
  }
  reply.code(made.statusCode)
  const isText = outcome.state === 'issued' &&
    preferred(asked.accept, ['application/json', 'text/plain']) === 'text/plain'
  if (isText) reply.type('text/plain; charset=utf-8').send(textOf(outcome.first, asked.count))
  else reply.send(made.body)
}

/** The same for a request that asks for nothing but JSON, past Fastify. */
export function sendFast (reply: FastReply, outcome: Outcome, asked: Asked): void {
  const made = makeReply(outcome, asked)
  if ('error' in made) reply.fail(made.error, made.headers)
  else reply.send(made.statusCode, made.headers, JSON.stringify(made.body))
}

function makeReply (outcome: Outcome, { basePath, name, count, statusCode }: Asked): Made {
  const path = `${basePath}/tickets/${encodeURIComponent(name)}`
  if (outcome.state === 'issued') {
    const { first, receipt } = outcome
    const headers = { 'cache-control': 'no-store', location: `${path}/${first}`, vary: 'Accept' }
    const body = count === 1 ? { name, number: first, receipt } : { name, first, last: first + count - 1, receipt }
    return { statusCode, headers, body }
  }
  if (outcome.state === 'pending') {
    const { request } = outcome
    const headers = { 'cache-control': 'no-store', location: `${path}/requests/${request}` }
    return { statusCode: 202, headers, body: { request } }
  }
  return { headers: { 'cache-control': 'no-store' }, error: errorOf(outcome) }
}

function textOf (first: number, count: number): string {
  const range = count === 1 ? `number ${padded(first)}` : `numbers ${padded(first)} to ${padded(first + count - 1)}`
  return `ticket ${range}`
}

function errorOf (outcome: Exclude<Outcome, { readonly state: 'issued' | 'pending' }>): unknown {
  if (outcome.state === 'failed') return outcome.error
  if (outcome.state === 'sold out') return replyError(...soldOut(outcome.left))
  return replyError(400, 'GBX_HUNG_UP', 'the client ended its side of the connection, as one does that hangs up, ' +
    'before a number was taken; no number was issued. Keep it open until the reply comes')
}

function padded (number: number): string {
  return String(number).padStart(textDigits, '0')
}
