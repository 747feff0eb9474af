// Requests for tickets that came with an Idempotency-Key. Each is an entry of its own, as its repeats may go to another
// worker.
import { parseIssued, type IssueEntry, type Issued } from '../entry.ts'
import { receiptOf } from '../receipt.ts'
import type { Web } from '../settings.ts'
import { keyedId, keyedRequest } from './request-id.ts'
import type { Outcome, TicketRequest } from './waiting.ts'

/** The key, and whose it is. */
export type Idempotency = ReturnType<Web['idempotency']>

/** Requests that got a 202 and were refused then, that are remembered: the first to be forgotten is the oldest. */
const refusedMax = 1000

/** The requests with a key of one worker. */
export class KeyedRequests {
  readonly #web: Web
  /** Those that got a 202, by what the log has as `request`: still on their way, or refused. */
  readonly #pending = new Set<number>()
  readonly #refused = new Map<number, unknown>()

  readonly #onIssued: (count: number) => void

  /** @param onIssued called with how many numbers a reply has; of a repeat too */
  constructor (web: Web, onIssued: (count: number) => void) {
    this.#web = web
    this.#onIssued = onIssued
  }

  /** Sends a request, and settles it. */
  take (name: string, key: Idempotency, { count, holder, settle }: TicketRequest): void {
    const request = keyedRequest(name, key)
    const data: IssueEntry = {
      issue: name,
      requests: 1,
      counts: count === 1 ? [] : [[0, count]],
      holders: holder === undefined ? [] : [[0, holder]],
      request,
    }
    this.#web.submit(data, { ...key, scope: `POST /tickets/${encodeURIComponent(name)}` }).then((submitted) => {
      if (submitted.state === 'stored') {
        this.#onIssued(count)
        settle(outcomeOf(parseIssued(submitted.result), count))
      } else if (submitted.state === 'dropped') settle({ state: 'gone' })
      else {
        this.#remember(request, submitted.late)
        settle({ state: 'pending', request: keyedId(this.#web.producer, request) })
      }
    }).catch((error: unknown) => settle({ state: 'failed', error }))
  }

  /** What is known of a request that got a 202 here and is not in the log. */
  find (request: number): Outcome | undefined {
    if (this.#pending.has(request)) return { state: 'pending', request: keyedId(this.#web.producer, request) }
    return this.#refused.has(request) ? { state: 'failed', error: this.#refused.get(request) } : undefined
  }

  #remember (request: number, late: Promise<unknown>): void {
    this.#pending.add(request)
    late.catch((error: unknown) => {
      this.#refused.set(request, error)
      const [oldest] = this.#refused.keys()
      if (this.#refused.size > refusedMax && oldest !== undefined) this.#refused.delete(oldest)
    }).finally(() => this.#pending.delete(request)).catch(() => {})
  }
}

/** What a request that is alone in its entry got. */
function outcomeOf ({ first, key }: Issued, count: number): Outcome {
  return { state: 'issued', first, receipt: receiptOf(key, first, count) }
}
