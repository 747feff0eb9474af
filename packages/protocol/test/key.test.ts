// The rule for keys that come in as text, and for 64-bit integers.
import { expect, test } from 'vitest'
import { int64Max, int64Min, parseInt64 } from '../src/int64.ts'
import { keyProblem } from '../src/key.ts'

test.each(['a', ' ', '€'.repeat(85), 'x'.repeat(256), '\u0080', '😀'])('%j is a key', (key) => {
  expect(keyProblem(key)).toBeUndefined()
})

test.each([
  ['', 'is empty'],
  ['x'.repeat(257), 'has 257 bytes; at most 256 are allowed'],
  ['€'.repeat(86), 'has 258 bytes; at most 256 are allowed'],
  ['a\u0000', 'has a control character'],
  ['\u007f', 'has a control character'],
  ['\ud800', 'is not UTF-8'],
])('%j is none, and it is said why', (key, problem) => {
  expect(keyProblem(key)).toBe(problem)
})

test('a 64-bit integer is read with all of its digits', () => {
  for (const value of [0n, -1n, int64Max, int64Min]) expect(parseInt64(String(value))).toBe(value)
  expect(parseInt64('-007')).toBe(-7n)
  for (const text of ['', '-', '+1', '1.0', '1e3', ' 1', '0x1', String(int64Max + 1n), String(int64Min - 1n)]) {
    expect(parseInt64(text), text).toBeUndefined()
  }
})
