// As much of PostgreSQL's protocol (version 3) as the bench needs, since no package for it is installed: connections
// over the server's Unix socket, which trusts whoever reaches it, and statements that each connection prepares once.
import { connect, type Socket } from 'node:net'

const user = 'bench'

interface Waiter {
  readonly statement: string
  readonly resolve: (value: string | undefined) => void
  readonly reject: (error: Error) => void
}

function message (type: string, ...parts: ReadonlyArray<string | number>): Buffer {
  const body = Buffer.concat(parts.map((part) => typeof part === 'string' ? Buffer.from(`${part}\0`) : word(part, 2)))
  return Buffer.concat([Buffer.from(type), word(body.length + 4, 4), body])
}

function word (value: number, bytes: 2 | 4): Buffer {
  const buffer = Buffer.alloc(bytes)
  buffer.writeIntBE(value, 0, bytes)
  return buffer
}

// Execute: all rows of the unnamed portal.
const executeAndSync = Buffer.concat([
  Buffer.from('E'), word(9, 4), Buffer.from('\0'), word(0, 4), Buffer.from('S'), word(4, 4),
])

/** One connection: it runs one statement at a time. */
class Connection {
  readonly #socket: Socket
  readonly #onIdle: (connection: Connection) => void
  readonly #binds = new Map<string, Buffer>()
  #rest: Buffer = Buffer.alloc(0)
  #current: Waiter | undefined
  #value: string | undefined
  #error: Error | undefined

  constructor (path: string, onIdle: (connection: Connection) => void) {
    this.#onIdle = onIdle
    this.#socket = connect(path)
    const parameters = Buffer.from(`user\0${user}\0database\0postgres\0\0`)
    this.#socket.write(Buffer.concat([word(parameters.length + 8, 4), word(3 << 16, 4), parameters]))
    this.#socket.on('data', (chunk: Buffer) => { this.#read(chunk) })
    // Without its database the peer is of no use: the bench sees it end.
    this.#socket.on('error', (error) => { throw error })
    this.#socket.on('close', () => { throw new Error('PostgreSQL closed a connection') })
  }

  run (waiter: Waiter): void {
    this.#current = waiter
    this.#value = this.#error = undefined
    let bind = this.#binds.get(waiter.statement)
    if (bind === undefined) {
      const name = `s${this.#binds.size}`
      // Portal, statement, and no parameters in no formats, with results in the default one, text.
      bind = Buffer.concat([message('B', '', name, 0, 0, 0), executeAndSync])
      this.#binds.set(waiter.statement, bind)
      this.#socket.write(Buffer.concat([message('P', name, waiter.statement, 0), bind]))
      return
    }
    this.#socket.write(bind)
  }

  #read (chunk: Buffer): void {
    let bytes = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    while (bytes.length >= 5) {
      const end = bytes.readInt32BE(1) + 1
      if (bytes.length < end) break
      this.#handle(String.fromCharCode(bytes[0]!), bytes.subarray(5, end))
      bytes = bytes.subarray(end)
    }
    this.#rest = bytes
  }

  #handle (type: string, body: Buffer): void {
    if (type === 'D') {
      // The number of columns, then the first one with its length.
      this.#value = body.toString('latin1', 6, 6 + body.readInt32BE(2))
    } else if (type === 'E') {
      this.#error = new Error(`PostgreSQL: ${body.toString().replaceAll('\0', ' ')}`)
      if (this.#current === undefined) throw this.#error
    } else if (type === 'Z') {
      const [current, error, value] = [this.#current, this.#error, this.#value]
      this.#current = undefined
      this.#onIdle(this)
      if (error === undefined) current?.resolve(value)
      else current?.reject(error)
    }
  }
}

/** Connections that share what is asked; what finds none idle waits its turn. */
export class PostgresPool {
  readonly #idle: Connection[] = []
  readonly #waiting: Waiter[] = []

  /** Resolves once the server has taken all connections. */
  static async open (path: string, size: number): Promise<PostgresPool> {
    const pool = new PostgresPool()
    await new Promise<void>((resolve) => {
      for (let i = 0; i < size; i++) {
        // eslint-disable-next-line no-new
        new Connection(path, (connection) => {
          pool.#release(connection)
          if (pool.#idle.length === size) resolve()
        })
      }
    })
    return pool
  }

  /** Runs one statement as one transaction. @returns the first column of the last row, as text */
  async query (statement: string): Promise<string | undefined> {
    return await new Promise((resolve, reject) => {
      const waiter = { statement, resolve, reject }
      const connection = this.#idle.pop()
      if (connection === undefined) this.#waiting.push(waiter)
      else connection.run(waiter)
    })
  }

  #release (connection: Connection): void {
    const waiter = this.#waiting.shift()
    if (waiter === undefined) this.#idle.push(connection)
    else connection.run(waiter)
  }
}
