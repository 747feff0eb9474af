// What a plugin may be called, and which can be loaded together.
import { describe, expect, expectTypeOf, test } from 'vitest'
import { variables } from '../src/config.ts'
import { checkPlugin, checkTogether } from '../src/plugin/check.ts'
import { describeVariables } from '../src/plugin/configuration.ts'
import { defineCommand, definePlugin, integer } from '../src/plugin/plugin.ts'
import { defineCommand as defineOwn } from '../src/process/command.ts'

describe('a name', () => {
  test.each([
    'node', 'npm', 'path', 'home', 'user', 'shell', 'lang', 'pwd', 'term', 'tmp', 'ci', 'debug', 'no', 'no-color',
    'force',
    'pm2', 'kubernetes', 'sqlite', 'gearbox', 'totals', 'numbers', 'results', 'corrections', 'core', 'http', 'ssl',
    ...variables.map((variable) => variable.toLowerCase().replaceAll('_', '-')),
  ])('that claims a prefix in use is refused: %s', (name) => {
    expect(() => checkPlugin({ name })).toThrow(/the prefix [A-Z0-9]+_ is (?:Gearbox's own|other programs')/)
  })

  test.each(['', 'A', 'a_b', '1a', '-a', 'a b', 'é', 'x'.repeat(33), undefined, 1, null, {}])(
    'that is none is refused: %j', (name) => {
      expect(() => checkPlugin({ name })).toThrow(/needs a "name" of up to 32 lower-case letters, digits and dashes/)
    })

  test.each(['tickets', 'history', 'badges', 'hits', 'live', 'poll', 'my-plugin', 'x2'])(
    'that is free is: %s', (name) => {
      expect(checkPlugin({ name })).toEqual({ name })
    })
})

describe('two plugins', () => {
  test.each([['a', 'a'], ['a', 'a-b'], ['a-b', 'a']])('%s and %s are refused together', (one, other) => {
    expect(() => checkTogether([{ name: one }, { name: other }])).toThrow(/two plugins|can't be loaded together/)
  })

  test('with the same command are refused together, and with others are not', () => {
    const command = (name: string) => defineCommand({
      name, summary: '', usage: '', options: {}, settings: [], run: async () => 0,
    })
    const one = { name: 'a', commands: [command('x'), command('y')] }
    expect(() => checkTogether([one, { name: 'ab', commands: [command('y')] }]))
      .toThrow('the plugins "a" and "ab" both have a command "y"')
    expect(() => checkTogether([one, { name: 'ab', commands: [command('z')] }])).not.toThrow()
  })
})

test('the settings of a plugin have the types of their rows in each of its parts', () => {
  const plugin = definePlugin({
    name: 'poll',
    settings: { pollLimit: integer({ fallback: 1, range: [1, 2], about: 'x' }) },
    web: (_app, { settings }) => { expectTypeOf(settings.pollLimit).toEqualTypeOf<number>() },
    consumer: {
      apply: (_entry, { settings }) => {
        expectTypeOf(settings.pollLimit).toEqualTypeOf<number>()
        return null
      },
    },
  })
  expect(plugin.name).toBe('poll')
})

test("a command's config has the settings that it lists, and no others", () => {
  const command = defineOwn({
    name: 'x',
    summary: '',
    usage: '',
    options: {},
    settings: ['port', 'host'],
    run: async (_args, config) => {
      expectTypeOf(config).toEqualTypeOf<{ readonly port: number, readonly host: string }>()
      // @ts-expect-error it is not in the list
      return config.webWorkers
    },
  })
  expect(command.settings).toEqual(['port', 'host'])
})

test("--help has the settings of plugins behind the core's, in one table", () => {
  const row = integer({ fallback: 1, range: [1, 2], about: 'at once' })
  const lines = describeVariables(['port'], [{ name: 'a', settings: { aLimit: row } }]).split('\n')
  expect(lines.map((line) => line.trim().split(/ {2,}/))).toEqual([
    ['PORT', '3333', 'port the web workers listen on (0: any free one)'], ['A_LIMIT', '1', 'at once'],
  ])
})
