// The table of commands: what each says of itself, and that it loads nothing of the others.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, test } from 'vitest'
import { allSettings, variables } from '@gearbox/runtime/config.ts'
import { describeVariables } from '@gearbox/runtime/plugin/configuration.ts'
import { loadPluginsOf } from '@gearbox/runtime/plugin/load.ts'
import { root, startCommand } from '@gearbox/test-kit/gearbox.ts'

const names = ['start', 'web', 'consumer', 'verify', 'rejected', 'rebind', 'backup', 'set']

function gearbox (...args: readonly string[]): { readonly code: number | null, out: string, error: string } {
  const command = ['bin/gearbox.ts', ...args]
  const { status, stdout, stderr } = spawnSync(process.execPath, command, { cwd: root, encoding: 'utf8' })
  return { code: status, out: stdout, error: stderr }
}

test('gearbox --help names every command with what it does', () => {
  const { code, out } = gearbox('--help')
  expect(code).toBe(0)
  expect(Array.from(out.matchAll(/^ {2}(\w+) +\S.*\.$/gm), ([, name]) => name)).toEqual(names)
})

test.each([[], ['nonsense'], ['__proto__'], ['--port']])('gearbox %s is refused, with all commands', (...args) => {
  const error = expect.stringMatching(new RegExp(`^gearbox: .*; there are ${names.join(', ')}\n$`))
  expect(gearbox(...args)).toEqual({ code: 64, out: '', error })
})

// npm has its own `npm set`.
test.each(names.filter((name) => name !== 'set'))('npm runs %s through the table', (name) => {
  const { scripts }: { scripts: Record<string, string> } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  expect(scripts[name]).toBe(`exec ./run-node bin/gearbox.ts ${name}`)
})

/** The variables that --help lists, whatever the environment. */
async function listed (name: string): Promise<readonly string[]> {
  const program = startCommand(name, ['--help'], { PORT: 'wrong', PLUGINS: 'none' })
  expect(await program.exited).toBe(0)
  expect(program.output).toMatch(new RegExp(`^usage: npm (?:run )?${name}`, 'm'))
  const [, table = ''] = program.output.split('\nEnvironment:\n')
  return Array.from(table.matchAll(/^ {2}([A-Z_]+) /gm), ([, variable]) => variable!)
}

describe('--help', () => {
  test('of start lists every variable, in the words of the table', async () => {
    expect(await listed('start')).toEqual(variables)
    const table = describeVariables(allSettings, await loadPluginsOf({}))
    expect(gearbox('start', '--help').out).toContain(`\n\nEnvironment:\n${table}\n`)
  })

  test.each<{ readonly name: string, readonly reads: readonly string[], readonly ignores: readonly string[] }>([
    { name: 'web', reads: ['PORT', 'FLUSH_INTERVAL_MS'], ignores: ['COMMIT_INTERVAL_MS', 'WEB_WORKERS'] },
    { name: 'consumer', reads: ['COMMIT_INTERVAL_MS', 'METRICS_PORT'], ignores: ['PORT', 'FAST_LANE', 'DRAIN_MS'] },
    { name: 'verify', reads: ['HOST', 'PORT', 'UNSENT_DIR', 'API_KEYS'], ignores: ['ACK', 'COMMIT_INTERVAL_MS'] },
    { name: 'rejected', reads: ['DATABASE_PATH', 'REJECTED_BYTES_MAX'], ignores: ['PORT', 'REDIS_URL'] },
    { name: 'rebind', reads: ['REDIS_URL', 'QUEUE_NAME'], ignores: ['PORT', 'DATABASE_PATH'] },
    { name: 'backup', reads: ['DATABASE_PATH'], ignores: ['REDIS_URL', 'LOG_LEVEL'] },
  ])('of $name lists what it reads, and nothing else', async ({ name, reads, ignores }) => {
    const found = await listed(name)
    expect(found).toEqual(variables.filter((variable) => found.includes(variable)))
    expect(found).toEqual(expect.arrayContaining([...reads]))
    for (const variable of ignores) expect(found).not.toContain(variable)
  })
})

test.each([
  { name: 'backup', others: /apps\/web|commands\/(?!backup)|ioredis|fastify|bin\/start/ },
  { name: 'rejected', others: /apps\/web|commands\/(?!rejected)|ioredis|fastify|bin\/start/ },
  { name: 'web', others: /apps\/consumer|bin\/start/ },
  { name: 'consumer', others: /apps\/web|consumer\/src\/commands|bin\/start|\/fastify\// },
])('$name loads no other command', ({ name, others }) => {
  const hooks = `import { registerHooks } from 'node:module'; import { writeSync } from 'node:fs';
    registerHooks({ load (url, context, next) { writeSync(2, url + '\\n'); return next(url, context) } })`
  const { status, stderr } = spawnSync(process.execPath, [
    '--import', `data:text/javascript,${encodeURIComponent(hooks)}`, 'bin/gearbox.ts', name, '--help',
  ], { cwd: root, encoding: 'utf8' })
  expect(status).toBe(0)
  expect(stderr).toContain(name)
  expect(stderr.split('\n').filter((url) => others.test(url))).toEqual([])
})
