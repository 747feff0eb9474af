// A web worker's end of the embedded queue: a Unix socket to the consumer of the same `npm start`.
import { connect, type Socket } from 'node:net'
import { dirname } from 'node:path'
import { reasonOf } from '@gearbox/runtime/errors.ts'
import { frame, packElements, readFrames, uint32, writeFrame } from './frames.ts'
import { parseProgress, type ResultRequest } from '@gearbox/protocol/progress.ts'
import { parseTrouble } from '@gearbox/protocol/trouble.ts'
import { connecting, ProducerQueue, QueueUnavailableError, type Polled, type StoreFailure } from '../queue.ts'
import { requireOwnDirectory } from './socket-directory.ts'
import type { Origin } from '../spool-file.ts'

const reconnectMs = 50

/** A poll is answered at once; a consumer that takes longer than this is as good as gone. */
const pollTimeoutMs = 2000

/**
 * Connects to the consumer's socket, and pushes and polls over it.
 *
 * Disconnected (at first): `start`, or a timer after a lost connection, leads to connecting. Connecting: the socket is
 * there; the consumer's `hello` names its incarnation and leads to connected. Connected: pushes and polls are in
 * flight, each until its frame comes. From both, a closed socket fails all that is in flight and leads to disconnected.
 * `close` ends it for good.
 */
export class EmbeddedProducerQueue extends ProducerQueue {
  /** The channel keeps nothing: a push resolves when the batch is committed. */
  readonly pushIsStored = true
  readonly durable = true
  readonly #path: string
  readonly #name: string
  #socket: Socket | undefined
  #incarnation: string | undefined
  #database: string | undefined
  #unreachable: string | undefined = connecting
  #closed = false
  #id = 0
  readonly #pushes = new Map<number, { resolve: () => void, reject: (error: Error) => void }>()
  #storeFailure: StoreFailure | undefined
  readonly #polls = new Map<number, { resolve: (polled: Polled) => void, reject: (error: Error) => void }>()

  /**
   * @param path of the consumer's socket
   * @param name of the queue, for what is written down
   */
  constructor (path: string, name = 'the embedded queue') {
    super()
    this.#path = path
    this.#name = name
  }

  get incarnation (): string | undefined {
    return this.#incarnation
  }

  get unreachable (): string | undefined {
    return this.#unreachable
  }

  get origin (): Origin {
    return { queue: this.#name, generation: undefined, database: this.#database }
  }

  /** A consumer sends the UUID of its database before anything else, or as soon as it has opened that. */
  async readOrigin (): Promise<Origin> {
    this.#requireSocket()
    return this.origin
  }

  override get storeFailure (): StoreFailure | undefined {
    return this.#storeFailure
  }

  async start (): Promise<void> {
    this.#connect()
  }

  async push (elements: readonly Buffer[], incarnation: string, hurry = false): Promise<'pushed' | 'moved'> {
    const socket = this.#requireSocket()
    if (this.#incarnation !== incarnation) return 'moved'
    const id = this.#nextId()
    // No timeout: a consumer whose disk is full answers when it can, and one that dies closes the socket.
    await new Promise<void>((resolve, reject) => {
      this.#pushes.set(id, { resolve, reject })
      writeFrame(socket, hurry ? frame.hurriedPush : frame.push, uint32(id), ...packElements(elements))
    })
    return 'pushed'
  }

  async pollProgress (producer: string): Promise<Polled> {
    return await this.#poll(producer)
  }

  async requestResults (request: ResultRequest): Promise<void> {
    writeFrame(this.#requireSocket(), frame.resultRequest, Buffer.from(JSON.stringify(request)))
  }

  /** None: a push is answered when its batches are committed. */
  async missing (): Promise<ReadonlySet<number>> {
    this.#requireSocket()
    return new Set()
  }

  async check (): Promise<string | undefined> {
    await this.#poll('')
    return this.#storeFailure?.moved === true ? this.#storeFailure.reason : undefined
  }

  async length (): Promise<number> {
    return (await this.#poll('')).length
  }

  async close (): Promise<void> {
    this.#closed = true
    this.#socket?.destroy()
  }

  #connect (): void {
    try {
      requireOwnDirectory(dirname(this.#path))
    } catch (error) {
      this.#unreachable = reasonOf(error)
      this.#lost()
      return
    }
    const socket = connect(this.#path)
    this.#socket = socket
    readFrames(socket, (type, payload) => this.#received(type, payload))
    socket.on('error', (error) => { this.#unreachable = error.message })
    socket.on('close', () => this.#lost())
  }

  #requireSocket (): Socket {
    if (this.#socket !== undefined && this.#incarnation !== undefined) return this.#socket
    throw new QueueUnavailableError(this.#unreachable ?? 'not connected')
  }

  async #poll (producer: string): Promise<Polled> {
    const socket = this.#requireSocket()
    const id = this.#nextId()
    let timer: NodeJS.Timeout | undefined
    try {
      return await new Promise<Polled>((resolve, reject) => {
        this.#polls.set(id, { resolve, reject })
        timer = setTimeout(() => {
          this.#unreachable ??= 'the consumer does not answer'
          reject(new QueueUnavailableError('the consumer does not answer'))
        }, pollTimeoutMs)
        writeFrame(socket, frame.poll, uint32(id), Buffer.from(producer))
      })
    } finally {
      clearTimeout(timer)
      this.#polls.delete(id)
    }
  }

  #received (type: number, payload: Buffer): void {
    if (type === frame.database) {
      this.#database = payload.toString()
    } else if (type === frame.hello) {
      this.#incarnation = payload.toString()
      this.#unreachable = undefined
      this.emit('incarnation')
    } else if (type === frame.pushed) {
      const id = payload.readUInt32BE()
      this.#pushes.get(id)?.resolve()
      this.#pushes.delete(id)
    } else if (type === frame.progress) {
      const progress: Record<string, unknown> = JSON.parse(payload.toString())
      for (const [producer, text] of Object.entries(progress)) {
        const stored = parseProgress(String(text))
        if (stored !== undefined) this.emit('progress', producer, stored)
      }
    } else if (type === frame.trouble) {
      const trouble = parseTrouble(payload.toString())
      const since = this.#storeFailure?.since ?? performance.now()
      this.#storeFailure = trouble === undefined ? undefined : { ...trouble, since }
    } else if (type === frame.polled) {
      this.#unreachable = undefined
      const stored = payload.length > 8 ? parseProgress(payload.toString('utf8', 8)) : undefined
      this.#polls.get(payload.readUInt32BE())?.resolve({ length: payload.readUInt32BE(4), stored })
    }
  }

  #lost (): void {
    this.#incarnation = undefined
    this.#storeFailure = undefined
    this.#unreachable ??= 'the consumer closed the connection'
    const error = new QueueUnavailableError(this.#unreachable)
    for (const { reject } of [...this.#pushes.values(), ...this.#polls.values()]) reject(error)
    this.#pushes.clear()
    this.#polls.clear()
    if (!this.#closed) setTimeout(() => { if (!this.#closed) this.#connect() }, reconnectMs)
  }

  #nextId (): number {
    this.#id = (this.#id + 1) >>> 0
    return this.#id
  }
}
