// Plugins as a stranger writes them: files and packages outside of the checkout, loaded by real processes.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { endWithTest, listening, Program, root } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'

const bin = join(root, 'bin/gearbox.ts')

interface Ended {
  readonly code: number | NodeJS.Signals
  readonly output: string
}

/** Runs a command to its end in a directory of its own, which has some files. */
async function run (
  files: Readonly<Record<string, string>>, args: readonly string[], env: NodeJS.ProcessEnv
): Promise<Ended & { readonly dir: string }> {
  const dir = temporaryDir()
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(dir, name)), { recursive: true })
    writeFileSync(join(dir, name), text)
  }
  const program = new Program(process.execPath, [bin, ...args], env, { cwd: dir })
  return { dir, code: await program.exited, output: program.output }
}

/** The source of a plugin. */
function pluginText (members: string): string {
  return `import { defineCommand, definePlugin, integer, optional, path } from '@gearbox/runtime/plugin.ts'
import { isPluginName } from '@gearbox/protocol/plugin-entry.ts'
export default definePlugin({ name: 'poll', ${members} })
if (!isPluginName('poll')) throw new Error('it is a name')
`
}

const settings = `settings: {
  pollLimit: integer({ fallback: 5, range: [1, 10], about: 'votes at once' }),
  pollToken: { fallback: undefined, about: 'whose votes', parse: (text: string) => text },
}`

const poll = pluginText(`${settings}, consumer: { migrations: ['SELECT 1', 'SELECT 2'] }, commands: [defineCommand({
  name: 'poll-list',
  summary: 'Lists the polls.',
  usage: 'usage: npm run gearbox -- poll-list',
  options: { all: { type: 'boolean' } },
  settings: ['databasePath'],
  run: async ({ values }, { databasePath }, own) => {
    console.log(JSON.stringify({ all: values.all, databasePath, own }))
    return 3
  },
})]`)

