// The rules that keep the house in order, each shown to refuse what it is there to refuse.
import { existsSync, globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ESLint } from 'eslint'
import { describe, expect, test } from 'vitest'
import { root } from '@gearbox/test-kit/gearbox.ts'

const eslint = new ESLint({ cwd: root })

/** What ESLint says of a text that would be the file of a path: rule and message. */
async function lint (path: string, text: string): Promise<Array<readonly [rule: string | null, message: string]>> {
  const results = await eslint.lintText(text, { filePath: join(root, path) })
  return results.flatMap(({ messages }) => messages.map(({ ruleId, message }) => [ruleId, message] as const))
}

function importing (...specifiers: readonly string[]): string {
  return specifiers.map((specifier) => `import '${specifier}'\n`).join('')
}

describe('a package that is not declared is refused', () => {
  test.each([
    ['packages/queue/src/x.ts', 'fastify'],
    ['packages/protocol/src/x.ts', 'pino/file'],
    ['apps/consumer/src/store/x.ts', 'vitest'],
    ['packages/runtime/test/x.test.ts', 'ioredis'],
    ['bin/x.ts', 'better-sqlite3'],
  ])('in %s: %s', async (path, specifier) => {
    expect(await lint(path, importing(specifier))).toEqual([
      ['gearbox/declared-imports', expect.stringMatching(/ is not in the dependencies.* of \S+package\.json$/)],
    ])
  })

  test.each([
    ['packages/queue/src/x.ts', 'ioredis'],
    ['packages/queue/test/x.test.ts', 'fast-check'],
    ['packages/test-kit/src/x.ts', 'vitest'],
    ['test/x.test.ts', 'better-sqlite3'],
    ['bin/x.ts', '@gearbox/runtime/errors.ts'],
    ['bin/x.ts', 'node:fs'],
  ])('and one that is declared is not: in %s, %s', async (path, specifier) => {
    expect(await lint(path, importing(specifier))).toEqual([])
  })
})

describe('an import against the direction is refused', () => {
  test.each([
    ['packages/protocol/src/x.ts', '@gearbox/queue/queue.ts'],
    ['packages/runtime/src/x.ts', '@gearbox/queue/queue.ts'],
    ['packages/queue/src/x.ts', '@gearbox/web/server.ts'],
    ['apps/web/src/http/x.ts', '@gearbox/consumer/consumer.ts'],
    ['apps/web/src/http/x.ts', '@gearbox/tickets'],
    ['plugins/tickets/src/x.ts', '@gearbox/web/server.ts'],
    ['apps/web/src/accumulate/x.ts', '../deliver/window.ts'],
    ['apps/web/src/deliver/x.ts', '../http/query.ts'],
    ['apps/web/src/increment/x.ts', '../fast-lane/server.ts'],
    ['apps/web/src/totals/x.ts', '../main.ts'],
    ['apps/consumer/src/store/x.ts', '../ownership.ts'],
    ['apps/consumer/src/ownership.ts', './progress.ts'],
    ['apps/consumer/src/commands/x.ts', '../consumer.ts'],
    ['apps/consumer/src/consumer.ts', './commands/verify.ts'],
  ])('in %s: %s', async (path, specifier) => {
    const found = await lint(path, importing(specifier))
    expect(found).toContainEqual(['gearbox/import-direction', expect.stringContaining(' must not import from ')])
  })

  test.each([
    ['apps/web/src/deliver/x.ts', '@gearbox/test-kit/until.ts', /for its tests/],
    ['apps/web/src/deliver/x.ts', '../../test/fixtures/worker.ts', /for its tests/],
    ['apps/web/src/deliver/x.ts', '../../../../packages/queue/src/queue.ts', /must not lead out/],
    ['packages/queue/test/x.test.ts', '../../../test/model/state.ts', /must not lead out/],
  ])('as is one of a test, or out of a workspace: in %s, %s', async (path, specifier, message) => {
    const found = await lint(path, importing(specifier))
    expect(found).toContainEqual(['gearbox/import-direction', expect.stringMatching(message)])
  })

  test.each([
    ['plugins/x/src/plugin.ts', '@gearbox/runtime/config.ts', true],
    ['plugins/x/src/plugin.ts', '@gearbox/queue/queue.ts', true],
    ['plugins/x/src/plugin.ts', '@gearbox/web/server.ts', true],
    ['plugins/x/src/plugin.ts', '@gearbox/runtime/plugin.ts', false],
    ['plugins/x/src/plugin.ts', '@gearbox/protocol/int64.ts', false],
    ['plugins/x/test/plugin.test.ts', '@gearbox/web/server.ts', false],
  ])('as is any import of a plugin but of the seam: in %s, %s (%s)', async (path, specifier, refused) => {
    const found = await lint(path, importing(specifier))
    expect(found.filter(([rule]) => rule === 'gearbox/import-direction'))
      .toEqual(refused ? [['gearbox/import-direction', expect.stringContaining('a plugin may only import ')]] : [])
  })

  test('and a file without a room is too', async () => {
    expect(await lint('apps/web/src/helpers/x.ts', 'await 1\n')).toEqual([
      ['gearbox/import-direction', expect.stringContaining('apps/web/src/helpers/x.ts is in no room')],
    ])
  })

  test.each([
    ['apps/web/src/increment/x.ts', '../deliver/window.ts'],
    ['apps/web/src/deliver/x.ts', './window.ts'],
    ['apps/consumer/src/main.ts', './consumer.ts'],
    ['packages/queue/src/x.ts', '@gearbox/protocol/batch.ts'],
    ['plugins/tickets/src/x.ts', '@gearbox/runtime/plugin.ts'],
    ['bin/x.ts', '@gearbox/web/main.ts'],
    ['test/x.test.ts', '@gearbox/web/fixtures/worker.ts'],
  ])('one along it is not: in %s, %s', async (path, specifier) => {
    const found = await lint(path, importing(specifier))
    expect(found.filter(([rule]) => rule === 'gearbox/import-direction')).toEqual([])
  })
})

