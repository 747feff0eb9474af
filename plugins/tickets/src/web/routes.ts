// The routes of tickets. Each reads its request (parameters.ts), and either sends an entry to the consumer or reads
// what the database has.
import type { FastifyInstance, FastifyRequest } from 'fastify'
import { echo, replyError, type Json, type SubmitOptions } from '@gearbox/runtime/plugin.ts'
import { calledNumbers } from '../called.ts'
import { numberMax, parseServed, type GiveUpEntry, type ServeEntry } from '../entry.ts'
import { holderOf, lineState, placeOf, readLine, runOf, wasIssued, type Line, type Run } from '../lines.ts'
import type { Web } from '../settings.ts'
import { hasTables } from '../tables.ts'
import { preferred } from './accept.ts'
import { AskedPlaces } from './asked.ts'
import { KeyedRequests } from './keyed.ts'
import { streamLog } from './log.ts'
import { pageHeaders, renderPage } from './page.ts'
import { readCount, readFields, readHolder, readInteger, readName, readNumber } from './parameters.ts'
import { findRequest, isReceipt } from './reads.ts'
import { sendFast, sendOutcome } from './replies.ts'
import { parseRequestId } from './request-id.ts'
import {
  giveUpSchema, issueSchema, limitSchema, lineSchema, logSchema, placeSchema, requestSchema, serveSchema,
} from './schemas.ts'
import { WaitingLines, type Outcome } from './waiting.ts'

interface NamePath { Params: { name: string } }
interface RequestPath { Params: { name: string, request: string } }
interface PlacePath { Params: { name: string, number: string }, Querystring: { receipt?: string } }

/** Numbers that a reply to `serve` lists. */
const listedMax = 10_000

const access = {
  take: { needs: 'count', public: 'tickets' },
  read: { needs: 'read', public: 'tickets' },
  /** For whoever knows something that can't be guessed: a receipt, or the address of a request. */
  own: { needs: 'any', public: 'tickets' },
  admin: { needs: 'admin' },
} as const

/** Adds the routes to a worker. */
export function ticketRoutes (app: FastifyInstance, web: Web): void {
  // The schemas are for /docs.
  app.setValidatorCompiler(() => () => true)
  app.setSerializerCompiler(() => JSON.stringify)
  const waiting = new WaitingLines(web)
  const keyed = new KeyedRequests(web, (count) => waiting.countIssued(count))
  addIssue(app, web, waiting, keyed)
  addRequest(app, web, waiting, keyed)
  addLine(app, web, waiting)
  addServe(app, web, waiting)
  addPlace(app, web)
  addLog(app, web)
}

function addIssue (app: FastifyInstance, web: Web, waiting: WaitingLines, keyed: KeyedRequests): void {
  app.post<NamePath>('/tickets/:name', { config: access.take, schema: issueSchema }, (request, reply) => {
    const name = readName(request.params.name)
    const fields = readFields(request)
    const [count, holder, key] = [readCount(fields), readHolder(fields), web.idempotency(request)]
    // While its reply is pending, all of a request stays in memory.
    request.body = undefined
    const { basePath } = web.core
    const asked = { basePath, name, count, accept: request.headers.accept, statusCode: 201 } as const
    const ticketRequest = {
      count,
      holder,
      came: Date.now(),
      isGone: () => hasHungUp(request),
      settle: (outcome: Outcome) => sendOutcome(reply, outcome, asked),
    }
    if (key.idempotencyKey === undefined) {
      waiting.take(name, ticketRequest)
    } else {
      waiting.seal(name)
      keyed.take(name, key, ticketRequest)
    }
  })
  web.fastPost('/tickets/', (name, reply) => {
    const asked = { basePath: web.core.basePath, name, count: 1, accept: undefined, statusCode: 201 } as const
    waiting.take(name, {
      count: 1,
      holder: undefined,
      came: Date.now(),
      isGone: () => reply.isGone(),
      settle: (outcome) => sendFast(reply, outcome, asked),
    })
  })
}

/**
 * Whether a client has closed its connection. One that has ended only its own side looks the same until something is
 * written, so it gets no number either, and a reply that says so.
 */
function hasHungUp ({ raw: { socket } }: FastifyRequest): boolean {
  return socket.destroyed || socket.readableEnded
}

function addRequest (app: FastifyInstance, web: Web, waiting: WaitingLines, keyed: KeyedRequests): void {
  const options = { config: access.own, schema: requestSchema }
  app.get<RequestPath>('/tickets/:name/requests/:request', options, (request, reply) => {
    const [name, text] = [readName(request.params.name), request.params.request]
    const id = parseRequestId(text)
    if (id === undefined) throw noRequest(text)
    const count = id.kind === 'shared' ? id.count : 1
    const { basePath } = web.core
    const asked = { basePath, name, count, accept: request.headers.accept, statusCode: 200 } as const
    if (id.producer === web.producer) {
      const own = id.kind === 'shared' ? waiting.find(name, id) : keyed.find(id.request)
      if (own !== undefined) {
        sendOutcome(reply, own, asked)
        return
      }
    }
    const found = findRequest(web.database, name, id, Date.now())
    if (found === undefined || (found === 'pending' && id.producer === web.producer)) throw noRequest(text)
    if (found === 'pending') sendOutcome(reply, { state: 'pending', request: text }, asked)
    else sendOutcome(reply, { state: 'issued', ...found }, { ...asked, count: found.count })
  })
}

function noRequest (text: string): Error {
  return replyError(404, 'GBX_NO_REQUEST', `no request ${echo(text)} is known: it was refused, or never got a 202`)
}

