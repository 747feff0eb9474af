// The consumer's end of the embedded queue: it owns the socket that the workers of the same `npm start` connect to.
// What is waiting lives in this process's memory only, and so a push is answered when it is committed and not before.
import { randomUUID } from 'node:crypto'
import { rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { frame, readFrames, uint32, unpackElements, writeFrame } from './frames.ts'
import { runBytesMax, runElementsMax, type ConsumerQueue, type Owner, type Stored } from './queue.ts'
import { Wake } from './wake.ts'

interface Push {
  readonly socket: Socket
  readonly id: number
  waiting: number
}

export class EmbeddedConsumerQueue implements ConsumerQueue {
  readonly name = 'the embedded queue'
  readonly durable = true
  readonly #path: string
  readonly #incarnation = randomUUID()
  readonly #server: Server
  readonly #workers = new Set<Socket>()
  readonly #wake = new Wake()
  readonly #stored = new Map<string, string>()
  #entries: Array<{ readonly element: Buffer, readonly push: Push }> = []
  #onLastGone: (() => void) | undefined
  /** UUID of the database that this consumer stores in. */
  #database: string | undefined

  /** @param path of the socket, at most 104 bytes: what the shortest systems allow */
  constructor (path: string) {
    this.#path = path
    this.#server = createServer((socket) => this.#welcome(socket))
  }

  /** It is in this process. */
  readonly unreachable = undefined

  get length (): number {
    return this.#entries.length
  }

  /** Listens. A socket file that a dead consumer left is replaced. */
  async start (): Promise<void> {
    rmSync(this.#path, { force: true })
    await new Promise<void>((resolve, reject) => {
      this.#server.once('error', reject)
      this.#server.listen(this.#path, resolve)
    })
  }

  /** Nobody else can own the queue of this process, so there is never another owner to find. */
  async readOwner (): Promise<{ owner: undefined, stored: ReadonlyMap<string, Stored> }> {
    return { owner: undefined, stored: new Map() }
  }

  async bind (_expected: Owner | undefined, { uuid }: Owner): Promise<boolean> {
    this.#database = uuid
    for (const worker of this.#workers) if (worker.writable) writeFrame(worker, frame.database, Buffer.from(uuid))
    return true
  }

  async forgetStored (): Promise<void> {
    this.#stored.clear()
  }

  async take (): Promise<Buffer[]> {
    const run: Buffer[] = []
    let bytes = 0
    for (const { element } of this.#entries) {
      bytes += element.length
      if (run.length === runElementsMax || (run.length > 0 && bytes > runBytesMax)) break
      run.push(element)
    }
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

  async tell (stored: ReadonlyMap<string, Stored>): Promise<void> {
    if (stored.size === 0) return
    const told = Object.fromEntries(Array.from(stored, ([producer, value]) => [producer, JSON.stringify(value)]))
    for (const [producer, text] of Object.entries(told)) this.#stored.set(producer, text)
    const payload = Buffer.from(JSON.stringify(told))
    for (const worker of this.#workers) if (worker.writable) writeFrame(worker, frame.told, payload)
  }

  async forget (producers: readonly string[]): Promise<void> {
    for (const producer of producers) this.#stored.delete(producer)
  }

  async waitForPush (ms: number, signal: AbortSignal): Promise<void> {
    if (this.#entries.length === 0) await this.#wake.wait(ms, signal)
  }

  /** Resolves when no worker is connected: after the parent's death the consumer stays for its workers' last flush. */
  async lastWorkerGone (): Promise<void> {
    if (this.#workers.size > 0) await new Promise<void>((resolve) => { this.#onLastGone = resolve })
  }

  async close (): Promise<void> {
    const closed = new Promise((resolve) => this.#server.close(resolve))
    for (const worker of this.#workers) worker.destroy()
    await closed
    rmSync(this.#path, { force: true })
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
  }

  #received (socket: Socket, type: number, payload: Buffer): void {
    const id = payload.readUInt32BE()
    if (type === frame.push) {
      const elements = unpackElements(payload.subarray(4))
      const push: Push = { socket, id, waiting: elements.length }
      for (const element of elements) this.#entries.push({ element, push })
      this.#wake.up()
    } else if (type === frame.ask) {
      const stored = this.#stored.get(payload.toString('latin1', 4)) ?? ''
      writeFrame(socket, frame.answer, uint32(id), uint32(this.#entries.length), Buffer.from(stored))
    }
  }
}