test.each([
  ['packages/protocol/src/int64.ts', "import type { Batch } from './batch.ts'\n\n/** X. */\nexport type X = Batch\n"],
  ['packages/queue/src/queue.ts', "import './redis/consumer-queue.ts'\n"],
  ['packages/queue/src/queue.ts', "import './queue.ts'\n"],
])('a cycle is refused: %s importing %j', async (path, text) => {
  const found = await lint(path, text)
  expect(found).toEqual([['gearbox/no-cycles', expect.stringMatching(new RegExp(`: ${path} → .*${path}$`))]])
})

describe('an export without a doc comment is refused', () => {
  test.each([
    'export const x = 1\n',
    'export function x (): void {}\n',
    'export class X {}\n',
    'export interface X { readonly a: 1 }\n',
    'export type X = 1\n',
    'export default 1\n',
    '// Not a doc comment.\nexport const x = 1\n',
    '/* Nor is this. */\nexport const x = 1\n',
    '/** Too far away. */\n\nexport const x = 1\n',
    '/** The first. */\nexport const x = 1\nexport const y = 2\n',
  ])('%j', async (text) => {
    expect((await lint('packages/queue/src/x.ts', text)).map(([rule]) => rule)).toEqual(['gearbox/doc-comments'])
  })

  test.each([
    ['packages/queue/src/x.ts', '/** What it is. */\nexport const x = 1\n'],
    ['packages/queue/src/x.ts', '/** X. */\nexport function x (a: 1): void\nexport function x (): void {}\n'],
    ['packages/queue/src/x.ts', "export { include } from '@gearbox/protocol/sequences.ts'\n"],
    ['packages/queue/test/x.ts', 'export const x = 1\n'],
  ])('where none is needed: %s, %j', async (path, text) => {
    expect(await lint(path, text)).toEqual([])
  })
})

test('a line of more than 120 characters is refused, and a file of more than 600 lines', async () => {
  expect(await lint('test/x.ts', `// ${'x'.repeat(117)}\n`)).toEqual([])
  expect((await lint('test/x.ts', `// ${'x'.repeat(118)}\n`)).map(([rule]) => rule)).toEqual(['@stylistic/max-len'])
  expect(await lint('test/x.ts', '// x\n'.repeat(600))).toEqual([])
  expect((await lint('test/x.ts', '// x\n'.repeat(601))).map(([rule]) => rule)).toEqual(['max-lines'])
})

const workspaces = globSync('{apps,packages}/*', { cwd: root })

test.each(workspaces)(
  '%s exports what others import, and nothing else', (workspace) => {
    const manifest: { name: string, exports: Record<string, string> } =
      JSON.parse(readFileSync(join(root, workspace, 'package.json'), 'utf8'))
    const sources = globSync('{apps,packages,plugins,bin,test,bench,vegeta}/**/*.ts', { cwd: root })
      .filter((path) => !path.startsWith(`${workspace}/`) && path !== 'test/lint.test.ts')
    const text = sources.map((path) => readFileSync(join(root, path), 'utf8')).join('\n')
    const exported = Object.keys(manifest.exports).map((subpath) => manifest.name + subpath.slice(1))
    expect(exported.filter((specifier) => !text.includes(`'${specifier}'`))).toEqual([])
    expect(Object.values(manifest.exports).filter((path) => !existsSync(join(root, workspace, path)))).toEqual([])
  })
