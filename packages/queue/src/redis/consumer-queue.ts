// The consumer's end of the queue in Redis.
import { createHash } from 'node:crypto'
import { ReplyError, type Redis } from 'ioredis'
import type { Logger } from 'pino'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { ownerText, parseOwner, SupersededError, type Owner } from '@gearbox/protocol/owner.ts'
import { encodeProgress, parseProgress, type Progress, type ResultRequest } from '@gearbox/protocol/progress.ts'
import type { StoreTrouble } from '@gearbox/protocol/trouble.ts'
import { elementBytesMax, QueueUnavailableError, runBytesMax, runElementsMax, type ConsumerQueue } from '../queue.ts'
import { betterReason, explainRedisError } from './errors.ts'
import {
  ask, askAll, createConnection, hurryMessage, readServer, redisKeys, shownUrl, Subscription, warnOfSettings,
  type RedisKeys,
} from './connection.ts'
import type { RedisQueueOptions } from './producer-queue.ts'
import { AutoResetEvent } from '../auto-reset-event.ts'
import { ResultRequests } from '../result-requests.ts'

/** Fields that one command deletes, at most: each is an argument, and a call takes only so many. */
const forgetMax = 1000

/** What `inspectQueue` finds. */
export interface QueueState {
  /** Batches that wait. */
  readonly waiting: number
  /** Consumers that listen; undefined if this user of Redis may not ask for that. */
  readonly consumers: number | undefined
}

/** Looks at a queue without taking from it or pushing to it. @throws QueueUnavailableError */
export async function inspectQueue ({ url, queueName, logger }: RedisQueueOptions): Promise<QueueState> {
  const keys = redisKeys(queueName)
  let unreachable: string | undefined
  const redis = createConnection(url, logger, (reason) => { unreachable ??= reason })
  try {
    await ask(redis.connect())
    await readServer(redis)
    const waiting = await ask(redis.llen(keys.batches))
    const reply = await redis.pubsub('NUMSUB', keys.wake).catch((error: unknown) => {
      if (!(error instanceof ReplyError)) throw error
    })
    return { waiting, consumers: reply === undefined ? undefined : Number(reply[1]) }
  } catch (error) {
    throw new QueueUnavailableError(unreachable ?? explainRedisError(error))
  } finally {
    redis.disconnect()
  }
}

/**
 * A reported trouble expires after this long: a consumer that does not repeat it is gone. Its tries are 1 s apart at
 * most.
 */
const troubleMs = 5000

/**
 * Takes from the list in Redis, acknowledges, and reports progress.
 *
 * Unbound (at first): only `readOwner` and `bind` work. Bound, from a `bind` that succeeded: take and acknowledge check
 * the owner in their scripts. Where Redis lost the owner or has an older one of this database, they bind again; where
 * it has another, they throw SupersededError, and the consumer must leave. A lost connection changes neither: it is
 * made again, and calls meanwhile throw QueueUnavailableError.
 */
export class RedisConsumerQueue implements ConsumerQueue {
  readonly name: string
  readonly keepsBatches = true
  readonly #keys: RedisKeys
  readonly #logger: Logger
  readonly #warnOfSettings: boolean
  readonly #redis: Redis
  /** Wakes the consumer at a push. Without it a commit is delayed until the next poll. */
  readonly #subscription: Subscription
  readonly #pushed = new AutoResetEvent()
  /** What was pushed since the last take asks for its commit at once. */
  readonly #hurried = new AutoResetEvent()
  readonly #requests = new ResultRequests()
  #owner: Owner | undefined
  #length = 0
  #durable = false
  #unreachable: string | undefined
  #reported = false
  #settingsProblem: string | undefined

