// Connections to Redis on which every command settles within about two seconds and none is ever sent twice behind our back.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Redis, ReplyError } from 'ioredis'
import type { Logger } from 'pino'
import { QueueUnavailableError } from './queue.ts'

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
  /** Channels: something was pushed; something was stored. */
  readonly wake: string
  readonly told: string
}

export function redisKeys (queueName: string, partition = 0): RedisKeys {
  const key = (name: string): string => `${queueName}:{${partition}}:${name}`
  return { batches: key('batches'), generation: key('generation'), owner: key('owner'), stored: key('stored'), wake: key('wake'), told: key('told') }
}

/** A URL as it may be shown: without user and password. */
export function shownUrl (url: string): string {
  const { protocol, host, pathname } = new URL(url)
  return `${protocol}//${host}${pathname === '/' ? '' : pathname}`
}

// A socket that owes an answer for this long is dead. It must be shorter than the command's own timeout:
// that one only gives up waiting and leaves the command in the connection, to be carried out later.
const socketTimeoutMs = 2000
const commandTimeoutMs = 2500
const reconnectMs = { first: 50, most: 1000 }

function lua (name: string): string {
  return readFileSync(join(import.meta.dirname, `${name}.lua`), 'utf8')
}

const scripts = {
  gearboxPush: { lua: lua('push'), numberOfKeys: 2 },
  gearboxTake: { lua: lua('take'), numberOfKeys: 2 },
  gearboxAcknowledge: { lua: lua('acknowledge'), numberOfKeys: 2 },
  gearboxBind: { lua: lua('bind'), numberOfKeys: 1 },
  gearboxWaiting: { lua: lua('waiting'), numberOfKeys: 1 },
}

declare module 'ioredis' {
  interface Redis {
    gearboxPush (generationKey: string, batchesKey: string, generation: string, wake: string, ...elements: readonly Buffer[]): Promise<number>
    gearboxTakeBuffer (
      ownerKey: string, batchesKey: string, owner: string, elementsMax: number, bytesMax: number, elementBytesMax: number
    ): Promise<[owner: Buffer, length: number, ...elements: Buffer[]]>
    gearboxAcknowledge (ownerKey: string, batchesKey: string, owner: string, ...sha1: readonly string[]): Promise<[owner: string, length: number]>
    gearboxBind (ownerKey: string, expected: string, owner: string): Promise<number>
    gearboxWaiting (batchesKey: string, producer: string, skip: number, elementsMax: number, bytesMax: number): Promise<[read: number, ...sequences: string[]]>
  }
}

/**
 * A connection that connects on `connect()` and again whenever it is lost.
 * By default ioredis sends commands anew after a reconnect, which can push a batch twice, and queues without
 * bound while offline. With these options a command is sent once or fails at once.
 */
export function createConnection (url: string, logger: Logger): Redis {
  const redis = new Redis(url, {
    lazyConnect: true,
    connectionName: 'gearbox',
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    enableAutoPipelining: false,
    autoResubscribe: false,
    connectTimeout: socketTimeoutMs,
    socketTimeout: socketTimeoutMs,
    commandTimeout: commandTimeoutMs,
    keepAlive: 10_000,
    retryStrategy: (times) => Math.min(reconnectMs.first * 2 ** times, reconnectMs.most),
    // The word stands behind others where a script failed. A primary that became a replica takes no more batches; its name may by now lead to the new primary.
    reconnectOnError: (error) => error.message.includes('READONLY'),
    scripts,
  })
  redis.on('error', (error) => logger.debug({ err: error }, 'redis connection'))
  return redis
}

/** The settings and identity that a new connection finds. @throws QueueUnavailableError */
export async function readServer (redis: Redis): Promise<{ runId: string, durable: boolean, problem: string | undefined }> {
  const [server, replication, persistence] = await Promise.all([ask(redis.info('server')), ask(redis.info('replication')), ask(redis.info('persistence'))])
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
      if (!(error instanceof ReplyError)) throw new QueueUnavailableError(plainReason(error), { cause: error })
      return 'CONFIG GET is not allowed, so its settings are not known'
    }
    const found = Array.isArray(reply) ? String(reply[1]) : 'unknown'
    if (found !== value) return `${name} is ${found}, not ${value}`
  }
  return undefined
}

/** Awaits a command. @throws QueueUnavailableError instead of whatever ioredis or Redis say */
export async function ask<T> (reply: Promise<T>): Promise<T> {
  try {
    return await reply
  } catch (error) {
    throw new QueueUnavailableError(plainReason(error), { cause: error })
  }
}

/** ioredis explains its own options where a reader of the log wants to know what happened. */
function plainReason (error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  if (error.name === 'MaxRetriesPerRequestError') return 'the connection was lost'
  return error.message.startsWith("Stream isn't writeable") ? 'not connected' : error.message
}

/** Runs commands in one go. @throws QueueUnavailableError with the first failure: a pipeline resolves even if all of it failed */
export async function askAll (pipeline: ReturnType<Redis['pipeline']>): Promise<unknown[]> {
  const results = await ask(pipeline.exec())
  if (results === null) throw new QueueUnavailableError('no reply')
  return results.map(([error, value]) => {
    if (error !== null) throw new QueueUnavailableError(error.message, { cause: error })
    return value
  })
}

/** Warns, once a change, where `queued` promises more than these settings keep. @returns the problem warned of */
export function warnOfSettings (logger: Logger, name: string, problem: string | undefined, before: string | undefined): string | undefined {
  if (problem !== undefined && problem !== before) {
    logger.warn(`${name}: ${problem}. An increment answered as queued may be lost with Redis and its worker; ` +
      'set "appendonly yes", "appendfsync always" and "maxmemory-policy noeviction" to keep it')
  }
  return problem
}

// A subscription shows no sign of life by itself; this often it is asked for one.
const subscriptionCheckMs = 5000

/** Hears one channel for as long as it is open, on a connection of its own. A message may be lost at any time. */
export class Subscription {
  readonly #redis: Redis
  #check: NodeJS.Timeout | undefined

  constructor (url: string, channel: string, logger: Logger, heard: (message: string) => void) {
    this.#redis = createConnection(url, logger)
    this.#redis.on('ready', () => { this.#redis.subscribe(channel).catch(() => this.#redis.disconnect(true)) })
    this.#redis.on('message', (_channel, message) => heard(message))
  }

  start (): void {
    this.#redis.connect().catch(() => {})
    this.#check = setInterval(() => { this.#redis.ping().catch(() => {}) }, subscriptionCheckMs)
    this.#check.unref()
  }

  close (): void {
    clearInterval(this.#check)
    this.#redis.disconnect()
  }
}

/** Finds out once whether a Redis answers. @throws QueueUnavailableError with the reason */
export async function checkRedis (url: string, logger: Logger): Promise<void> {
  const redis = createConnection(url, logger)
  let reason: string | undefined
  redis.on('error', (error) => { reason ??= error.message || error.name })
  try {
    await redis.connect()
    await redis.ping()
  } catch (error) {
    throw new QueueUnavailableError(reason ?? (error instanceof Error ? error.message : String(error)))
  } finally {
    redis.disconnect()
  }
}
