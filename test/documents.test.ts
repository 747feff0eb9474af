// What the documents say of the product is held against the product.
import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { expect, test } from 'vitest'
import { describeConfig } from '@gearbox/runtime/config.ts'
import { root } from '@gearbox/test-kit/gearbox.ts'

const documents = ['README.md', 'DESIGN.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'SECURITY.md', 'vegeta/README.md',
  'install/README.md', 'docs/redis.md', 'docs/browsers.md', 'docs/operations.md']

function read (name: string): string {
  return readFileSync(join(root, name), 'utf8')
}

test('the README has the table of variables that --help prints', () => {
  expect(read('README.md')).toContain(`\`\`\`\n${describeConfig()}\n\`\`\``)
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

test('DESIGN and CONTRIBUTING name only files that there are', () => {
  const paths = Array.from(`${read('DESIGN.md')}${read('CONTRIBUTING.md')}`.matchAll(
    /`((?:apps|packages|test|vegeta|install)\/[\w./-]+\.(?:ts|lua|sh))`/g
  ), ([, path]) => path ?? '')
  expect(paths.length).toBeGreaterThan(5)
  expect(paths.filter((path) => !existsSync(join(root, path)))).toEqual([])
})
