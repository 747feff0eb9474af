// How many connections a worker accepts: CONNECTIONS_MAX, or as many as it has file descriptors for. Those beyond are
// closed on arrival, without a reply; so they are counted and logged here.
import { readdirSync, readFileSync } from 'node:fs'
import type { Server } from 'node:net'
import type { Logger } from '@gearbox/runtime/log/logger.ts'

/** Why connections were closed on arrival. */
export type DropReason = 'limit' | 'descriptors'

/**
 * File descriptors kept for everything else that a worker opens once it listens: the queue's connections, the
 * database's readers, scrapes, and the file of unsent batches, without which a stop would lose them. A dozen were seen.
 */
const descriptorsReserved = 32

/** One line logs all that were closed since the one before: the first after a moment, the next after a pause. */
const logMs = { first: 500, pause: 10_000 }

/**
 * The limit on descriptors can be raised while a process runs (prlimit), and is read again this often while connections
 * are dropped.
 */
const readAgainMs = 1000

/** What the limit follows. */
export interface ConnectionLimitOptions {
  readonly connectionsMax: number
  readonly logger: Logger
}

/** Limits the connections of one worker's listening servers; counts and logs those that are closed on arrival. */
export class ConnectionLimit {
  /** Connections closed on arrival, by reason. */
  readonly dropped = new Map<DropReason, number>([['limit', 0], ['descriptors', 0]])
  readonly #connectionsMax: number
  readonly #logger: Logger
  #servers: readonly Server[] = []
  /** Descriptors in use when no connection was open. */
  #inUse = 0
  #descriptorsMax = Infinity
  #readAt = 0
  /** Dropped since the last line. */
  readonly #unlogged = new Map<DropReason, number>()
  #loggedAt = -Infinity
  #timer: NodeJS.Timeout | undefined

  constructor ({ connectionsMax, logger }: ConnectionLimitOptions) {
    this.#connectionsMax = connectionsMax
    this.#logger = logger
  }

  /** Limits servers that have just begun to listen, together. To be called once. */
  watch (servers: readonly Server[]): void {
    this.#servers = servers
    this.#inUse = countDescriptors()
    this.#readDescriptorsMax()
    if (this.#room < this.#connectionsMax) {
      this.#logger.warn(`no more than ${this.#room} connections, as this process may have ${this.#descriptorsMax} ` +
        'file descriptors: raise that limit (ulimit -n, LimitNOFILE) or lower CONNECTIONS_MAX, which is ' +
        String(this.#connectionsMax))
    }
    for (const server of servers) {
      server.on('drop', () => this.#drop(this.#room < this.#connectionsMax ? 'descriptors' : 'limit'))
      // Without a listener it would end the process.
      server.on('error', (error: NodeJS.ErrnoException) => {
        if (error.code === 'EMFILE' || error.code === 'ENFILE') this.#drop('descriptors')
        else this.#logger.error({ err: error }, `a connection could not be accepted: ${error.message}`)
      })
    }
  }

  /**
   * At the process's limit the kernel refuses to accept, and Node closes waiting connections without any event. So this
   * one is below it, where every connection that is closed can be counted.
   */
  get #room (): number {
    return Math.max(1, Math.min(this.#connectionsMax, this.#descriptorsMax - this.#inUse - descriptorsReserved))
  }

  #readDescriptorsMax (): void {
    this.#readAt = performance.now()
    this.#descriptorsMax = readDescriptorsMax()
    for (const server of this.#servers) server.maxConnections = this.#room
  }

  #drop (reason: DropReason): void {
    this.dropped.set(reason, this.dropped.get(reason)! + 1)
    this.#unlogged.set(reason, (this.#unlogged.get(reason) ?? 0) + 1)
    if (reason === 'descriptors' && performance.now() - this.#readAt > readAgainMs) this.#readDescriptorsMax()
    const pauseMs = this.#loggedAt + logMs.pause - performance.now()
    this.#timer ??= setTimeout(() => this.#log(), Math.max(logMs.first, pauseMs)).unref()
  }

  #log (): void {
    for (const [reason, count] of this.#unlogged) {
      const why = reason === 'limit'
        ? `CONNECTIONS_MAX (${this.#connectionsMax}) is reached`
        : `only ${this.#room} fit into the ${this.#descriptorsMax} file descriptors of this process ` +
          '(ulimit -n, LimitNOFILE)'
      this.#logger.warn({ reason, count }, `closed ${count} new ${count === 1 ? 'connection' : 'connections'}: ${why}`)
    }
    this.#unlogged.clear()
    this.#loggedAt = performance.now()
    this.#timer = undefined
  }
}

/** How many file descriptors this process may have; Infinity where that can't be read (not Linux). */
function readDescriptorsMax (): number {
  try {
    const [, limit] = /^Max open files +(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8')) ?? []
    return limit === undefined ? Infinity : Number(limit)
  } catch {
    return Infinity
  }
}

function countDescriptors (): number {
  try {
    return readdirSync('/proc/self/fd').length
  } catch {
    return 0
  }
}
