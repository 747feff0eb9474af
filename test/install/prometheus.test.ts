// What is shipped for Prometheus, judged by its own promtool, and compared with the metrics of a running product.
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { beforeAll, describe, expect, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, root, startAll } from '@gearbox/test-kit/gearbox.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'

const shipped = join(root, 'install/prometheus')
const tools = join(root, '.tmp/bin')

/**
 * From the PATH, or out of the distribution's package, which is unpacked and not installed: that would start a server.
 */
function findPromtool (): string | undefined {
  const found = findProgram('promtool') ?? (existsSync(join(tools, 'promtool')) ? join(tools, 'promtool') : undefined)
  if (found !== undefined || process.getuid?.() !== 0 || findProgram('apt-get') === undefined) return found
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-promtool-'))
  try {
    spawnSync('apt-get', ['-o', 'APT::Sandbox::User=root', 'download', 'prometheus'], { cwd: dir, timeout: 60_000 })
    const deb = readdirSync(dir).find((name) => name.endsWith('.deb'))
    if (deb === undefined) return undefined
    spawnSync('sh',
      ['-c', `mkdir -p '${tools}' && dpkg-deb --fsys-tarfile '${deb}' | tar -xf - -C '${tools}' --strip-components=3 ` +
        './usr/bin/promtool'], { cwd: dir })
    return existsSync(join(tools, 'promtool')) ? join(tools, 'promtool') : undefined
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}

function run (command: string, args: readonly string[], cwd: string, input = ''): {
  status: number |
  null,
  said: string
} {
  const { status, stdout, stderr } = spawnSync(command, args, { cwd, input, encoding: 'utf8' })
  return { status, said: stdout + stderr }
}

describe('promtool', () => {
  let promtool: string | undefined
  beforeAll(() => { promtool = findPromtool() }, 90_000)
  const missing = 'there is no promtool, and it can not be downloaded: apt-get install prometheus'

  test('finds configuration and rules right', ({ skip }) => {
    if (promtool === undefined) return skip(missing)
    const { status, said } = run(promtool, ['check', 'config', 'prometheus.yml'], shipped)
    expect(said).toMatch(/prometheus\.yml is valid[^]*SUCCESS: \d+ rules found/)
    expect(status).toBe(0)
  })

  test('sees each alert fire when it should, and only then', ({ skip }) => {
    if (promtool === undefined) return skip(missing)
    const dir = temporaryDir()
    copyFileSync(join(shipped, 'gearbox.rules.yml'), join(dir, 'gearbox.rules.yml'))
    copyFileSync(join(import.meta.dirname, 'gearbox.rules.test.yml'), join(dir, 'gearbox.rules.test.yml'))
    expect(run(promtool, ['test', 'rules', 'gearbox.rules.test.yml'], dir))
      .toEqual({ status: 0, said: expect.stringContaining('SUCCESS') })
    const alerts = (path: string, pattern: RegExp): string[] =>
      Array.from(readFileSync(path, 'utf8').matchAll(pattern), ([, name]) => name!)
    const tested = new Set(alerts(join(dir, 'gearbox.rules.test.yml'), /alertname: (\w+)/g))
    expect([...tested].sort()).toEqual(alerts(join(dir, 'gearbox.rules.yml'), /alert: (\w+)/g).sort())
  })

  test('can read what Gearbox answers', async ({ skip }) => {
    if (promtool === undefined) return skip(missing)
    const { said } = run(promtool, ['check', 'metrics'], root, await scrape())
    // It also says what it would have named otherwise; prom-client's own metrics are not ours to name.
    expect(said.split('\n').filter((line) => line !== '' && !/^(nodejs|process)_/.test(line))).toEqual([])
  })
})

/** The metrics of a product that has counted. */
async function scrape (): Promise<string> {
  const gearbox = endWithTest(await startAll({ DATABASE_PATH: join(temporaryDir(), 'numbers.db') }))
  expect((await post(gearbox.url, 'foo=1')).status).toBe(204)
  return await (await fetch(`${gearbox.url}/metrics`)).text()
}

test('every metric that the rules name is one that Gearbox has', async () => {
  const types = new Set(Array.from((await scrape()).matchAll(/^# TYPE (\S+) /gm), ([, name]) => name!))
  const named = new Set(readFileSync(join(shipped, 'gearbox.rules.yml'), 'utf8').match(/gearbox_\w+/g))
  expect(named.size).toBeGreaterThan(5)
  expect([...named].filter((name) => !types.has(name))).toEqual([])
})
