// Frames on a stream whose pieces fall anywhere.
import { once } from 'node:events'
import { connect, createServer, Socket } from 'node:net'
import { join } from 'node:path'
import fc from 'fast-check'
import { expect, onTestFinished, test } from 'vitest'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { packElements, readFrames, uint32, unpackElements, writeFrame } from '../src/embedded/frames.ts'
import { seed } from '@gearbox/test-kit/seeds.ts'

interface Frame { readonly type: number, readonly payload: Buffer }

const bytes = fc.uint8Array({ maxLength: 40 }).map((array) => Buffer.from(array))
const frames = fc.array(fc.record({ type: fc.nat({ max: 255 }), payload: bytes }), { maxLength: 6 })

function encode ({ type, payload }: Frame): Buffer {
  return Buffer.concat([uint32(payload.length), Buffer.of(type), payload])
}

test('frames come out whole and in order, however the stream is cut', () => {
  fc.assert(fc.property(frames, fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1 }), (sent, sizes) => {
    const stream = Buffer.concat(sent.map(encode))
    const socket = new Socket()
    const read: Frame[] = []
    readFrames(socket, (type, payload) => read.push({ type, payload: Buffer.from(payload) }))
    for (let at = 0, i = 0; at < stream.length; i++) {
      const size = sizes[i % sizes.length]!
      socket.emit('data', stream.subarray(at, at + size))
      at += size
    }
    socket.destroy()
    expect(read).toEqual(sent)
  }), { seed })
})

test('elements come out as they were packed', () => {
  fc.assert(fc.property(fc.array(bytes), (elements) => {
    expect(unpackElements(Buffer.concat(packElements(elements)))).toEqual(elements)
  }), { seed })
})

async function socketPair (): Promise<[Socket, Socket]> {
  const path = join(temporaryDir(), 'socket')
  const server = createServer()
  server.listen(path)
  await once(server, 'listening')
  const client = connect(path)
  const [accepted] = await once(server, 'connection')
  if (!(accepted instanceof Socket)) throw new Error('no socket')
  onTestFinished(() => {
    client.destroy()
    accepted.destroy()
    server.close()
  })
  return [client, accepted]
}

test('a frame of several MiB arrives over a real socket, and one after it', async () => {
  const [client, accepted] = await socketPair()
  const large = Buffer.alloc(5 * 1024 * 1024, 'x')
  const received = new Promise<Frame[]>((resolve) => {
    const all: Frame[] = []
    readFrames(accepted, (type, payload) => {
      if (all.push({ type, payload: Buffer.from(payload) }) === 2) {
        resolve(all)
      }
    })
  })
  writeFrame(client, 7, large.subarray(0, 10), large.subarray(10))
  writeFrame(client, 8)
  const [first, second] = await received
  expect(first?.type).toBe(7)
  expect(first?.payload.equals(large)).toBe(true)
  expect(second).toEqual({ type: 8, payload: Buffer.alloc(0) })
})

test('something that is no frame ends the connection', async () => {
  const [client, accepted] = await socketPair()
  const closed = new Promise((resolve) => accepted.once('error', () => {}).once('close', resolve))
  readFrames(accepted, () => { throw new Error('read a frame') })
  client.write('GET / HTTP/1.1\r\n\r\n')
  await closed
})
