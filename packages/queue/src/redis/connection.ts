// Connections to Redis on which every command settles within about two seconds, and none is sent twice unasked.
import { Redis, ReplyError } from 'ioredis'
import type { Logger } from 'pino'
import { parseRedisUrl } from '@gearbox/runtime/redis-url.ts'
import { QueueUnavailableError } from '../queue.ts'
import { betterReason, explainClose, explainRedisError } from './errors.ts'
import { scripts } from './scripts.ts'

/** Where a queue lives in Redis. The partition is a hash tag, so that its keys can share a slot of a cluster. */
export interface RedisKeys {
  /** List of batches: pushed at the tail, taken from the head. */
  readonly batches: string
  /** Random id of what this Redis remembers; gone together with everything else. */
  readonly generation: string
  /** `uuid:epoch` of the database. */
  readonly owner: string
  /** Hash: producer → what is stored of it. */
  readonly stored: string
  /** Why the consumer can't store until a person puts it right; expires unless it is reported again. */
  readonly trouble: string
  /**
   * Channel: something was pushed (an empty message), or something that asks for its commit at once (hurryMessage), or
   * a request about outcomes (its JSON). A consumer of a release before wakes up at all of them.
   */
  readonly wake: string
  /** Channel: progress of producers. */
  readonly progress: string
}

/** The keys and channels of one queue. */
export function redisKeys (queueName: string, partition = 0): RedisKeys {
  const key = (name: string): string => `${queueName}:{${partition}}:${name}`
  return {
    batches: key('batches'),
    generation: key('generation'),
    owner: key('owner'),
    stored: key('stored'),
    trouble: key('trouble'),
    wake: key('wake'),
    // The channel's name is older than the word.
    progress: key('told'),
  }
}

/** On the wake channel: something was pushed that asks for its commit at once. */
export const hurryMessage = 'now'

/** A URL as it may be shown: without user and password. */
export function shownUrl (url: string): string {
  return parseRedisUrl(url).shown
}

// A socket that does not answer for this long is dead. It must be shorter than the command's own timeout:
// that one only gives up waiting and leaves the command in the connection, to be carried out later.
const socketTimeoutMs = 2000
const commandTimeoutMs = 2500
const reconnectMs = { first: 50, most: 1000 }

declare module 'ioredis' {
  interface Redis {
    gearboxPush (
      generationKey: string, batchesKey: string, generation: string, wake: string, message: string,
      ...elements: readonly Buffer[]
    ): Promise<number>
    gearboxTakeBuffer (
      ownerKey: string, batchesKey: string, owner: string,
      elementsMax: number, bytesMax: number, elementBytesMax: number
    ): Promise<[owner: Buffer, length: number, ...elements: Buffer[]]>
    gearboxAcknowledge (
      ownerKey: string, batchesKey: string, owner: string, ...sha1: readonly string[]
    ): Promise<[owner: string, length: number]>
    gearboxBind (ownerKey: string, expected: string, owner: string): Promise<number>
    gearboxWaiting (
      batchesKey: string, producer: string, skip: number, elementsMax: number, bytesMax: number
    ): Promise<[read: number, ...sequences: string[]]>
  }
}

/**
 * A connection that connects on `connect()`, and again whenever it is lost.
 * By default ioredis sends commands again after a reconnect, which can push a batch twice, and queues without
 * bound while offline. With these options a command is sent once or fails at once.
 * @param lost called with the reason, one line, whenever it can't be made or is lost; perhaps twice
 */
