// Bodies to increments, or to what is wrong with them.
import { int64Max, int64Min } from '@gearbox/queue/batch.ts'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { echo, RequestError } from '../src/errors.ts'
import { parseForm } from '../src/form.ts'
import { acceptedRows, longEcho, refusedRows } from './fixtures/odd-bodies.ts'

/** What lies around a body in a socket's buffer, and would change it if it were read. */
const around = Buffer.from('9&=-')

function parse (body: Buffer, pairsOnly = false): Array<[string, bigint]> {
  const bytes = Buffer.concat([around, body, around])
  return Array.from(parseForm(bytes, { pairsMax: 1000, pairsOnly }, around.length, around.length + body.length), ({ key, delta }) => [key, BigInt(delta)])
}

function refusal (body: Buffer, pairsOnly = false): RequestError {
  try {
    parse(body, pairsOnly)
  } catch (error) {
    if (error instanceof RequestError) return error
    throw error
  }
  throw new Error('it was accepted')
}

test.each(acceptedRows)('takes $name', ({ body, pairsOnly, increments }) => {
  expect(parse(body, pairsOnly)).toEqual(increments)
})

test.each(refusedRows)('refuses $name', ({ body, pairsOnly, status, code, message }) => {
  const error = refusal(body, pairsOnly)
  expect(error).toMatchObject({ statusCode: status, code })
  expect(error.message).toMatch(message)
  expect(error.message.isWellFormed()).toBe(true)
  expect(longEcho(error.message, body)).toBeUndefined()
})

test('as many pairs as configured are taken, and not one more', () => {
  expect(parseForm(Buffer.from('a=1&b=2'), { pairsMax: 2, pairsOnly: false })).toHaveLength(2)
  expect(() => parseForm(Buffer.from('a=1&b=2&c=3'), { pairsMax: 2, pairsOnly: false })).toThrow(/more than 2 pairs/)
})

test('a thousand and more values below 2^53 can leave 64 bits too', () => {
  const body = Buffer.from(Array.from({ length: 10_000 }, () => 'a=999999999999999').join('&'))
  expect(() => parseForm(body, { pairsMax: 10_000, pairsOnly: false })).toThrow(/for key "a" leaves 64 bits/)
})

test('a key that cannot be read is shown as it was sent', () => {
  expect(refusal(Buffer.from(`${'ключ'.repeat(40)}=1`)).message).toMatch(/^pair 1 \("(?:ключ)+.{0,3}…"\)/)
  expect(refusal(Buffer.from('ключ')).message).toMatch(/^pair 1 \("ключ"\)/)
})

const hasControl = (text: string): boolean => Array.from(text).some((character) => character < ' ' || character === '\x7f')

/** A character of a key: any but the control characters. */
const character = fc.string({ unit: 'binary', minLength: 1, maxLength: 1 }).filter((text) => !hasControl(text))
const key = fc.array(character, { minLength: 1, maxLength: 64 }).map((characters) => characters.join('')).filter((text) => text.isWellFormed())
const value = fc.oneof(fc.bigInt({ min: int64Min, max: int64Max }), fc.bigInt({ min: -100n, max: 100n }))

/** Writes a text in one of the many ways it can be written. */
function encode (text: string, choices: readonly number[]): Buffer {
  return Buffer.concat(Array.from(Buffer.from(text), (byte, i) => {
    const choice = choices[i % choices.length]!
    const mustEncode = byte === 0x25 || byte === 0x26 || byte === 0x3d || byte === 0x2b
    if (byte === 0x20 && choice === 2) return Buffer.from('+')
    if (mustEncode || choice === 1) return Buffer.from(`%${byte.toString(16).padStart(2, '0')}`)
    return Buffer.from([byte])
  }))
}

describe('whatever it is given', () => {
  test('what was encoded comes back as it was', () => {
    const pair = fc.record({ key, value, zeros: fc.nat({ max: 30 }), choices: fc.array(fc.nat({ max: 2 }), { minLength: 1, maxLength: 20 }) })
    fc.assert(fc.property(fc.array(pair, { minLength: 1, maxLength: 20 }), (pairs) => {
      const sums = new Map<string, bigint>()
      for (const { key, value } of pairs) sums.set(key, (sums.get(key) ?? 0n) + value)
      fc.pre([...sums.values()].every((sum) => sum === BigInt.asIntN(64, sum)))
      const body = pairs.map(({ key, value, zeros, choices }) => {
        const digits = `${value < 0n ? '-' : ''}${'0'.repeat(zeros)}${value < 0n ? -value : value}`
        return Buffer.concat([encode(key, choices), Buffer.from('='), encode(digits, choices)])
      }).reduce((all, piece) => Buffer.concat([all, Buffer.from('&'), piece]))
      expect(parse(body, true)).toEqual(pairs.map(({ key, value }) => [key, value]))
    }), { numRuns: 300 })
  })

  test('any bytes are taken or refused with a reason that echoes little', () => {
    const piece = fc.constantFrom('a', '=', '=', '&', '%', '%2', '%00', '%c3', '%A9', '+', '-', '1', '9'.repeat(19), 'key', 'value', '"', '🚲'.repeat(70), '\0', '\x7f', 'k'.repeat(100))
    const body = fc.oneof(fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)), fc.array(piece, { maxLength: 30, size: 'max' }).map((pieces) => Buffer.from(pieces.join(''))))
    fc.assert(fc.property(body, fc.boolean(), (body, pairsOnly) => {
      let message = ''
      try {
        for (const { key, delta } of parseForm(body, { pairsMax: 10, pairsOnly })) {
          expect(Buffer.byteLength(key)).toBeLessThanOrEqual(256)
          expect(key).not.toBe('')
          expect(hasControl(key)).toBe(false)
          expect(BigInt.asIntN(64, BigInt(delta))).toBe(BigInt(delta))
        }
      } catch (error) {
        if (!(error instanceof RequestError)) throw error
        message = error.message
      }
      expect(longEcho(message, body)).toBeUndefined()
      expect(message.isWellFormed()).toBe(true)
    }), { numRuns: 2000 })
  })

  test('an echo is short, well formed and without control characters', () => {
    fc.assert(fc.property(fc.string({ unit: fc.oneof(fc.string({ unit: 'binary', minLength: 1, maxLength: 1 }), fc.constantFrom('🚲', '"', '\\', '\n', '\0', '\x7f', 'é', 'k')), maxLength: 200, size: 'max' }), (text) => {
      const shown = echo(text)
      expect(Array.from(shown).length).toBeLessThanOrEqual(66)
      expect(shown).toMatch(/^"[^\p{Cc}]*"$/u)
      expect(shown.isWellFormed()).toBe(true)
    }), { numRuns: 2000 })
  })
})
