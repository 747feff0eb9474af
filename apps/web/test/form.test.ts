// Bodies to increments, or to what is wrong with them.
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { echo } from '@gearbox/runtime/http/echo.ts'
import { RequestError } from '@gearbox/runtime/http/errors.ts'
import { parseForm } from '../src/increment/form.ts'
import { acceptedRows, longEcho, refusedRows } from './fixtures/odd-bodies.ts'

/** What lies around a body in a socket's buffer, and would change it if it were read. */
const around = Buffer.from('9&=-')

function parse (body: Buffer, pairsOnly = false): Array<[string, bigint]> {
  const bytes = Buffer.concat([around, body, around])
  return Array.from(parseForm(bytes, { pairsMax: 1000, pairsOnly }, around.length, around.length + body.length),
    ({ key, delta }) => [key, BigInt(delta)])
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

describe('the message about a value shows it', () => {
  const whole = 'must be a whole number such as 1 or -20, in the digits 0 to 9'
  const lineEnd = `ends with a line end (curl --data-binary and files add one); it ${whole}`
  const blank = (where: string): string => `${where} with white space; it ${whole}`
  const plus = (where: string): string => `${where} with white space ("+" means a space in a form); it ${whole}`
  const range = 'must be from -9223372036854775808 to 9223372036854775807 (64 bits)'

  test.each([
    ['b=1\n', '"1\\n"', lineEnd],
    ['b=1\r\n', '"1\\r\\n"', lineEnd],
    ['b=1%0A', '"1\\n"', lineEnd],
    ['b=\n', '"\\n"', lineEnd],
    ['b=1\nc=2\n', '"1\\nc=2\\n"', `has a line end in it (pairs are joined by "&", not by lines); it ${whole}`],
    ['b=+1', '" 1"', plus('begins')],
    ['b=1+', '"1 "', plus('ends')],
    ['b= 1', '" 1"', blank('begins')],
    ['b=%201', '" 1"', blank('begins')],
    ['b=1\t', '"1\\t"', blank('ends')],
    ['b=\u00A01', '"\\u00a01"', blank('begins')],
    ['b=%2B1', '"+1"', `begins with a "+" (leave it out); it ${whole}`],
    ['b=1;c=2', '"1;c=2"', `has a ";" in it (pairs are joined by "&"); it ${whole}`],
    ['b=1.0', '"1.0"', whole],
    ['b=1e3', '"1e3"', whole],
    ['b=0x10', '"0x10"', whole],
    ['b="1"', '"\\"1\\""', whole],
    ['b=١٢', '"١٢"', whole],
    ['b=1%00', '"1\\u0000"', whole],
    ['b=1\x7f', '"1\\u007f"', whole],
    ['b=\u202E1', '"\\u202e1"', whole],
    ['b=1\u200B', '"1\\u200b"', whole],
    ['b=1\u{E0031}', '"1\\u{e0031}"', whole],
    ['b=\u03011', '"\\u03011"', whole],
    ['b=%FF1', '"\\xff1"', whole],
    ['b=%zz', '"%zz"', 'has a "%" that is not followed by two hex digits'],
    ['b=9223372036854775808', '"9223372036854775808"', range],
    [`b=${'9'.repeat(100)}`, `"${'9'.repeat(62)}…"`, range],
  ])('%j', (body, value, why) => {
    expect(refusal(Buffer.from(`a=1&${body}`)).message).toBe(`pair 2 ("b"): its value ${value} ${why}`)
  })

  test('as sent where it is not UTF-8', () => {
    expect(refusal(Buffer.from([0x62, 0x3d, 0xc3, 0xa9, 0xc3, 0x31])).message)
      .toBe(`pair 1 ("b"): its value "é\\xc31" ${whole}`)
    expect(refusal(Buffer.from([0xff, 0x3d, 0x31])).message).toBe('pair 1 ("\\xff"): has a key that is not UTF-8')
  })

  test('with its key in 64 characters at most', () => {
    const shown = (name: string, value: string): string[] => {
      const { message } = refusal(Buffer.from(`${encodeURIComponent(name)}=${encodeURIComponent(value)}`))
      const [, shownName, shownValue] = /^pair 1 \("(.*)"\): its value "(.*)" must be a whole/.exec(message) ?? []
      return [shownName!, shownValue!]
    }
    expect(shown('k'.repeat(32), 'v'.repeat(32))).toEqual(['k'.repeat(32), 'v'.repeat(32)])
    expect(shown('k'.repeat(33), 'v'.repeat(33))).toEqual([`${'k'.repeat(31)}…`, `${'v'.repeat(31)}…`])
    expect(shown('k'.repeat(200), 'x')).toEqual([`${'k'.repeat(62)}…`, 'x'])
    expect(shown('k', 'v'.repeat(200))).toEqual(['k', `${'v'.repeat(62)}…`])
    for (const [name, value] of [['🚲'.repeat(64), '"'.repeat(200)], ['\u202E'.repeat(80), '\u200B'.repeat(80)],
      ['"'.repeat(33), '🚲'.repeat(60)]] as const) {
      expect(Array.from(shown(name, value).join('')).length).toBeLessThanOrEqual(64)
    }
  })
})

const hasControl = (text: string): boolean =>
  Array.from(text).some((character) => character < ' ' || character === '\x7f')

/** A character of a key: any but the control characters. */
const character = fc.string({ unit: 'binary', minLength: 1, maxLength: 1 }).filter((text) => !hasControl(text))
const key = fc.array(character,
  { minLength: 1, maxLength: 64 }).map((characters) => characters.join('')).filter((text) => text.isWellFormed())
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
    const pair = fc.record({
      key,
      value,
      zeros: fc.nat({ max: 30 }),
      choices: fc.array(fc.nat({ max: 2 }), { minLength: 1, maxLength: 20 }),
    })
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
    const piece = fc.constantFrom('a', '=', '=', '&', '%', '%2', '%00', '%c3', '%A9', '+', '-', '1', '9'.repeat(19),
      'key', 'value', '"', '🚲'.repeat(70), '\0', '\x7f', 'k'.repeat(100))
    const body = fc.oneof(fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
      fc.array(piece, { maxLength: 30, size: 'max' }).map((pieces) => Buffer.from(pieces.join(''))))
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
    fc.assert(fc.property(fc.string({
      unit: fc.oneof(fc.string({ unit: 'binary', minLength: 1, maxLength: 1 }),
        fc.constantFrom('🚲', '"', '\\', '\n', '\0', '\x7f', 'é', 'k', '\u202E', '\u200B', '\uFEFF', '\u2028',
          '\u0301')),
      maxLength: 200,
      size: 'max',
    }), (text) => {
      const shown = echo(text)
      expect(Array.from(shown).length).toBeLessThanOrEqual(66)
      expect(shown).toMatch(/^"[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]*"$/u)
      expect(shown.isWellFormed()).toBe(true)
    }), { numRuns: 2000 })
  })
})