  constructor ({ url, queueName, logger, warnOfSettings }: RedisQueueOptions) {
    this.name = `${shownUrl(url)} (${queueName})`
    this.#keys = redisKeys(queueName)
    this.#logger = logger
    this.#warnOfSettings = warnOfSettings
    this.#redis = createConnection(url, logger, (reason) => {
      this.#unreachable = betterReason(this.#unreachable, reason)
    })
    const onMessage = (message: string): void => this.#woken(message)
    this.#subscription = new Subscription(url, this.#keys.wake, logger, onMessage, warnOfSettings)
    this.#redis.on('ready', () => {
      // As long as it loads its data, INFO is not answered either.
      this.#readSettings().catch((error: unknown) => {
        this.#unreachable = betterReason(this.#unreachable, reasonOf(error))
        this.#redis.disconnect(true)
      })
    })
  }

  get length (): number {
    return this.#length
  }

  get unreachable (): string | undefined {
    return this.#unreachable
  }

  get durable (): boolean {
    return this.#durable
  }

  async start (): Promise<void> {
    this.#subscription.start()
    await ask(this.#redis.connect())
  }

  async readOwner (): Promise<{ owner: Owner | undefined, stored: ReadonlyMap<string, Progress> }> {
    // A Redis that can't be used is refused before any of its data is read.
    await readServer(this.#redis)
    const text = await ask(this.#redis.get(this.#keys.owner))
    const fields = await ask(this.#redis.hgetall(this.#keys.stored))
    const stored = new Map<string, Progress>()
    for (const [producer, field] of Object.entries(fields)) {
      const parsed = parseProgress(field)
      if (parsed !== undefined) stored.set(producer, parsed)
    }
    return { owner: text === null ? undefined : parseOwner(text), stored }
  }

  async bind (expected: Owner | undefined, owner: Owner): Promise<boolean> {
    const before = expected === undefined ? '' : ownerText(expected)
    const bound = await ask(this.#redis.gearboxBind(this.#keys.owner, before, ownerText(owner))) === 1
    if (bound) this.#owner = owner
    return bound
  }

  async forgetProgress (): Promise<void> {
    await ask(this.#redis.del(this.#keys.stored))
  }

  async take (): Promise<Buffer[]> {
    const owner = this.#requireOwner()
    // Before the question: what is pushed after the answer was made must not be forgotten.
    const hurried = this.#hurried.reset()
    const [found, length, ...elements] = await ask(this.#redis.gearboxTakeBuffer(
      this.#keys.owner, this.#keys.batches, ownerText(owner), runElementsMax, runBytesMax, elementBytesMax
    ))
    this.#length = length
    if (hurried && length > elements.length) this.#hurried.up()
    if (found.toString() === ownerText(owner)) return elements
    await this.#stayOwner(found.toString())
    return []
  }

  async acknowledge (elements: readonly Buffer[]): Promise<void> {
    const owner = this.#requireOwner()
    const hashes = elements.map((element) => createHash('sha1').update(element).digest('hex'))
    const [found, length] = await ask(
      this.#redis.gearboxAcknowledge(this.#keys.owner, this.#keys.batches, ownerText(owner), ...hashes))
    this.#length = length
    // Nothing was removed if Redis lost the owner; what is taken again then is skipped as applied before.
    if (found !== ownerText(owner)) await this.#stayOwner(found)
  }

  async reportProgress (stored: ReadonlyMap<string, Progress>): Promise<void> {
    if (stored.size === 0) return
    const news = Object.fromEntries(Array.from(stored, ([producer, value]) => [producer, encodeProgress(value)]))
    const fields = { ...news }
    for (const [producer, { results, ...value }] of stored) {
      if (results !== undefined) fields[producer] = encodeProgress(value)
    }
    // Published first: at maxmemory HSET is refused and PUBLISH is not.
    const message = JSON.stringify(news)
    await askAll(this.#redis.pipeline().publish(this.#keys.progress, message).hset(this.#keys.stored, fields))
  }

  async forget (producers: readonly string[]): Promise<void> {
    for (let first = 0; first < producers.length; first += forgetMax) {
      await ask(this.#redis.hdel(this.#keys.stored, ...producers.slice(first, first + forgetMax)))
    }
  }

  /** A full or locked disk is no trouble for producers: batches wait here, and nobody has to do anything. */
  async reportTrouble (trouble: StoreTrouble | undefined): Promise<void> {
    const moved = trouble?.moved === true ? trouble.reason : undefined
    if (moved === undefined && !this.#reported) return
    try {
      if (moved === undefined) await this.#redis.del(this.#keys.trouble)
      else await this.#redis.set(this.#keys.trouble, moved, 'PX', troubleMs)
      this.#reported = moved !== undefined
    } catch (error) {
      this.#logger.debug({ err: error }, 'what keeps the consumer from storing could not be reported')
    }
  }

  async waitForPush (ms: number, signal: AbortSignal): Promise<void> {
    // A take that had to bind again found nothing, and a push to a list that is not empty wakes nobody.
    if (this.#length === 0) await this.#pushed.wait(ms, signal)
  }

  async waitForHurry (ms: number, signal: AbortSignal): Promise<void> {
    await this.#hurried.wait(ms, signal)
  }

  takeResultRequests (): ResultRequest[] {
    return this.#requests.take()
  }

  async close (): Promise<void> {
    this.#redis.disconnect()
    this.#subscription.close()
  }

  #woken (message: string): void {
    if (message === hurryMessage) this.#hurried.up()
    else if (message !== '') this.#requests.add(message)
    this.#pushed.up()
  }

  async #readSettings (): Promise<void> {
    const { durable, problem } = await readServer(this.#redis)
    this.#durable = durable
    this.#unreachable = undefined
    if (!this.#warnOfSettings) return
    this.#settingsProblem = warnOfSettings(this.#logger, this.name, problem, this.#settingsProblem)
  }

  #requireOwner (): Owner {
    if (this.#owner === undefined) throw new QueueUnavailableError('the queue is not bound to a database yet')
    return this.#owner
  }

  /**
   * Another owner was found: takes the place of an older one, or of none if Redis lost it.
   * @throws SupersededError if the other one is newer, or of another database
   */
  async #stayOwner (found: string): Promise<void> {
    const owner = this.#requireOwner()
    const other = found === '' ? undefined : parseOwner(found)
    if (other !== undefined && (other.uuid !== owner.uuid || other.epoch > owner.epoch)) {
      throw new SupersededError(`${this.name} belongs to database ${found} now, not to ${ownerText(owner)}`)
    }
    await this.bind(other, owner)
  }
}