function addLine (app: FastifyInstance, web: Web, waiting: WaitingLines): void {
  app.get<NamePath>('/tickets/:name', { config: access.read, schema: lineSchema }, (request, reply) => {
    const name = readName(request.params.name)
    reply.header('cache-control', 'no-cache').send(lineState(web.database, name, lineOf(web, name)))
  })
  app.put<NamePath>('/tickets/:name', { config: access.admin, schema: limitSchema }, async (request, reply) => {
    const name = readName(request.params.name)
    const text = readFields(request).get('limit')
    if (text === undefined) {
      throw replyError(400, 'GBX_BAD_QUERY', 'send limit=N, the last number that may be issued, or limit= to lift it')
    }
    const to = text === '' ? null : readInteger(text, 'limit', 0, numberMax)
    waiting.seal(name)
    return await whenStored(web, { limit: name, to }) ?? reply.code(202).send()
  })
}

/** @throws RequestError (404) if no number of this name was ever issued */
function lineOf ({ database }: Web, name: string): Line {
  const line = hasTables(database) && wasIssued(database, name) ? readLine(database, name) : undefined
  if (line === undefined) throw replyError(404, 'GBX_NO_TICKETS', `no number of ${echo(name)} was ever issued`)
  return line
}

function addServe (app: FastifyInstance, web: Web, waiting: WaitingLines): void {
  const options = { config: access.admin, schema: serveSchema }
  app.post<NamePath>('/tickets/:name/serve', options, async (request, reply) => {
    const name = readName(request.params.name)
    const fields = readFields(request)
    const [by, to] = [fields.get('by'), fields.get('to')]
    if ((by === undefined) === (to === undefined)) {
      throw replyError(400, 'GBX_BAD_QUERY', 'send either by=N, for the next N that wait, or to=N')
    }
    const entry: ServeEntry = by !== undefined
      ? { serve: name, by: readInteger(by, 'by', 1, 1000) }
      : { serve: name, to: readInteger(to ?? '', 'to', 1, numberMax) }
    const scope = `POST /tickets/${encodeURIComponent(name)}/serve`
    waiting.seal(name)
    const result = await whenStored(web, entry, { ...web.idempotency(request), scope })
    if (result === undefined) return reply.code(202).send()
    const served = parseServed(result)
    const { called, more } = calledNumbers(served, listedMax)
    return { serving: served.serving, called, ...(more === 0 ? {} : { more }) }
  })
}

function addPlace (app: FastifyInstance, web: Web): void {
  const asked = new AskedPlaces(web)
  app.get<PlacePath>('/tickets/:name/:number', { config: access.read, schema: placeSchema }, (request, reply) => {
    const name = readName(request.params.name)
    const number = readNumber(request.params.number)
    const run = issued(web, name, number)
    const { database, settings: { ticketsHoldS } } = web
    const { receipt } = request.query
    const isOwn = receipt !== undefined && isReceipt(database, name, number, receipt)
    const isAdmin = web.isAllowed(request, 'admin')
    if (receipt !== undefined && !isOwn && !isAdmin) {
      throw replyError(403, 'GBX_WRONG_RECEIPT', `that is not the receipt of number ${number}`)
    }
    const place = placeOf(database, name, number, run.at, Date.now(), ticketsHoldS * 1000)
    if (isOwn && place.state === 'called') asked.ask(name, number)
    reply.header('cache-control', 'no-store').header('vary', 'Accept')
    if (preferred(request.headers.accept, ['application/json', 'text/html']) === 'text/html') {
      reply.headers(pageHeaders).send(renderPage(name, place, ticketsHoldS))
      return
    }
    const { at, state, ahead, waitSeconds } = place
    const holder = isOwn || isAdmin ? holderOf(database, name, number) : undefined
    reply.send({
      name, number, at: new Date(at).toISOString(), state, ahead, wait_seconds: waitSeconds, holder,
    })
  })
  app.delete<PlacePath>('/tickets/:name/:number', { config: access.own, schema: giveUpSchema },
    async (request, reply) => {
      const name = readName(request.params.name)
      const number = readNumber(request.params.number)
      const { receipt } = request.query
      const isAdmin = web.isAllowed(request, 'admin')
      if (!isAdmin && receipt === undefined) {
        throw replyError(403, 'GBX_RECEIPT_NEEDED', 'send ?receipt=, as the reply that had the number said it')
      }
      const entry: GiveUpEntry = { giveUp: name, number, ...(isAdmin || receipt === undefined ? {} : { receipt }) }
      const isStored = await whenStored(web, entry) !== undefined
      return reply.code(isStored ? 204 : 202).send()
    })
}

/** @throws RequestError (404) if a number was never issued */
function issued ({ database }: Web, name: string, number: number): Run {
  const run = hasTables(database) ? runOf(database, name, number) : undefined
  if (run === undefined) throw replyError(404, 'GBX_NO_TICKET', `number ${number} of ${echo(name)} was never issued`)
  return run
}

function addLog (app: FastifyInstance, web: Web): void {
  const options = { config: access.admin, schema: logSchema }
  app.get<NamePath>('/tickets/:name/log', options, (request, reply) => {
    const name = readName(request.params.name)
    const after = readInteger(readFields(request).get('after') ?? '0', 'after', 0, numberMax)
    lineOf(web, name)
    reply.type('application/x-ndjson').header('cache-control', 'no-store')
    reply.send(request.method === 'HEAD' ? '' : streamLog(web.database, name, after))
  })
}

/** Sends an entry. @returns its result; undefined if that is not known in time */
async function whenStored (web: Web, data: Json, options?: SubmitOptions): Promise<Json | undefined> {
  const submitted = await web.submit(data, options)
  return submitted.state === 'stored' ? submitted.result : undefined
}
