// The consumer's end of the embedded queue: it owns the socket that the workers of the same `npm start` connect to.
// What is waiting lives in this process's memory only, and so a push is answered when it is committed and not before.
import { randomUUID } from 'node:crypto'
import { rmSync, statSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { dirname } from 'node:path'
import { frame, readFrames, uint32, unpackElements, writeFrame } from './frames.ts'
import type { Owner } from '@gearbox/protocol/owner.ts'
import { encodeProgress, type Progress, type ResultRequest } from '@gearbox/protocol/progress.ts'
import type { StoreTrouble } from '@gearbox/protocol/trouble.ts'
import { runBytesMax, runElementsMax, type ConsumerQueue } from '../queue.ts'
import { makeSocketDirectory } from './socket-directory.ts'
import { AutoResetEvent } from '../auto-reset-event.ts'
import { ResultRequests } from '../result-requests.ts'

/**
 * How often the socket's path is checked. Programs that tidy up the temporary directory remove what looks old, and the
 * next worker to start would find nothing.
 */
const pathCheckMs = 500

/** A worker's push, until all of its elements are handled. */
interface Push {
  readonly socket: Socket
  readonly id: number
  waiting: number
}

/**
 * Listens on the socket, keeps what workers push until it is acknowledged, and answers them.
 *
 * Made; `start` leads to listening. Listening: the path is checked, and where the socket's file is gone another server
 * listens there, while connected workers stay. `close` ends it for good, with all connections.
 * Unbound until `bind` names the database, which every worker is then sent.
 */
export class EmbeddedConsumerQueue implements ConsumerQueue {
  readonly name = 'the embedded queue'
  readonly durable = true
  readonly keepsBatches = false
  readonly #path: string
  readonly #incarnation = randomUUID()
  #server: Server
  /** Of the socket's file. */
  #inode = noInode
  #listening = false
  #pathCheck: NodeJS.Timeout | undefined
  readonly #workers = new Set<Socket>()
  readonly #pushed = new AutoResetEvent()
  /** What was pushed since the last take asks for its commit at once. */
  readonly #hurried = new AutoResetEvent()
  readonly #requests = new ResultRequests()
  readonly #stored = new Map<string, string>()
  #entries: Array<{ readonly element: Buffer, readonly push: Push }> = []
  #trouble: StoreTrouble | undefined
  #onLastGone: (() => void) | undefined
  /** UUID of the database that this consumer stores in. */
  #database: string | undefined

  /** @param path of the socket, at most 104 bytes: what the shortest systems allow */
  constructor (path: string) {
    this.#path = path
    this.#server = this.#makeServer()
  }

  /** It is in this process. */
  readonly unreachable = undefined

  get length (): number {
    return this.#entries.length
  }

  /** Listens, and again whenever the socket's file is gone. A dead consumer's file is replaced. @throws Error */
  async start (): Promise<void> {
    await this.#listen()
    this.#pathCheck = setInterval(() => { this.#checkPath().catch(() => {}) }, pathCheckMs)
    this.#pathCheck.unref()
  }

  /** Nobody else can own the queue of this process, so there is never another owner. */
  async readOwner (): Promise<{ owner: undefined, stored: ReadonlyMap<string, Progress> }> {
    return { owner: undefined, stored: new Map() }
  }

  async bind (_expected: Owner | undefined, { uuid }: Owner): Promise<boolean> {
    this.#database = uuid
    for (const worker of this.#workers) if (worker.writable) writeFrame(worker, frame.database, Buffer.from(uuid))
    return true
  }

  async forgetProgress (): Promise<void> {
    this.#stored.clear()
  }

  async take (): Promise<Buffer[]> {
    const run: Buffer[] = []
    let bytes = 0
    const hurried = this.#hurried.reset()
    for (const { element } of this.#entries) {
      bytes += element.length
      if (run.length === runElementsMax || (run.length > 0 && bytes > runBytesMax)) break
      run.push(element)
    }
    if (hurried && run.length < this.#entries.length) this.#hurried.up()
    return run
  }

  async acknowledge (elements: readonly Buffer[]): Promise<void> {
    let handled = 0
    while (handled < elements.length && this.#entries[handled]?.element.equals(elements[handled]!) === true) handled++
    for (const { push } of this.#entries.splice(0, handled)) {
      push.waiting--
      if (push.waiting === 0 && push.socket.writable) writeFrame(push.socket, frame.pushed, uint32(push.id))
    }
  }

  async reportProgress (stored: ReadonlyMap<string, Progress>): Promise<void> {
    if (stored.size === 0) return
    const progress = Object.fromEntries(Array.from(stored, ([producer, value]) => [producer, encodeProgress(value)]))
    for (const [producer, { results, ...value }] of stored) {
      this.#stored.set(producer, results === undefined ? progress[producer]! : encodeProgress(value))
    }
    const payload = Buffer.from(JSON.stringify(progress))
    for (const worker of this.#workers) if (worker.writable) writeFrame(worker, frame.progress, payload)
  }

  async forget (producers: readonly string[]): Promise<void> {
    for (const producer of producers) this.#stored.delete(producer)
  }

  async reportTrouble (trouble: StoreTrouble | undefined): Promise<void> {
    if (trouble === this.#trouble) return
    this.#trouble = trouble
    for (const worker of this.#workers) if (worker.writable) this.#sendTrouble(worker)
  }

  async waitForPush (ms: number, signal: AbortSignal): Promise<void> {
    if (this.#entries.length === 0) await this.#pushed.wait(ms, signal)
  }

  async waitForHurry (ms: number, signal: AbortSignal): Promise<void> {
    await this.#hurried.wait(ms, signal)
  }

  takeResultRequests (): ResultRequest[] {
    return this.#requests.take()
  }

  /** Resolves when no worker is connected: after the parent's death the consumer stays for its workers' last flush. */
  async lastWorkerGone (): Promise<void> {
    if (this.#workers.size > 0) await new Promise<void>((resolve) => { this.#onLastGone = resolve })
  }

  async close (): Promise<void> {
    clearInterval(this.#pathCheck)
    const closed = new Promise((resolve) => this.#server.close(resolve))
    for (const worker of this.#workers) worker.destroy()
    await closed
    rmSync(this.#path, { force: true })
  }

  #makeServer (): Server {
    return createServer((socket) => this.#welcome(socket))
  }

  async #listen (): Promise<void> {
    this.#inode = noInode
    this.#listening = true
    try {
      await this.#listenAtPath()
    } finally {
      this.#listening = false
    }
  }

  async #listenAtPath (): Promise<void> {
    makeSocketDirectory(dirname(this.#path))
    rmSync(this.#path, { recursive: true, force: true })
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(this.#path, resolve)
    })
    this.#inode = statSync(this.#path).ino
  }

  /** Connected workers do not need the path, and stay connected. */
  async #checkPath (): Promise<void> {
    if (this.#listening || inodeOf(this.#path) === this.#inode) return
    const before = this.#server
    this.#server = this.#makeServer()
    // It removes the path that it listened on, so it goes first.
    before.close()
    await this.#listen()
  }

  #welcome (socket: Socket): void {
    this.#workers.add(socket)
    socket.on('error', () => {})
    socket.on('close', () => {
      this.#workers.delete(socket)
      if (this.#workers.size === 0) this.#onLastGone?.()
    })
    readFrames(socket, (type, payload) => this.#received(socket, type, payload))
    if (this.#database !== undefined) writeFrame(socket, frame.database, Buffer.from(this.#database))
    writeFrame(socket, frame.hello, Buffer.from(this.#incarnation))
    if (this.#trouble !== undefined) this.#sendTrouble(socket)
  }

  #sendTrouble (socket: Socket): void {
    writeFrame(socket, frame.trouble, Buffer.from(this.#trouble === undefined ? '' : JSON.stringify(this.#trouble)))
  }

  #received (socket: Socket, type: number, payload: Buffer): void {
    if (type === frame.resultRequest) {
      this.#requests.add(payload.toString())
      this.#pushed.up()
      return
    }
    const id = payload.readUInt32BE()
    if (type === frame.push || type === frame.hurriedPush) {
      const elements = unpackElements(payload.subarray(4))
      const push: Push = { socket, id, waiting: elements.length }
      for (const element of elements) this.#entries.push({ element, push })
      if (type === frame.hurriedPush) this.#hurried.up()
      this.#pushed.up()
    } else if (type === frame.poll) {
      const stored = this.#stored.get(payload.toString('latin1', 4)) ?? ''
      writeFrame(socket, frame.polled, uint32(id), uint32(this.#entries.length), Buffer.from(stored))
    }
  }
}

/** Of no file. */
const noInode = -1

function inodeOf (path: string): number | undefined {
  try {
    return statSync(path).ino
  } catch {
    return undefined
  }
}
