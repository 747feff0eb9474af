// What the documents say of the product is compared with the product.
import { existsSync, globSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { allSettings } from '@gearbox/runtime/config.ts'
import { describeVariables } from '@gearbox/runtime/plugin/configuration.ts'
import { loadPluginsOf } from '@gearbox/runtime/plugin/load.ts'
import { root } from '@gearbox/test-kit/gearbox.ts'

/** All documents that are this project's own. */
const documents = globSync(['*.md', '{apps,bench,docs,install,packages,plugins,test,vegeta}/**/*.md'], {
  cwd: root, exclude: (path) => path.includes('node_modules'),
}).sort()
const designs = documents.filter((name) => /(?:^|\/)(?:DESIGN|CONTRIBUTING)\.md$/.test(name))

function read (name: string): string {
  return readFileSync(join(root, name), 'utf8')
}

test('docs/configuration.md has the table of variables that --help prints', () => {
  expect(read('docs/configuration.md')).toContain(`\`\`\`\n${describeVariables(allSettings, [])}\n\`\`\``)
})

test('the README of each plugin that is built in has what --help prints of its settings', async () => {
  for (const plugin of await loadPluginsOf({})) {
    if (Object.keys(plugin.settings ?? {}).length === 0) continue
    expect(read(`plugins/${plugin.name}/README.md`)).toContain(`\`\`\`\n${describeVariables([], [plugin])}\n\`\`\``)
  }
})

test.each(documents)('%s names only npm scripts that there are', (name) => {
  const { scripts }: { scripts: Record<string, string> } = JSON.parse(read('package.json'))
  const named = Array.from(read(name).matchAll(/npm run (?:-s )?([a-z][a-z:-]*)/g), ([, script]) => script)
  expect(named.filter((script) => script === undefined || scripts[script] === undefined)).toEqual([])
})

test.each(documents)('%s links only to files that there are', (name) => {
  const links = Array.from(read(name).matchAll(/\]\((?!https?:|#)([^)#]+)/g), ([, link]) => link ?? '')
  expect(links.filter((link) => !existsSync(join(root, dirname(name), link)))).toEqual([])
})

test.each(designs)('%s names only source files that there are', (name) => {
  const paths = Array.from(read(name).matchAll(
    /`((?:apps|bin|packages|plugins|test|vegeta|install)\/[\w./-]+\.(?:ts|lua|sh))`/g
  ), ([, path]) => path ?? '')
  expect(paths.filter((path) => !existsSync(join(root, path)))).toEqual([])
})

test.each(documents)('%s links only to headings that there are', (name) => {
  const links = Array.from(read(name).matchAll(/\]\((?!https?:)([^)#]*)#([^)]+)\)/g),
    ([, path, anchor]) => ({ path: path === '' ? name : join(dirname(name), path ?? ''), anchor }))
  expect(links.filter(({ path, anchor }) => !anchorsOf(read(path)).includes(anchor ?? ''))).toEqual([])
})

/** What GitHub makes of headings. */
function anchorsOf (text: string): string[] {
  return Array.from(text.matchAll(/^#+ (.*)$/gm), ([, heading = '']) =>
    heading.toLowerCase().replace(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-'))
}
