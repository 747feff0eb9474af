// A web worker's end of the queue in Redis.
import { randomUUID } from 'node:crypto'
import type { Redis } from 'ioredis'
import type { Logger } from 'pino'
import { databaseOf } from '@gearbox/protocol/owner.ts'
import { parseProgress, type ResultRequest } from '@gearbox/protocol/progress.ts'
import {
  connecting, ProducerQueue, QueueUnavailableError, runBytesMax, runElementsMax, type Polled,
} from '../queue.ts'
import {
  ask, askAll, createConnection, hurryMessage, parseRunId, readServer, redisKeys, shownUrl, Subscription,
  warnOfSettings, type RedisKeys,
} from './connection.ts'
import { betterReason, explainRedisError } from './errors.ts'
import { redisQueueName, type Origin } from '../spool-file.ts'

/** Which queue in which Redis. */
export interface RedisQueueOptions {
  /** REDIS_URL. */
  readonly url: string
  /** The first part of every key. */
  readonly queueName: string
  readonly logger: Logger
  /** Whether to warn of settings under which `queued` keeps less than it promises; one process of several does. */
  readonly warnOfSettings: boolean
}

/**
 * Pushes to the list in Redis, and learns what is stored from a channel and by polling.
 *
 * Unreachable (at first, and whenever the connection is lost): calls throw QueueUnavailableError; connections are made
 * until one is ready. Identifying: reads the server's run id and settings, and the queue's generation, or sets one if
 * Redis has none; a failure closes the connection. Reachable: `incarnation` is defined, and an event was emitted. A
 * push or a poll that finds another generation adopts it, which changes the incarnation. `close` ends it for good.
 */
export class RedisProducerQueue extends ProducerQueue {
  readonly pushIsStored = false
  readonly #keys: RedisKeys
  readonly #logger: Logger
  readonly #name: string
  /** Address and name, for the spool. */
  readonly #queue: string
  readonly #warnOfSettings: boolean
  readonly #redis: Redis
  /** Receives progress. Losing it delays replies; it can't lose counts. */
  readonly #subscription: Subscription
  #runId: string | undefined
  #generation: string | undefined
  #database: string | undefined
  #unreachable: string | undefined = connecting
  #durable = false
  #settingsProblem: string | undefined

