// The README's first lines, in a fresh copy of the repository.
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs'
import { dirname, join } from 'node:path'
import Database from 'better-sqlite3'
import { expect, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, listening, Program, root } from '@gearbox/test-kit/gearbox.ts'
import { freePort } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

/** What a clone of this working tree would hold, uncommitted changes included; undefined where there is no git. */
function copyRepository (): string | undefined {
  const { stdout, status } = spawnSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    { cwd: root, encoding: 'utf8' })
  if (status !== 0) return undefined
  const copy = join(temporaryDir(), 'gearbox')
  for (const path of stdout.split('\0').filter((path) => path !== '')) {
    mkdirSync(dirname(join(copy, path)), { recursive: true })
    cpSync(join(root, path), join(copy, path))
  }
  return copy
}

/** The installed packages, linked; the workspaces' own are the copy's. */
function linkPackages (copy: string): void {
  const [from, to] = [join(root, 'node_modules'), join(copy, 'node_modules')]
  mkdirSync(join(to, '@gearbox'), { recursive: true })
  for (const name of readdirSync(from)) {
    if (name !== '@gearbox') symlinkSync(join(from, name), join(to, name))
  }
  for (const [name, path] of [['web', 'apps/web'], ['consumer', 'apps/consumer'],
    ...['protocol', 'queue', 'runtime'].map((name) => [name, `packages/${name}`] as const)] as const) {
    symlinkSync(join(copy, path), join(to, '@gearbox', name))
  }
}

function firstMatch (text: string, pattern: RegExp): string {
  const [, match] = pattern.exec(text) ?? []
  if (match === undefined) throw new Error(`README.md has no ${pattern}`)
  return match
}

/** Starts, counts and looks as the README says. */
async function follow (copy: string): Promise<void> {
  const readme = readFileSync(join(copy, 'README.md'), 'utf8')
  const body = firstMatch(readme, /curl -d '([^']+)' 'http:\/\/127\.0\.0\.1:3333\/increment\?ack=stored'/)
  const [databasePath, query] = [firstMatch(readme, /sqlite3 (\S+) '/), firstMatch(readme, /sqlite3 \S+ '([^']+)'/)]
  // All defaults but the port, which may be taken on this machine.
  const port = await freePort()
  const gearbox = endWithTest(await listening(new Program('npm', ['start'],
    { PORT: String(port), npm_config_update_notifier: 'false' }, { cwd: copy, detached: true })))
  expect(gearbox.url).toBe(`http://127.0.0.1:${port}`)
  await gearbox.printed(new RegExp(`stores in ${join(copy, databasePath)}`))
  await gearbox.printed(new RegExp(`curl -d '${body}' ${gearbox.url}/increment`.replaceAll(/[.?*+]/g, '\\$&')))
  expect((await post(`${gearbox.url}/increment?ack=stored`, body)).status).toBe(204)
  const rows = (): unknown[] => {
    const db = new Database(join(copy, databasePath), { readonly: true })
    try {
      return db.prepare(query).raw().all()
    } finally {
      db.close()
    }
  }
  const expected = new Map<string, number>()
  for (const [key, value] of new URLSearchParams(body)) expected.set(key, (expected.get(key) ?? 0) + Number(value))
  await until('the totals', () => rows().length === expected.size)
  expect(rows()).toEqual([...expected].sort())
  gearbox.killGroup('SIGINT')
  expect(await gearbox.exited, gearbox.output).toBe(0)
}

test('a fresh copy starts and counts as the README says', async ({ skip }) => {
  const copy = copyRepository()
  if (copy === undefined) return skip('this is not a git working tree')
  expect(readFileSync(join(copy, 'README.md'), 'utf8')).toMatch(/npm ci && npm start/)
  linkPackages(copy)
  await follow(copy)
})

test('npm ci installs all that npm start needs', { timeout: 120_000 }, async ({ skip }) => {
  const copy = copyRepository()
  if (copy === undefined) return skip('this is not a git working tree')
  const { status, stdout, stderr } = spawnSync('npm', ['ci', '--omit=dev', '--offline'],
    { cwd: copy, encoding: 'utf8' })
  // An "npm ci" of this repository leaves in npm's cache what this one needs.
  if (/ENOTCACHED/.test(stderr)) return skip('npm\'s cache does not hold the packages, and tests use no network')
  expect(status, stdout + stderr).toBe(0)
  expect(stderr, 'warnings are the first thing a newcomer reads').toBe('')
  await follow(copy)
})
