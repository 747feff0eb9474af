// How many connections a worker takes: CONNECTIONS_MAX, or as many as it has file descriptors for. What comes beyond is
// closed on arrival, which its client sees as a connection that ends without a word; so it is counted and logged here.
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

/** Closed connections are summed up in one line: the first after a moment, and the next after a pause. */
const logMs = { first: 500, pause: 10_000 }

/**
 * The limit on descriptors can be raised while a process runs (prlimit), and is read again this often while connections
 * are dropped.
 */
const readAgainMs = 1000

export interface ConnectionLimitOptions {
  readonly connectionsMax: number
  readonly logger: Logger
}

/** Keeps the limit of one worker's listening servers, and counts what it closes. */
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
  readonly #unsaid = new Map<DropReason, number>()
  #saidAt = -Infinity
  #timer: NodeJS.Timeout | undefined

  constructor ({ connectionsMax, logger }: ConnectionLimitOptions) {
    this.#connectionsMax = connectionsMax
    this.#logger = logger
  }

  /** Takes care of servers that have just begun to listen. */
  watch (servers: readonly Server[]): void {
    this.#servers = servers
    this.#inUse = countDescriptors()
    this.#readDescriptorsMax()
    if (this.#room < this.#connectionsMax) {
      this.#logger.warn(`no more than ${this.#room} connections, as this process may have ${this.#descriptorsMax} file descriptors: raise ` +
        `that limit (ulimit -n, LimitNOFILE) or lower CONNECTIONS_MAX, which is ${this.#connectionsMax}`)
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
   * Past the real limit the kernel refuses to accept, and Node closes what waits without telling anybody. So this one
   * is kept below it, where every connection that is closed can be counted.
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
    this.#unsaid.set(reason, (this.#unsaid.get(reason) ?? 0) + 1)
    if (reason === 'descriptors' && performance.now() - this.#readAt > readAgainMs) this.#readDescriptorsMax()
    this.#timer ??= setTimeout(() => this.#say(), Math.max(logMs.first, this.#saidAt + logMs.pause - performance.now())).unref()
  }

  #say (): void {
    for (const [reason, count] of this.#unsaid) {
      const why = reason === 'limit'
        ? `CONNECTIONS_MAX (${this.#connectionsMax}) is reached`
        : `only ${this.#room} fit into the ${this.#descriptorsMax} file descriptors of this process (ulimit -n, LimitNOFILE)`
      this.#logger.warn({ reason, count }, `closed ${count} new ${count === 1 ? 'connection' : 'connections'}: ${why}`)
    }
    this.#unsaid.clear()
    this.#saidAt = performance.now()
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