export function createConnection (url: string, logger: Logger, lost: (reason: string) => void = () => {}): Redis {
  const { host, port, path, tls, username, password, db, family } = parseRedisUrl(url)
  const redis = new Redis({
    ...(host === undefined ? { path: path ?? '' } : { host, port, family }),
    ...(tls ? { tls: {} } : {}),
    ...(username === undefined ? {} : { username }),
    ...(password === undefined ? {} : { password }),
    db,
    lazyConnect: true,
    connectionName: 'gearbox',
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    enableAutoPipelining: false,
    autoResubscribe: false,
    // It would send INFO, and explain on the console why it may not. Whoever uses a connection reads what it needs.
    enableReadyCheck: false,
    disableClientInfo: true,
    connectTimeout: socketTimeoutMs,
    socketTimeout: socketTimeoutMs,
    commandTimeout: commandTimeoutMs,
    keepAlive: 10_000,
    retryStrategy: (times) => Math.min(reconnectMs.first * 2 ** times, reconnectMs.most),
    // Where a script failed, the word comes after others. A primary that became a replica takes no more batches, and
    // its name may by now lead to the new primary.
    reconnectOnError: (error) => error.message.includes('READONLY'),
    scripts,
  })
  refuseOldLogin(redis)
  let ready = false
  let reason: string | undefined
  redis.on('ready', () => { ready = true })
  redis.on('error', (error: unknown) => {
    // The first one is the cause, and what follows it is its consequence.
    reason ??= explainRedisError(error, { tls, ready })
    lost(reason)
    // ioredis would go on in database 0.
    if (!ready && error instanceof ReplyError && redis.status === 'connect') redis.disconnect(true)
  })
  redis.on('close', () => {
    reason ??= explainClose({ tls, ready })
    logger.debug(`no connection to Redis: ${reason}`)
    lost(reason)
    ready = false
    reason = undefined
  })
  return redis
}

/**
 * A Redis before 6.0 knows no users. ioredis says so on the console at every attempt and goes on without a login; this
 * makes it an error like others.
 */
function refuseOldLogin (redis: Redis): void {
  const auth = async (login: string | readonly string[]): Promise<unknown> => {
    return await ask(redis.call('auth', ...[login].flat()))
  }
  Object.defineProperty(redis, 'auth', { value: auth })
}

/** What ACL and the protocol of our connections need. */
const majorVersionMin = 6

/** What a new connection finds. */
export interface ServerState {
  /** Names the server's process and the history of its data. */
  readonly runId: string
  /** Whether it keeps what was pushed through its own death, as far as its settings tell. */
  readonly durable: boolean
  /** The setting that stands in the way of that. */
  readonly problem: string | undefined
}

/** Reads a server's identity and settings. @throws QueueUnavailableError also if it is too old */
export async function readServer (redis: Redis): Promise<ServerState> {
  const [server, replication, persistence] = await Promise.all([
    ask(redis.info('server')), ask(redis.info('replication')), ask(redis.info('persistence')),
  ])
  const version = /^redis_version:(\d+)\.(\S+)/m.exec(server)
  if (version !== null && Number(version[1]) < majorVersionMin) {
    const found = `${version[1]}.${version[2]}`
    throw new QueueUnavailableError(`it is Redis ${found}, and ${majorVersionMin}.0 or newer is needed`)
  }
  const runId = parseRunId(server, replication)
  const problem = /^aof_enabled:1/m.test(persistence) ? await settingsProblem(redis) : 'appendonly is off'
  return { runId, durable: problem === undefined, problem }
}

/** Names the server's process and the history of its data. @throws QueueUnavailableError */
export function parseRunId (server: string, replication: string): string {
  const runId = /^run_id:(\w+)/m.exec(server)?.[1]
  if (runId === undefined) throw new QueueUnavailableError('INFO server names no run_id')
  // A primary that was a replica for a while has the same run_id and another history.
  return `${runId}/${/^master_replid:(\w+)/m.exec(replication)?.[1] ?? ''}`
}

async function settingsProblem (redis: Redis): Promise<string | undefined> {
  const wanted = { appendfsync: 'always', 'maxmemory-policy': 'noeviction' }
  for (const [name, value] of Object.entries(wanted)) {
    let reply: unknown
    try {
      reply = await redis.config('GET', name)
    } catch (error) {
      if (!(error instanceof ReplyError)) throw new QueueUnavailableError(explainRedisError(error))
      return 'CONFIG GET is not allowed, so its settings are not known'
    }
    const found = Array.isArray(reply) ? String(reply[1]) : 'unknown'
    if (found !== value) return `${name} is ${found}, not ${value}`
  }
  return undefined
}

