// Requests for tickets that wait in this worker. All of one name that came since the last flush are one entry: it takes
// in whoever comes until it leaves, so that any number of waiting clients is few entries. The route feeds it; it feeds
// `submit`, and settles each request when the consumer has numbered the entry.
import { setImmediate } from 'node:timers/promises'
import type { Json } from '@gearbox/runtime/plugin.ts'
import { Allotment } from '../allotment.ts'
import { entryTicketsMax, parseIssued, type Issued, type IssueEntry } from '../entry.ts'
import { newSecret, receiptOf } from '../receipt.ts'
import type { Web } from '../settings.ts'
import { firstPlace, isGenuine, sharedId, type RequestId } from './request-id.ts'

/** What became of a request. */
export type Outcome =
  { readonly state: 'issued', readonly first: number, readonly receipt: string } |
  { readonly state: 'sold out', readonly left: number } |
  { readonly state: 'pending', readonly request: string } |
  { readonly state: 'gone' } |
  { readonly state: 'failed', readonly error: unknown }

/** A request that waits for its numbers. */
export interface TicketRequest {
  readonly count: number
  readonly holder: string | undefined
  /** When it came, Unix ms. */
  readonly came: number
  /** Whether its client has hung up. */
  readonly isGone: () => boolean
  /** Called once. */
  readonly settle: (outcome: Outcome) => void
}

/**
 * JSON bytes of an entry at which it takes in no more: below the 64 KiB of one, with room for its wrapping and for one
 * more holder, each byte of which may be two in JSON.
 */
const entryBytesMax = 48 * 1024

/** Bytes that a run or a holder takes besides its text: `[1048575,1000],`. */
const pairBytes = 20

/** About what Node and Fastify keep of a request until it is answered, as for an increment. */
const replyBytes = 4 * 1024

/** Replies that are written in one step of the event loop: some 5 ms. */
const repliesPerStep = 100

/** Entries whose requests got a 202 that are remembered once they are settled, and for how long. */
const remembered = { entries: 1000, ms: 600_000 } as const

/**
 * The entries of one worker. Each is *open* while it takes in requests; *sealed*, if `seal` comes or it is full, while
 * it takes in no more but waits to leave; *closed* from when it leaves or gives its first
 * 202 (from then on no request of it is dropped), and *settled* once the consumer has answered. `#open` has at most one
 * per name.
 */
export class WaitingLines {
  readonly #web: Web
  readonly #secret = newSecret()
  readonly #open = new Map<string, Entry>()
  /** Those whose requests got a 202, by number. */
  readonly #late = new Map<number, Entry>()
  #groups = 0
  readonly #overtaken: (seconds: number) => void
  #issued = 0
  #refused = 0
  #hungUp = 0