describe('the plugin of the documents', () => {
  const [, source = ''] = /^```ts\n(.*?)^```$/ms.exec(readFileSync(join(root, 'plugins/README.md'), 'utf8')) ?? []

  /** The file as a stranger has it, in a directory without anything else. */
  function write (): string {
    const path = join(temporaryDir(), 'poll.ts')
    writeFileSync(path, source)
    return path
  }

  /** npm, in the checkout, as a reader types it. */
  function npm (args: readonly string[], env: NodeJS.ProcessEnv): Program {
    const quiet = { npm_config_update_notifier: 'false', npm_config_loglevel: 'silent' }
    const databasePath = join(temporaryDir(), 'numbers.db')
    return endWithTest(new Program('npm', args, { ...quiet, DATABASE_PATH: databasePath, ...env }))
  }

  test('is at most 25 lines', () => {
    expect(source.trimEnd().split('\n').length).toBeLessThanOrEqual(25)
    expect(source).toMatch(/settings:.*increment\(/s)
  })

  const queues = ['the embedded queue', 'Redis']
  test.each(queues)('counts through its route, with %s', { timeout: 60_000 }, async (queue) => {
    const redis = queue === 'Redis' ? await RedisServer.start() : undefined
    onTestFinished(async () => { await redis?.stop() })
    const env = { PLUGINS: write(), POLL_VOTES_MAX: '5', PORT: String(await freePort()), REDIS_URL: redis?.url }
    const { url } = await listening(npm(['start'], env))
    const vote = async (path: string, headers: Record<string, string> = {}): Promise<readonly [number, unknown]> => {
      const reply = await fetch(`${url}/poll/${path}`, { method: 'POST', headers })
      return [reply.status, await reply.json()]
    }
    expect(await vote('yes?votes=4')).toEqual([200, { answer: 'yes', votes: 4 }])
    for (let i = 0; i < 3; i++) expect((await vote('yes', { 'Idempotency-Key': 'once' }))[0]).toBe(200)
    expect(await (await fetch(`${url}/totals?key=poll/yes`)).json()).toEqual({ key: 'poll/yes', total: 5 })
    expect(await vote('yes?votes=6')).toEqual([400, expect.objectContaining({ code: 'GBX_BAD_QUERY' })])
    expect(await vote('yes?vote=1')).toEqual([400, expect.objectContaining({
      message: expect.stringContaining('did you mean "votes"?'),
    })])
    expect(await vote('yes', { Origin: 'https://stranger.example' }))
      .toEqual([403, expect.objectContaining({ code: 'GBX_FORBIDDEN_ORIGIN' })])
    const document = await (await fetch(`${url}/docs/json`)).json() as { paths: Record<string, unknown> }
    const post = { tags: ['poll'], summary: 'Votes for an answer' }
    expect(document.paths['/poll/{answer}']).toMatchObject({ post })
  })

  test('has its setting checked, listed, and shown', { timeout: 60_000 }, async () => {
    const PLUGINS = write()
    const wrong = npm(['start'], { PLUGINS, POLL_VOTES_MAX: '0' })
    expect(await wrong.exited).toBe(78)
    expect(wrong.output).toMatch(/^ {2}POLL_VOTES_MAX must be a whole number from 1 to 100, not "0"$/m)
    const help = npm(['start', '--', '--help'], { PLUGINS })
    expect(await help.exited).toBe(0)
    expect(help.output).toMatch(/^ {2}POLL_VOTES_MAX +3 +votes that one request may have$/m)
    const check = npm(['start', '--', '--check'], { PLUGINS, POLL_VOTES_MAX: '5' })
    expect(await check.exited).toBe(0)
    expect(check.output).toMatch(/^plugins +poll$/m)
    expect(check.output).toMatch(/ POLL_VOTES_MAX=5$/m)
  })
})

test.each([
  ['a path from the working directory', './poll.ts', { 'poll.ts': poll }],
  ['a path next to a copy of what it imports', './poll.ts', {
    'poll.ts': poll, 'node_modules/@gearbox/runtime/plugin.ts': 'throw new Error("the copy")',
  }],
  ['a path in a directory below', './below/poll.ts', { 'below/poll.ts': poll }],
  ['a package of the working directory', '@me/polls', {
    'node_modules/@me/polls/package.json': '{ "exports": { "import": "./polls.mjs" } }',
    'node_modules/@me/polls/polls.mjs': pluginText('consumer: { migrations: ["SELECT 1", "SELECT 2"] }'),
  }],
])('%s is loaded from outside of the checkout, with what it imports of Gearbox', async (_what, name, files) => {
  const { code, output } = await run(files, ['start', '--check'], { PLUGINS: name })
  expect(output).toMatch(/^plugins +poll \(tables of version 2\)$/m)
  expect(code).toBe(0)
  // Node warns of a module that it had to guess, and each process would say so.
  expect(output).not.toMatch(/warning/i)
})

test('--check prints what would run and is no secret, and writes nothing', async () => {
  const env = {
    PLUGINS: './poll.ts',
    PORT: '4321',
    WEB_WORKERS: '2',
    API_KEYS: 'hunter2',
    POLL_LIMIT: '7',
    POLL_TOKEN: 'hunter3',
    REDIS_URL: 'redis://me:hunter4@127.0.0.1:1',
  }
  const { dir, code, output } = await run({ 'poll.ts': poll }, ['start', '--check'], env)
  expect(output.split('\n').map((line) => line.split(/ {2,}/))).toEqual([
    ['web workers', '2 on http://127.0.0.1:4321'],
    ['queue', 'gearbox in redis://127.0.0.1:1'],
    ['database', join(dir, 'data/numbers.db')],
    ['plugins', 'poll (tables of version 2)'],
    ['settings', 'PORT=4321 REDIS_URL=… WEB_WORKERS=2 API_KEYS=… PLUGINS=./poll.ts POLL_LIMIT=7 POLL_TOKEN=…'],
    ['The configuration is right; nothing was started.'],
    [''],
  ])
  expect(code).toBe(0)
  const wrong = await run({}, ['consumer', '--check'], { PLUGINS: 'none', METRICS_PORT: 'x' })
  expect([wrong.code, wrong.output]).toEqual([78, expect.stringMatching(/^gearbox: 2 problems.*REDIS_URL must/s)])
})

test('all problems are named at once: of the core, of plugins, and of variables that mean nothing', async () => {
  const env = {
    PLUGINS: './poll.ts',
    PORT: 'x',
    POLL_LIMIT: '11',
    POLL_LIMT: '3',
    POLL: 'on',
    POLL_TOKEN_: '',
    POLLS: 'of another program',
    POLL_SERVICE_HOST: '10.0.0.1',
    POLL_PORT_80_TCP: 'tcp://10.0.0.1',
  }
  const { code, output } = await run({ 'poll.ts': poll }, ['start'], env)
  expect(output.trimEnd().split('\n')).toEqual([
    'gearbox: 4 problems in the environment (all variables: npm start -- --help)',
    '  PORT must be a whole number from 0 to 65535, not "x"',
    '  POLL_LIMIT must be a whole number from 1 to 10, not "11"',
    '  POLL is no setting of the plugin poll; did you mean POLL_LIMIT?',
    '  POLL_LIMT is no setting of the plugin poll; did you mean POLL_LIMIT?',
  ])
  expect(code).toBe(78)
  const { code: unloaded } = await run({}, ['start', '--check'], { PLUGINS: 'none', POLL_LIMIT: '11', POLL: 'on' })
  expect(unloaded).toBe(0)
})

test('--help lists the settings of plugins last, and helps without those that can not be loaded', async () => {
  const { code, output } = await run({ 'poll.ts': poll }, ['start', '--help'], { PLUGINS: './poll.ts', PORT: 'x' })
  expect(code).toBe(0)
  expect(output.trimEnd().split('\n').slice(-3).map((line) => line.trim().split(/ {2,}/)).map(([name]) => name))
    .toEqual(['PLUGINS', 'POLL_LIMIT', 'POLL_TOKEN'])
  const without = await run({}, ['start', '--help'], { PLUGINS: './none.ts' })
  expect(without.output).toMatch(/gearbox: the plugin ".\/none.ts" can't be loaded: there is no file/)
  expect(without.output).toMatch(/^ {2}PLUGINS /m)
  expect(without.code).toBe(0)
})

test('a command of a plugin is run with its options and settings', async () => {
  const env = { PLUGINS: './poll.ts', POLL_LIMIT: '2' }
  const { dir, code, output } = await run({ 'poll.ts': poll }, ['poll-list', '--all'], env)
  const database = join(dir, 'data/numbers.db')
  expect(JSON.parse(output)).toEqual({ all: true, databasePath: database, own: { pollLimit: 2 } })
  expect(code).toBe(3)
  const help = await run({ 'poll.ts': poll }, ['--help'], env)
  expect(help.output).toMatch(/^ {2}poll-list +Lists the polls\.$/m)
  const own = await run({ 'poll.ts': poll }, ['poll-list', '--help'], env)
  expect(own.output).toMatch(/^Lists the polls.*poll-list.*DATABASE_PATH.*POLL_LIMIT/s)
  const wrong = await run({ 'poll.ts': poll }, ['poll-lists'], env)
  expect([wrong.code, wrong.output]).toEqual([64, expect.stringMatching(/"poll-lists" is not.*, poll-list\n$/)])
})

test.each(['the embedded queue', 'Redis'])('a plugin of a stranger submits what its other part stores, with %s', {
  timeout: 60_000,
}, async (queue) => {
  const redis = queue === 'Redis' ? await RedisServer.start() : undefined
  onTestFinished(async () => { await redis?.stop() })
  const dir = temporaryDir()
  writeFileSync(join(dir, 'poll.ts'), `import { definePlugin, refuse } from '@gearbox/runtime/plugin.ts'
export default definePlugin({
  name: 'poll',
  web: (app, context) => {
    app.post('/poll', {
      config: { needs: 'count' },
      schema: { body: { type: 'object', properties: { text: { type: 'string' } } } },
    }, async (request) => await context.submit(request.body.text, context.idempotency(request)))
    app.get('/poll', { config: { needs: 'read' } }, () => context.database.all('SELECT text FROM poll_texts'))
  },
  consumer: {
    migrations: ['CREATE TABLE poll_texts(n INTEGER PRIMARY KEY, text TEXT)'],
    apply: ({ data }, { database }) => {
      database.run('INSERT INTO poll_texts(text) VALUES (?)', data)
      if (data === 'no') throw refuse(409, 'GBX_POLL_NO', 'not that one', { data })
      if (data === 'oops') throw new Error('a slip')
      return database.get('SELECT count(*) AS n FROM poll_texts').n
    },
  },
})
`)
  const { url } = await listening(endWithTest(new Program(process.execPath, [bin, 'start'], {
    PLUGINS: './poll.ts', PORT: String(await freePort()), REDIS_URL: redis?.url, WEB_WORKERS: '2',
  }, { cwd: dir })))
  const submit = async (text: string, headers: Record<string, string> = {}): Promise<readonly [number, unknown]> => {
    const reply = await fetch(`${url}/poll`, { method: 'POST', headers, body: new URLSearchParams({ text }) })
    return [reply.status, await reply.json()]
  }
  expect(await submit('a')).toEqual([200, { state: 'stored', result: 1 }])
  for (let i = 0; i < 4; i++) {
    expect(await submit('b', { 'Idempotency-Key': 'k' })).toEqual([200, { state: 'stored', result: 2 }])
  }
  expect(await submit('no')).toEqual([409, {
    statusCode: 409, code: 'GBX_POLL_NO', error: 'Conflict', message: 'not that one', data: 'no',
  }])
  expect(await submit('oops')).toEqual([500, expect.objectContaining({ code: 'GBX_PLUGIN_FAILED' })])
  expect(await submit('c')).toEqual([200, { state: 'stored', result: 3 }])
  expect(await (await fetch(`${url}/poll`)).json()).toEqual(['a', 'b', 'c'].map((text) => ({ text })))
})

test('options that a plugin adds to rebind are taken, and in its --help', async () => {
  const source = pluginText(`rebind: {
    options: { 'poll-from': { type: 'string', usage: 'N  where the votes begin' } },
    run: (_database, values) => ['poll from ' + values['poll-from']],
  }`)
  const help = await run({ 'poll.ts': source }, ['rebind', '--help'], { PLUGINS: './poll.ts' })
  expect(help.output).toMatch(/^ {2}--poll-from N {2}where the votes begin$/m)
  const env = { PLUGINS: './poll.ts', REDIS_URL: 'redis://127.0.0.1:1' }
  const taken = await run({ 'poll.ts': source }, ['rebind', '--poll-from', '3', 'x.db'], env)
  expect([taken.code, taken.output]).toEqual([1, expect.stringContaining('127.0.0.1:1')])
  const unknown = await run({}, ['rebind', '--poll-from', '3', 'x.db'], { ...env, PLUGINS: 'none' })
  expect([unknown.code, unknown.output]).toEqual([64, expect.stringContaining('--poll-from')])
})

test.each<readonly [what: string, names: string, source: string, says: RegExp]>([
  ['an unknown name', 'polls', '', /"polls" can't be loaded: .*no(?:r a)? package that is installed here/],
  ['a file that is not there', './gone.ts', '', /"\.\/gone\.ts" can't be loaded: there is no file \S+gone\.ts/],
  ['one plugin under two names', './x.ts,././x.ts', pluginText(''), /two plugins are called "poll"/],
  ['a throw of several lines', './x.ts', 'throw new Error("no\\n luck")', /"\.\/x\.ts" can't be loaded: no luck/],
  ['a rejection', './x.ts', 'await Promise.reject("why")', /"\.\/x\.ts" can't be loaded: why/],
  ['a syntax error', './x.ts', '\nexport const = 1', /"\.\/x\.ts" can't be loaded: .*\(\S+x\.ts:2\)/],
  ['a module that it lacks', './x.ts', "import 'gone'", /"\.\/x\.ts" can't be loaded: Cannot find package 'gone'/],
  ['no default export', './x.ts', 'export const plugin = {}', /its default export is no plugin; write: export default/],
  ['a typing error in a member', './x.ts', pluginText('wbe: () => {}'), /has "wbe".*did you mean "web"\?/],
  ['a member of another type', './x.ts', pluginText('web: {}'), /has a "web" that is no function/],
  ['a setting outside of its prefix', './x.ts',
    pluginText("settings: { limit: integer({ fallback: 1, range: [1, 2], about: 'x' }) }"),
    /setting "limit" is the variable LIMIT, which is outside its prefix: POLL or POLL_…; call it pollLimit/],
  ['a command of ours', './x.ts', pluginText("commands: [{ name: 'verify' }]"), /command "verify" is one of Gearbox's/],
  ['an option of rebind outside of its name', './x.ts',
    pluginText("rebind: { options: { force: { type: 'string', usage: 'x' } }, run: () => [] }"),
    /option "force" of rebind must begin with the plugin's name: poll-…/],
])('%s is exit code 78 and one line', async (_what, names, source, says) => {
  const { code, output } = await run({ 'x.ts': source }, ['start'], { PLUGINS: names })
  expect(output).toMatch(says)
  expect(output.trimEnd().split('\n')).toEqual([expect.stringMatching(/^gearbox: /)])
  expect(code).toBe(78)
})