  constructor ({ url, queueName, logger, warnOfSettings }: RedisQueueOptions) {
    super()
    this.#keys = redisKeys(queueName)
    this.#logger = logger
    this.#name = shownUrl(url)
    this.#queue = redisQueueName(url, this.#name, queueName)
    this.#warnOfSettings = warnOfSettings
    this.#redis = createConnection(url, logger, (reason) => this.#lost(reason))
    const onMessage = (message: string): void => this.#onProgress(message)
    this.#subscription = new Subscription(url, this.#keys.progress, logger, onMessage, warnOfSettings)
    this.#redis.on('ready', () => {
      this.#identify().catch((error: unknown) => {
        this.#lost(explainRedisError(error))
        this.#redis.disconnect(true)
      })
    })
  }

  get incarnation (): string | undefined {
    if (this.#runId === undefined || this.#generation === undefined) return undefined
    return `${this.#runId}/${this.#generation}`
  }

  get unreachable (): string | undefined {
    return this.#unreachable
  }

  get origin (): Origin {
    return { queue: this.#queue, generation: this.#generation, database: this.#database }
  }

  async readOrigin (): Promise<Origin> {
    const [generation, owner] = await askAll(this.#redis.pipeline().get(this.#keys.generation).get(this.#keys.owner))
    const database = this.#noteOwner(owner)
    return { queue: this.#queue, generation: typeof generation === 'string' ? generation : undefined, database }
  }

  get durable (): boolean {
    return this.#durable
  }

  async start (): Promise<void> {
    this.#redis.connect().catch(() => {})
    this.#subscription.start()
  }

  async push (elements: readonly Buffer[], incarnation: string, hurry = false): Promise<'pushed' | 'moved'> {
    if (this.incarnation === undefined) throw new QueueUnavailableError(this.#unreachable ?? 'not identified yet')
    if (this.incarnation !== incarnation || this.#generation === undefined) return 'moved'
    const { generation, batches, wake } = this.#keys
    const message = hurry ? hurryMessage : ''
    const pushed = await ask(this.#redis.gearboxPush(generation, batches, this.#generation, wake, message, ...elements))
    if (pushed === 1) return 'pushed'
    await this.#adoptGeneration()
    return 'moved'
  }

  async pollProgress (producer: string): Promise<Polled> {
    const [length, text, generation, owner, server, replication] = await askAll(this.#redis.pipeline()
      .llen(this.#keys.batches).hget(this.#keys.stored, producer).get(this.#keys.generation).get(this.#keys.owner)
      .info('server').info('replication'))
    this.#noteOwner(owner)
    const runId = parseRunId(String(server), String(replication))
    const moved = generation !== this.#generation || runId !== this.#runId
    if (this.#runId !== undefined && moved) await this.#adoptGeneration(runId)
    return { stored: typeof text === 'string' ? parseProgress(text) : undefined, length: Number(length) }
  }

  async requestResults (request: ResultRequest): Promise<void> {
    if (this.incarnation === undefined) throw new QueueUnavailableError(this.#unreachable ?? 'not identified yet')
    const receivers = await ask(this.#redis.publish(this.#keys.wake, JSON.stringify(request)))
    if (receivers === 0) throw new QueueUnavailableError('no consumer listens')
  }

  async missing (producer: string, sequences: readonly number[], signal: AbortSignal): Promise<ReadonlySet<number>> {
    const missing = new Set(sequences)
    // From the tail: what is pushed meanwhile moves the others away from it, so one may be read twice but none is
    // skipped.
    for (let read = 0; missing.size > 0;) {
      if (signal.aborted) throw new QueueUnavailableError('no time to look through the queue')
      const [count, ...found] = await ask(
        this.#redis.gearboxWaiting(this.#keys.batches, producer, read, runElementsMax, runBytesMax))
      for (const seq of found) missing.delete(Number(seq))
      if (count === 0) break
      read += count
    }
    return missing
  }

  async check (): Promise<string | undefined> {
    if (this.incarnation === undefined) throw new QueueUnavailableError(this.#unreachable ?? 'not identified yet')
    const [, trouble] = await askAll(this.#redis.pipeline().ping().get(this.#keys.trouble))
    return typeof trouble === 'string' ? trouble : undefined
  }

  async length (): Promise<number> {
    return await ask(this.#redis.llen(this.#keys.batches))
  }

  async close (): Promise<void> {
    this.#redis.disconnect()
    this.#subscription.close()
  }

  /**
   * Before the first push of a new connection: finds out whether this Redis is the same as before, with all its data.
   */
  async #identify (): Promise<void> {
    const { runId, durable, problem } = await readServer(this.#redis)
    this.#durable = durable
    if (this.#warnOfSettings) {
      this.#settingsProblem = warnOfSettings(this.#logger, this.#name, problem, this.#settingsProblem)
    }
    this.#noteOwner(await ask(this.#redis.get(this.#keys.owner)))
    await this.#adoptGeneration(runId)
    this.#unreachable = undefined
  }

  /**
   * Keeps the database that owns the queue. An owner that is gone was lost by Redis: what was pushed still belongs to
   * its database.
   * @returns the database that Redis has now
   */
  #noteOwner (owner: unknown): string | undefined {
    const database = typeof owner === 'string' ? databaseOf(owner) : undefined
    this.#database = database ?? this.#database
    return database
  }

  /** Takes on the generation that Redis has, or gives it one. An existing one is never overwritten. */
  async #adoptGeneration (runId = this.#runId): Promise<void> {
    let generation = await ask(this.#redis.get(this.#keys.generation))
    if (generation === null) {
      await ask(this.#redis.set(this.#keys.generation, randomUUID(), 'NX'))
      generation = await ask(this.#redis.get(this.#keys.generation))
    }
    if (generation === null) throw new QueueUnavailableError('the generation is gone again')
    this.#generation = generation
    this.#runId = runId
    this.emit('incarnation')
  }

  #lost (reason: string): void {
    this.#unreachable = betterReason(this.#unreachable, reason)
    this.#runId = undefined
  }

  #onProgress (message: string): void {
    let progress: unknown
    try {
      progress = JSON.parse(message)
    } catch {
      return
    }
    if (typeof progress !== 'object' || progress === null) return
    for (const [producer, value] of Object.entries(progress)) {
      const stored = typeof value === 'string' ? parseProgress(value) : undefined
      if (stored !== undefined) this.emit('progress', producer, stored)
    }
  }
}