  constructor (web: Web) {
    this.#web = web
    const { metrics } = web
    metrics.counter('gearbox_tickets_issued_total', 'numbers that replies of this worker had; those of repeats again',
      () => this.#issued)
    metrics.counter('gearbox_tickets_refused_total', 'requests for more than was left', () => this.#refused)
    metrics.counter('gearbox_tickets_hung_up_total', 'requests whose client hung up before they left this worker',
      () => this.#hungUp)
    this.#overtaken = metrics.durations('gearbox_ticket_overtaken_seconds',
      'how long a request was there when a later one came that got a smaller number, per entry')
  }

  /** Takes a request in. @throws RequestError (503) if a limit is reached: it waits for nothing */
  take (name: string, request: TicketRequest): void {
    const open = this.#open.get(name)
    if (open?.hasRoomFor(request) === true) {
      open.add(request, this.#web.holdReply(replyBytes))
      return
    }
    this.#groups++
    const entry = new Entry(name, firstPlace(this.#groups), this.#web.producer, this.#secret)
    entry.add(request, () => {})
    this.#open.set(name, entry)
    this.#send(entry).catch((error: unknown) => { this.#web.logger.error({ err: error }, 'tickets were not answered') })
  }

  /**
   * To be called when an entry of another kind is sent that is for this name: who comes later gets behind it, and no
   * longer into the entry that is before it.
   */
  seal (name: string): void {
    this.#open.delete(name)
  }

  /** Counts numbers that a request got which had an entry of its own. */
  countIssued (count: number): void {
    this.#issued += count
  }

  /** What is known of a request that got a 202 here. */
  find (name: string, id: RequestId & { kind: 'shared' }): Outcome | undefined {
    this.#forgetOld()
    const entry = this.#late.get(Math.floor(id.place / entryTicketsMax))
    return entry?.name === name && isGenuine(id, this.#secret) ? entry.find(id.place, id.count) : undefined
  }

  async #send (entry: Entry): Promise<void> {
    try {
      const submitted = await this.#web.submit(() => this.#leave(entry), { replyBytes })
      if (submitted.state === 'stored') await this.#settle(entry, submitted.result)
      if (submitted.state !== 'pending') return
      this.#close(entry)
      this.#forgetOld()
      this.#late.set(entry.group, entry)
      await entry.promise()
      await this.#settle(entry, await submitted.late)
    } catch (error) {
      this.#close(entry)
      await entry.fail(error)
    }
  }

  /** The entry's data when it leaves; undefined if nobody is left who waits for it. */
  #leave (entry: Entry): Json | undefined {
    this.#close(entry)
    return entry.takeData()
  }

  #close (entry: Entry): void {
    if (this.#open.get(entry.name) === entry) this.#open.delete(entry.name)
    this.#hungUp += entry.close()
  }

  async #settle (entry: Entry, result: Json): Promise<void> {
    const issued = parseIssued(result)
    this.#overtaken(issued.overtakenMs / 1000)
    const { tickets, refused } = await entry.settle(issued)
    this.#issued += tickets
    this.#refused += refused
  }

  #forgetOld (): void {
    const before = performance.now() - remembered.ms
    for (const [group, { settledAt }] of this.#late) {
      if (settledAt === undefined) continue
      if (settledAt >= before && this.#late.size <= remembered.entries) return
      this.#late.delete(group)
    }
  }
}

/** One entry, from its first request until its last address is forgotten. */
class Entry {
  readonly name: string
  readonly #start: number
  readonly #producer: string
  readonly #secret: string
  /** Emptied once each has its reply. */
  #waiting: Array<{ readonly request: TicketRequest, readonly release: () => void }> = []
  #bytes = 0
  /** How many tickets each request wants, from when it is closed. */
  #counts: number[] = []
  /** Tickets that are wanted. */
  #wanted = 0
  #data: IssueEntry | undefined
  #isClosed = false
  #issued: Issued | undefined
  #error: unknown
  /** First numbers by place, where a limit has cut the entry; else they follow from the place. */
  #firsts: Map<number, number | undefined> | undefined
  /** performance.now ms */
  settledAt: number | undefined

  constructor (name: string, start: number, producer: string, secret: string) {
    this.name = name
    this.#start = start
    this.#producer = producer
    this.#secret = secret
  }

  get group (): number {
    return this.#start / entryTicketsMax
  }

  hasRoomFor (request: TicketRequest): boolean {
    return !this.#isClosed && this.#wanted + request.count <= entryTicketsMax &&
      this.#bytes + bytesOf(request) <= entryBytesMax
  }

  add (request: TicketRequest, release: () => void): void {
    this.#waiting.push({ request, release })
    this.#wanted += request.count
    this.#bytes += bytesOf(request)
  }

  /** Takes in no more, and drops those whose client has hung up. @returns how many these were */
  close (): number {
    if (this.#isClosed) return 0
    this.#isClosed = true
    const all = this.#waiting
    this.#waiting = all.filter(({ request, release }) => {
      if (!request.isGone()) return true
      release()
      request.settle({ state: 'gone' })
      return false
    })
    this.#counts = this.#waiting.map(({ request }) => request.count)
    this.#wanted = this.#counts.reduce((sum, count) => sum + count, 0)
    this.#data = this.#makeData()
    return all.length - this.#waiting.length
  }

  /** What the consumer gets, once it is closed; undefined if nobody is left. To be called once. */
  takeData (): Json | undefined {
    const data = this.#data
    this.#data = undefined
    return data
  }

  #makeData (): IssueEntry | undefined {
    const requests = this.#waiting.map(({ request }) => request)
    const [first, last] = [requests[0], requests.at(-1)]
    if (first === undefined || last === undefined) return undefined
    return {
      issue: this.name,
      requests: requests.length,
      counts: requests.flatMap(({ count }, i): Array<[number, number]> => count === 1 ? [] : [[i, count]]),
      holders: requests.flatMap(({ holder }, i): Array<[number, string]> => holder === undefined ? [] : [[i, holder]]),
      request: this.#start,
      secret: this.#secret,
      came: [first.came, last.came],
    }
  }

  /** Gives every request its 202. */
  async promise (): Promise<void> {
    await this.#each((place, count, request) => {
      request?.settle({ state: 'pending', request: sharedId(this.#producer, this.#secret, place, count) })
    })
    this.#release()
  }

  /** Gives every request that has no 202 its numbers, or says that they are sold out. */
  async settle (issued: Issued): Promise<{ tickets: number, refused: number }> {
    const { first, left, key } = issued
    const allotment = new Allotment(first, left)
    const firsts = this.#wanted > left ? new Map<number, number | undefined>() : undefined
    let refused = 0
    await this.#each((place, count, request) => {
      const number = allotment.take(count)
      if (number === undefined) refused++
      firsts?.set(place, number)
      request?.settle(number === undefined
        ? { state: 'sold out', left: allotment.left }
        : { state: 'issued', first: number, receipt: receiptOf(key, number, count) })
    })
    this.#firsts = firsts
    this.#issued = issued
    this.settledAt = performance.now()
    this.#release()
    return { tickets: allotment.next - first, refused }
  }

  async fail (error: unknown): Promise<void> {
    await this.#each((_place, _count, request) => { request?.settle({ state: 'failed', error }) })
    this.#error = error
    this.settledAt = performance.now()
    this.#release()
  }

  /** What became of the request whose first ticket has this place. */
  find (place: number, count: number): Outcome {
    if (this.#error !== undefined) return { state: 'failed', error: this.#error }
    if (this.#issued === undefined) {
      return { state: 'pending', request: sharedId(this.#producer, this.#secret, place, count) }
    }
    const { first, left, key } = this.#issued
    const number = this.#firsts === undefined ? first + place - this.#start : this.#firsts.get(place)
    if (number === undefined) return { state: 'sold out', left: Math.min(left, count - 1) }
    return { state: 'issued', first: number, receipt: receiptOf(key, number, count) }
  }

  /**
   * In steps, so that a hundred thousand replies do not hold up all others.
   * @param visit gets no request where that has its reply already
   */
  async #each (visit: (place: number, count: number, request: TicketRequest | undefined) => void): Promise<void> {
    let place = this.#start
    for (const [i, count] of this.#counts.entries()) {
      if (i > 0 && i % repliesPerStep === 0) await setImmediate()
      visit(place, count, this.#waiting[i]?.request)
      place += count
    }
  }

  #release (): void {
    for (const { release } of this.#waiting) release()
    this.#waiting = []
  }
}

function bytesOf ({ count, holder }: TicketRequest): number {
  const runBytes = count === 1 ? 0 : pairBytes
  return holder === undefined ? runBytes : runBytes + pairBytes + Buffer.byteLength(JSON.stringify(holder))
}
