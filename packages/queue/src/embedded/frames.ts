// Frames on the embedded queue's socket: four bytes of length, one of type, then the payload.
import type { Socket } from 'node:net'

/** The types of frames, each with who sends it and its payload. */
export const frame = {
  /** consumer → worker: the consumer's incarnation */
  hello: 1,
  /** worker → consumer: id, then each element with its length before it */
  push: 2,
  /** consumer → worker: id; what was pushed under it is committed */
  pushed: 3,
  /** consumer → worker: JSON, producer → its progress */
  progress: 4,
  /** worker → consumer: id, then the producer, or nothing to poll the length only */
  poll: 5,
  /** consumer → worker: id, queue length, then the producer's progress as JSON, or nothing */
  polled: 6,
  /** consumer → worker: UUID of the database that the queue belongs to, as soon as that is known */
  database: 7,
  /** consumer → worker: JSON, why nothing can be stored; nothing: it can be again */
  trouble: 8,
  /** worker → consumer: as `push`; what is pushed asks for its commit at once */
  hurriedPush: 9,
  /** worker → consumer: JSON, a request about outcomes of entries */
  resultRequest: 10,
} as const

const headBytes = 5

/** Bytes of the largest frame that is read: a replay's group of batches, or one largest batch, with room to spare. */
const frameBytesMax = 64 * 1024 * 1024

/** Writes one frame, whose payload is the parts one after the other. */
export function writeFrame (socket: Socket, type: number, ...parts: readonly Buffer[]): void {
  const head = Buffer.allocUnsafe(headBytes)
  head.writeUInt32BE(parts.reduce((bytes, part) => bytes + part.length, 0))
  head.writeUInt8(type, 4)
  socket.cork()
  socket.write(head)
  for (const part of parts) socket.write(part)
  socket.uncork()
}

/** A number as four bytes, most significant first. */
export function uint32 (value: number): Buffer {
  const bytes = Buffer.allocUnsafe(4)
  bytes.writeUInt32BE(value)
  return bytes
}

/** Calls `read` for each whole frame that arrives. Something that is no frame ends the connection. */
export function readFrames (socket: Socket, read: (type: number, payload: Buffer) => void): void {
  let chunks: Buffer[] = []
  let bytes = 0
  let needed = headBytes
  socket.on('data', (chunk: Buffer) => {
    chunks.push(chunk)
    bytes += chunk.length
    while (bytes >= needed) {
      const all = chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks, bytes)
      const length = all.readUInt32BE()
      if (length > frameBytesMax) {
        socket.destroy(new Error(`a frame of ${length} bytes`))
        return
      }
      const end = headBytes + length
      if (bytes < end) {
        chunks = [all]
        needed = end
        return
      }
      try {
        read(all.readUInt8(4), all.subarray(headBytes, end))
      } catch (error) {
        socket.destroy(error instanceof Error ? error : new Error(String(error)))
        return
      }
      chunks = [all.subarray(end)]
      bytes -= end
      needed = headBytes
    }
  })
}

/** A payload of elements: each with its length in four bytes before it. */
export function packElements (elements: readonly Buffer[]): Buffer[] {
  return elements.flatMap((element) => [uint32(element.length), element])
}

/** The reverse of packElements. The elements share the payload's memory. */
export function unpackElements (payload: Buffer): Buffer[] {
  const elements: Buffer[] = []
  for (let at = 0; at < payload.length;) {
    const end = at + 4 + payload.readUInt32BE(at)
    if (end > payload.length) {
      throw new RangeError(`an element of ${end - at - 4} bytes in a frame of ${payload.length}`)
    }
    elements.push(payload.subarray(at + 4, end))
    at = end
  }
  return elements
}
