// Schemas of settings: what a part of Gearbox that brings its own rows can rely on.
import { describe, expect, expectTypeOf, test } from 'vitest'
import { coreSettings, variables } from '../src/config.ts'
import { FatalError } from '../src/errors.ts'
import { describeSettings, mergeSettings, readSettings, variableName } from '../src/settings/schema.ts'
import { integer, list, oneOf, optional, path } from '../src/settings/setting.ts'

const hooks = {
  hookUrl: optional(path('', 'where each total is posted')),
  hookTimeoutMs: integer({ fallback: 2000, range: [1, 60_000], unit: 'ms', about: 'one post may take' }),
  hookKeys: list('comma-separated keys that are posted', (text) => text.toUpperCase()),
}
const merged = mergeSettings(coreSettings, hooks, { hookOrder: oneOf('key', ['key', 'total'], 'order of posts') })

describe('a merged schema', () => {
  test('has the values of all its rows, with their types', () => {
    const values = readSettings(merged, { PORT: '81', HOOK_TIMEOUT_MS: '5', HOOK_KEYS: 'a, b' })
    expect(values).toMatchObject({
      port: 81,
      hookUrl: undefined,
      hookTimeoutMs: 5,
      hookKeys: ['A', 'B'],
      hookOrder: 'key',
    })
    expectTypeOf(values.port).toEqualTypeOf<number>()
    expectTypeOf(values.hookUrl).toEqualTypeOf<string | undefined>()
    expectTypeOf(values.hookTimeoutMs).toEqualTypeOf<number>()
    expectTypeOf(values.hookKeys).toEqualTypeOf<readonly string[]>()
    expectTypeOf(values.hookOrder).toEqualTypeOf<'key' | 'total'>()
  })

  test('names the problems of all its rows at once', () => {
    const env = { PORT: 'x', HOOK_TIMEOUT_MS: '0' }
    const read = (): unknown => readSettings(merged, env, { required: { HOOK_URL: 'it has no default' } })
    expect(read).toThrow(FatalError)
    expect(read).toThrow(/^3 problems in the environment/)
    expect(read).toThrow(/\n {2}PORT must .*\n {2}HOOK_URL must be set: it has no default\n {2}HOOK_TIMEOUT_MS must /)
  })

  test('has a line for each of its rows in --help, in their order', () => {
    const lines = describeSettings(merged).split('\n')
    expect(lines).toHaveLength(variables.length + 4)
    expect(lines.slice(-4).map((line) => line.trim().split(/ {2,}/))).toEqual([
      ['HOOK_URL', 'unset', 'where each total is posted'],
      ['HOOK_TIMEOUT_MS', '2000', 'ms one post may take'],
      ['HOOK_KEYS', 'unset', 'comma-separated keys that are posted'],
      ['HOOK_ORDER', 'key', 'order of posts (key, total)'],
    ])
    expect(describeSettings(merged, ['hookOrder', 'port']).split('\n')).toEqual([
      expect.stringMatching(/^ {2}PORT {8}3333 {2}port/), expect.stringMatching(/^ {2}HOOK_ORDER {2}key {3}order/),
    ])
  })

  test('refuses a second row for one variable, also under another name', () => {
    for (const row of [{ drainMs: coreSettings.drainMs }, { drain_ms: coreSettings.drainMs }]) {
      expect(() => mergeSettings(coreSettings, row)).toThrow('DRAIN_MS is the variable of two settings')
    }
  })
})

test('a variable is named after what it counts', () => {
  const names = Object.keys(coreSettings).map(variableName)
  const endings = [[/_MS$/, 'ms'], [/_S$/, 's'], [/_BYTES(_MAX)?$/, 'bytes'], [/_HOURS$/, 'hours']] as const
  const expected = names.map((name) => endings.find(([ending]) => ending.test(name))?.[1])
  expect(Object.values(coreSettings).map((setting) => 'unit' in setting ? setting.unit : undefined)).toEqual(expected)
})