/** Awaits a command. @throws QueueUnavailableError instead of ioredis's own errors, which hold all that was sent */
export async function ask<T> (reply: Promise<T>): Promise<T> {
  try {
    return await reply
  } catch (error) {
    throw new QueueUnavailableError(explainRedisError(error))
  }
}

/**
 * Runs a pipeline.
 * @throws QueueUnavailableError with the first failure: a pipeline resolves even if all of it failed
 */
export async function askAll (pipeline: ReturnType<Redis['pipeline']>): Promise<unknown[]> {
  const results = await ask(pipeline.exec())
  if (results === null) throw new QueueUnavailableError('no reply')
  return results.map(([error, value]) => {
    if (error !== null) throw new QueueUnavailableError(explainRedisError(error))
    return value
  })
}

/** Warns, once per change, if `queued` promises more than these settings keep. @returns the problem warned of */
export function warnOfSettings (
  logger: Logger, name: string, problem: string | undefined, before: string | undefined
): string | undefined {
  if (problem !== undefined && problem !== before) {
    logger.warn(`${name}: ${problem}. An increment answered as queued may be lost with Redis and its worker; ` +
      'set "appendonly yes", "appendfsync always" and "maxmemory-policy noeviction" to keep it')
  }
  return problem
}

// A subscription shows no sign of life by itself; this often it is pinged.
const subscriptionCheckMs = 5000

/**
 * A subscription to one channel, on its own connection. A message may be lost at any time.
 *
 * Closed (at first): `start` leads to connecting. Connecting: a connection that is ready leads to subscribed, and where
 * Redis refuses that it is tried again every few seconds. Subscribed: pinged as often; a lost connection leads back to
 * connecting. `close` ends it for good.
 */
export class Subscription {
  readonly #redis: Redis
  readonly #channel: string
  readonly #logger: Logger
  readonly #warns: boolean
  #subscribed = false
  #warnedOf: string | undefined
  #check: NodeJS.Timeout | undefined

  /** @param warns whether to log that the channel can't be subscribed to */
  constructor (url: string, channel: string, logger: Logger, received: (message: string) => void, warns: boolean) {
    this.#channel = channel
    this.#logger = logger
    this.#warns = warns
    this.#redis = createConnection(url, logger, () => { this.#subscribed = false })
    this.#redis.on('ready', () => { this.#subscribe().catch(() => {}) })
    this.#redis.on('message', (_channel, message) => received(message))
  }

  start (): void {
    this.#redis.connect().catch(() => {})
    this.#check = setInterval(() => {
      const check = this.#subscribed ? this.#redis.ping() : this.#subscribe()
      check.catch(() => {})
    }, subscriptionCheckMs)
    this.#check.unref()
  }

  close (): void {
    clearInterval(this.#check)
    this.#redis.disconnect()
  }

  async #subscribe (): Promise<void> {
    try {
      await this.#redis.subscribe(this.#channel)
      this.#subscribed = true
      this.#warnedOf = undefined
    } catch (error) {
      // Where the connection is lost, the next one subscribes.
      const reason = betterReason('', explainRedisError(error))
      if (this.#redis.status !== 'ready' || reason === '') return
      if (this.#warns && reason !== this.#warnedOf) {
        this.#logger.warn(`Redis sends no messages, so everything takes longer: ${reason}`)
      }
      this.#warnedOf = reason
    }
  }
}

/** Finds out once whether a Redis can be used for a queue. @throws QueueUnavailableError with the reason */
export async function checkRedis (url: string, queueName: string, logger: Logger): Promise<void> {
  let reason: string | undefined
  const redis = createConnection(url, logger, (lost) => { reason ??= lost })
  try {
    await ask(redis.connect())
    await readServer(redis)
    // A node of a cluster, or a user who lacks the keys, answers everything but this.
    await ask(redis.get(redisKeys(queueName).generation))
  } catch (error) {
    throw new QueueUnavailableError(reason ?? explainRedisError(error))
  } finally {
    redis.disconnect()
  }
}
