// The one way an error is written, whichever code wrote the head before it: Fastify, Node's response or a bare socket.
import { STATUS_CODES } from 'node:http'
import type { FastifyReply } from 'fastify'
import type { ErrorHeaders, RequestError } from './errors.ts'

/** A reply's parts, without what belongs to its connection and without Content-Length. */
export interface ErrorReply {
  readonly statusCode: number
  readonly headers: ErrorHeaders
  readonly body: string
}

/** The parts of an error's reply, for a caller that writes them. */
export function errorReply (error: RequestError): ErrorReply {
  const { statusCode } = error
  const retry = statusCode === 503 ? { 'retry-after': '1' } : undefined
  const headers = { ...error.headers, ...retry, 'content-type': 'application/json; charset=utf-8' }
  return { statusCode, headers, body: JSON.stringify(error) }
}

/** Sends an error as Fastify's reply. Headers that the reply has already stay. */
export function sendError (reply: FastifyReply, error: RequestError): void {
  const { statusCode, headers, body } = errorReply(error)
  reply.code(statusCode).headers(headers).send(body)
}

/**
 * An error's whole reply for a socket, to be written in latin1.
 * @param first header lines before its own, each with its CRLF
 * @param last header lines behind its own, and the empty line that ends the head
 */
export function errorText (error: RequestError, first: string, last: string): string {
  const { statusCode, headers, body } = errorReply(error)
  const bytes = Buffer.from(body)
  let head = `HTTP/1.1 ${statusCode} ${STATUS_CODES[statusCode]}\r\n${first}`
  for (const [name, value] of Object.entries(headers)) head += `${name}: ${value}\r\n`
  return `${head}content-length: ${bytes.length}\r\n${last}${bytes.toString('latin1')}`
}
