// What clients are answered: the body of each reply, and where its ticket is to be found.
import type { FastifyReply } from 'fastify'
import { replyError } from '@gearbox/runtime/plugin.ts'
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

/** Answers a request for tickets. */
export function sendOutcome (reply: FastifyReply, outcome: Outcome, asked: Asked): void {
  const path = `${asked.basePath}/tickets/${encodeURIComponent(asked.name)}`
  reply.header('cache-control', 'no-store')
  if (outcome.state === 'issued') {
    reply.code(asked.statusCode).header('location', `${path}/${outcome.first}`).header('vary', 'Accept')
    sendTicket(reply, outcome.first, outcome.receipt, asked)
  } else if (outcome.state === 'pending') {
    reply.code(202).header('location', `${path}/requests/${outcome.request}`).send({ request: outcome.request })
  } else {
    reply.send(errorOf(outcome))
  }
}

function sendTicket (reply: FastifyReply, first: number, receipt: string, { name, count, accept }: Asked): void {
  const last = first + count - 1
  if (preferred(accept, ['application/json', 'text/plain']) === 'text/plain') {
    const range = count === 1 ? `number ${padded(first)}` : `numbers ${padded(first)} to ${padded(last)}`
    reply.type('text/plain; charset=utf-8').send(`ticket ${range}`)
  } else {
    reply.send(count === 1 ? { name, number: first, receipt } : { name, first, last, receipt })
  }
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
