// Starting, stopping and dying, as shells, terminals, supervisors and the kernel do it to real processes under load.
// Whatever happens, what was answered with a level is in the database afterwards, and nothing is left behind.
import { copyFileSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post, SlowRequest } from '@gearbox/test-kit/client.ts'
import {
  endWithTest, listening, Load, Program, readTotals, startAll, startCommand, type ProgramOptions,
} from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { later, until } from '@gearbox/test-kit/until.ts'

/** Past this a second signal is no echo of the first. */
const sameRequestMs = 1000

type Mode = 'the embedded queue' | 'Redis'

interface Place {
  readonly databasePath: string
  /** Where the processes put temporary files, and nobody else does. */
  readonly tmp: string
  readonly env: NodeJS.ProcessEnv
}

/** A database and a queue of the test's own. */
async function makePlace (mode: Mode): Promise<Place> {
  const dir = temporaryDir()
  const tmp = join(dir, 'tmp')
  mkdirSync(tmp)
  const redis = mode === 'Redis' ? await RedisServer.start() : undefined
  onTestFinished(async () => { await redis?.stop() })
  const databasePath = join(dir, 'data', 'numbers.db')
  return {
    databasePath,
    tmp,
    env: { DATABASE_PATH: databasePath, TMPDIR: tmp, REDIS_URL: redis?.url, WEB_WORKERS: '2' },
  }
}

async function start ({ env }: Place, more: NodeJS.ProcessEnv = {}): Promise<Program & { url: string }> {
  return endWithTest(await startAll({ ...env, ...more }, { detached: true }))
}

/** What Gearbox itself has left in its temporary directory. */
function leftIn ({ tmp }: Place): string[] {
  return readdirSync(tmp).filter((name) => name.startsWith('gearbox-'))
}

async function refusesConnections (url: string): Promise<void> {
  await until('connections to be refused',
    async () => await fetch(`${url}/healthz`, { headers: { connection: 'close' } }).then(() => false, () => true))
}

describe.each<Mode>(['the embedded queue', 'Redis'])('with %s', (mode) => {
  interface Way {
    readonly name: string
    readonly command: readonly [string, ...string[]]
    readonly options: ProgramOptions
    readonly stop: (program: Program) => void
    readonly skip?: boolean
  }
  const ways: Way[] = [
    {
      name: 'SIGTERM to npm',
      command: ['npm', 'start'],
      options: { detached: true },
      stop: (program) => program.kill('SIGTERM'),
    },
    {
      name: 'SIGTERM to the parent',
      command: [process.execPath, 'bin/start.ts'],
      options: { detached: true },
      stop: (program) => program.kill('SIGTERM'),
    },
    {
      name: 'SIGTERM to all processes at once',
      command: ['npm', 'start'],
      options: { detached: true },
      stop: (program) => program.killGroup('SIGTERM'),
    },
    {
      name: 'SIGINT to all processes at once',
      command: ['npm', 'start'],
      options: { detached: true },
      stop: (program) => program.killGroup('SIGINT'),
    },
    {
      name: 'Ctrl-C in a terminal',
      // exec: a shell that stayed in between would itself die of the Ctrl-C and say 130.
      command: ['script', '-qec', 'exec npm start', '/dev/null'],
      options: { stdin: 'pipe' },
      stop: (program) => { program.child.stdin?.write('\x03') },
      // Elsewhere its arguments mean other things.
      skip: process.platform !== 'linux' || findProgram('script') === undefined,
    },
  ]

  for (const { name, command: [command, ...args], options, stop, skip = false } of ways) {
    test.skipIf(skip)(`${name} under load: exit code 0, and all that was answered is stored`, async () => {
      const place = await makePlace(mode)
      const program = endWithTest(await listening(new Program(command, args,
        { ...place.env, PORT: String(await freePort()), npm_config_update_notifier: 'false' }, options)))
      const load = new Load(program.url)
      await load.more(300)
      stop(program)
      expect(await program.exited, program.output).toBe(0)
      await load.stop()

      // Looked at first: a reader makes these files again.
      expect(readdirSync(dirname(place.databasePath)).filter((name) => /json|unsent|wal|shm/.test(name))).toEqual([])
      expect(load.problems(readTotals(place.databasePath))).toEqual([])
      expect([...load.statuses.keys()].filter((status) => ![202, 204, 503].includes(status))).toEqual([])
      expect(program.output).not.toMatch(/unexpected|"level":[56]0|ERROR|FATAL/)
      expect(program.group()).toEqual([])
      expect(leftIn(place)).toEqual([])
    })
  }

  test('a request in progress when the stop comes is answered and counted', async () => {
    const place = await makePlace(mode)
    const program = await start(place)
    const slow = await SlowRequest.start(program.url, 'slow=1', '&slow=41')
    program.kill('SIGTERM')
    await refusesConnections(program.url)
    slow.finish()
    expect(await slow.reply).toMatch(/HTTP\/1.1 204 /)
    expect(await program.exited).toBe(0)
    expect(readTotals(place.databasePath)).toEqual(new Map([['slow', 42n]]))
  })

  test('replies that wait for a long flush interval are answered when the stop comes', async () => {
    const place = await makePlace(mode)
    const program = await start(place, { WEB_WORKERS: '1', FLUSH_INTERVAL_MS: '60000', ACK_TIMEOUT_MS: '30000' })
    // The first flush leaves at once; what follows waits for the second.
    expect((await post(`${program.url}/increment?ack=stored`, 'first=1')).status).toBe(204)
    const replies = ['memory', 'queued', 'stored'].map(async (level) =>
      await post(`${program.url}/increment?ack=${level}`, `${level}=7`).then(({ status }) => status, () => 'no answer'))
    await until('all to be in progress',
      async () => /^gearbox_pending_keys 3$/m.test(await (await fetch(`${program.url}/metrics`)).text()))
    const stoppedAt = performance.now()
    program.kill('SIGTERM')
    expect(await Promise.all(replies)).toEqual([202, 204, 204])
    expect(await program.exited).toBe(0)
    expect(performance.now() - stoppedAt).toBeLessThan(5000)
    expect(readTotals(place.databasePath))
      .toEqual(new Map([['first', 1n], ['memory', 7n], ['queued', 7n], ['stored', 7n]]))
  })

  test.each([['SIGTERM', 143],
    ['SIGINT', 130]] as const)('a second %s that is no echo ends the parent at once, and still ' +
      'nothing is lost', async (signal, code) => {
    const place = await makePlace(mode)
    const program = await start(place)
    const load = new Load(program.url)
    await load.more(100)
    const slow = await SlowRequest.start(program.url, 'slow=1', '&never=1')
    program.kill(signal)
    await later(sameRequestMs / 10)
    program.kill(signal)
    await later(sameRequestMs)
    expect(program.child.exitCode, 'a signal within a second is the same request').toBe(null)
    program.kill(signal)
    const killedAt = performance.now()
    expect(await program.exitedItself).toBe(code)
    expect(performance.now() - killedAt).toBeLessThan(3000)
    slow.abort()
    await program.exited
    await load.stop()
    expect(load.problems(readTotals(place.databasePath))).toEqual([])
    await until('all parts to have left', () => program.group().length === 0)
    expect(leftIn(place)).toEqual([])
  })

  test('a worker that is killed is started again, and what it answered as queued or stored is kept', async () => {
    const place = await makePlace(mode)
    const program = await start(place)
    const load = new Load(program.url)
    await load.more(200)
    const [worker] = program.children('apps/web')
    process.kill(worker!.pid, 'SIGKILL')
    await program.printed(/web \d ended \(SIGKILL\)/)
    await load.more(200)
    await until('another worker', () => {
      const workers = program.children('apps/web')
      return workers.length === 2 && workers.every(({ pid }) => pid !== worker!.pid)
    })
    await load.more(200)
    program.kill('SIGTERM')
    expect(await program.exited).toBe(0)
    await load.stop()
    expect(load.problems(readTotals(place.databasePath), ['memory'])).toEqual([])
  })

  test('a consumer that is killed is started again, and nothing is lost or counted twice', async () => {
    const place = await makePlace(mode)
    const program = await start(place)
    const load = new Load(program.url)
    await load.more(200)
    for (let kills = 1; kills <= 3; kills++) {
      const [consumer] = program.children('apps/consumer')
      process.kill(consumer!.pid, 'SIGKILL')
      await until('another consumer', () => program.children('apps/consumer').some(({ pid }) => pid !== consumer!.pid))
      await load.more(100)
    }
    program.kill('SIGTERM')
    expect(await program.exited).toBe(0)
    await load.stop()
    expect(load.problems(readTotals(place.databasePath))).toEqual([])
  })

  test('a worker that gets SIGTERM by itself stops gracefully and is started again', async () => {
    const place = await makePlace(mode)
    const program = await start(place)
    const load = new Load(program.url)
    await load.more(200)
    const before = program.children('apps/web').map(({ pid }) => pid)
    process.kill(before[0]!, 'SIGTERM')
    await program.printed(/web \d ended \(exit code 0\)/)
    await until('another worker',
      () => program.children('apps/web').filter(({ pid }) => pid !== before[0]).length === 2)
    await load.more(200)
    program.kill('SIGTERM')
    expect(await program.exited).toBe(0)
    await load.stop()
    expect(load.problems(readTotals(place.databasePath))).toEqual([])
  })

  test('a consumer ignores signals while its parent lives', async () => {
    const place = await makePlace(mode)
    const program = await start(place)
    const [consumer] = program.children('apps/consumer')
    process.kill(consumer!.pid, 'SIGTERM')
    process.kill(consumer!.pid, 'SIGINT')
    expect((await post(`${program.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    expect(program.children('apps/consumer').map(({ pid }) => pid)).toEqual([consumer!.pid])
    program.kill('SIGTERM')
    expect(await program.exited).toBe(0)
  })

  test('when the parent is killed all parts flush and leave, and a start right after it waits for them', async () => {
    const place = await makePlace(mode)
    const env = { ...place.env, PORT: String(await freePort()) }
    const program = await start({ ...place, env })
    const load = new Load(program.url)
    await load.more(300)
    // It holds up one worker, so that the next start finds parts that are still leaving.
    const slow = await SlowRequest.start(program.url, 'slow=1', '&slow=41')
    program.kill('SIGKILL')
    expect(await program.exitedItself).toBe('SIGKILL')
    const next = start({ ...place, env })
    await refusesConnections(program.url)
    slow.finish()
    expect(await slow.reply).toMatch(/HTTP\/1.1 204 /)
    const successor = await next
    expect(program.group()).toEqual([])
    await load.more(100)
    expect((await post(`${successor.url}/increment?ack=stored`, 'after=1')).status).toBe(204)
    successor.kill('SIGTERM')
    expect(await successor.exited).toBe(0)
    await load.stop()
    const totals = readTotals(place.databasePath)
    expect(load.problems(totals)).toEqual([])
    expect(totals.get('slow')).toBe(42n)
    expect(totals.get('after')).toBe(1n)
    expect(leftIn(place)).toEqual([])
  })
})

test('a part that keeps dying is started again after growing pauses', async () => {
  const program = await start(await makePlace('the embedded queue'), { WEB_WORKERS: '1' })
  const pauses = [100, 200, 400, 800]
  for (const ms of pauses) {
    const worker = await until('a worker', () => program.children('apps/web')[0])
    process.kill(worker.pid, 'SIGKILL')
    await program.printed(new RegExp(`web 1 ended \\(SIGKILL\\).* in ${ms} ms`))
  }
  await until('the worker to answer again', async () => (await fetch(`${program.url}/readyz`)).status === 200)
})

test('a stop that comes while parts are still starting leaves nothing behind', async () => {
  const place = await makePlace('the embedded queue')
  const program = endWithTest(new Program(process.execPath, ['bin/start.ts'], { ...place.env, PORT: '0' },
    { detached: true }))
  await until('the first part', () => program.children('apps/consumer').length > 0)
  program.killGroup('SIGTERM')
  expect(await program.exited, program.output).toBe(0)
  expect(program.group()).toEqual([])
  expect(leftIn(place)).toEqual([])
})

describe('a start that can not work says so in one line, at once, and leaves nothing behind', () => {
  interface Attempt { readonly code: number, readonly says: RegExp }

  async function attempt (place: Place, env: NodeJS.ProcessEnv, { code, says }: Attempt): Promise<void> {
    const startedAt = performance.now()
    const program = endWithTest(new Program(process.execPath, ['bin/start.ts'], { ...place.env, PORT: '0', ...env },
      { detached: true }))
    expect(await program.exited, program.output).toBe(code)
    expect(performance.now() - startedAt).toBeLessThan(5000)
    expect(program.output.trimEnd().split('\n'), 'one line').toHaveLength(1)
    expect(program.output).toMatch(says)
    expect(program.output).not.toMatch(/\n +at |unexpected/)
    expect(program.group()).toEqual([])
    expect(leftIn(place)).toEqual([])
  }

  test('a port in use', async () => {
    const place = await makePlace('the embedded queue')
    const other = await start(await makePlace('the embedded queue'))
    const { port } = new URL(other.url)
    await attempt(place, { PORT: port }, { code: 1, says: new RegExp(`port ${port} .*in use.*PORT`) })
    expect(existsSync(place.databasePath)).toBe(false)
  })

  test('a second start on the same database', async () => {
    const place = await makePlace('the embedded queue')
    const first = await start(place)
    const sockets = leftIn(place)
    const startedAt = performance.now()
    const second = endWithTest(new Program(process.execPath, ['bin/start.ts'], { ...place.env, PORT: '0' },
      { detached: true }))
    expect(await second.exited).toBe(1)
    expect(performance.now() - startedAt).toBeLessThan(5000)
    expect(second.output.trimEnd().split('\n')).toHaveLength(1)
    expect(second.output).toMatch(new RegExp(
      `another npm start \\(process ${first.pid}, at ${first.url}\\).*${place.databasePath}.*DATABASE_PATH`
    ))
    expect(leftIn(place)).toEqual(sockets)
    expect((await post(first.url, 'foo=1')).status).toBe(204)
  })

  test.each<{ what: string, make: (place: Place) => string, code?: number, says: RegExp }>([
    {
      what: 'a database below a file',
      make: ({ tmp }) => {
        writeFileSync(join(tmp, 'file'), '')
        return join(tmp, 'file', 'numbers.db')
      },
      says: /DATABASE_PATH/,
    },
    {
      what: 'a directory in place of the database',
      make: ({ databasePath }) => {
        mkdirSync(databasePath, { recursive: true })
        return databasePath
      },
      says: /numbers\.db can't be (read|opened).*DATABASE_PATH/,
    },
    {
      what: 'a file that is no database',
      make: ({ tmp }) => {
        writeFileSync(join(tmp, 'letter.txt'), 'Dear reader, '.repeat(1000))
        return join(tmp, 'letter.txt')
      },
      says: /letter\.txt can't be (read|opened).*not a database.*DATABASE_PATH/,
    },
    {
      what: 'a database of a newer version',
      make: ({ tmp }) => {
        const db = new Database(join(tmp, 'newer.db'))
        db.pragma('user_version = 1000')
        db.close()
        return join(tmp, 'newer.db')
      },
      says: /newer\.db has schema version 1000 .*newer/,
    },
  ])('$what', async ({ make, says, code = 1 }) => {
    const place = await makePlace('the embedded queue')
    const path = make(place)
    await attempt(place, { DATABASE_PATH: path }, { code, says })
  })

  test('a Redis that is not there', async () => {
    const place = await makePlace('the embedded queue')
    const port = await freePort()
    await attempt(place, { REDIS_URL: `redis://:secret@127.0.0.1:${port}` },
      { code: 1, says: new RegExp(`^(?!.*secret).*redis://127.0.0.1:${port} can't be used.*REDIS_URL`) })
    expect(existsSync(place.databasePath)).toBe(false)
  })
})

const programs = ['bin/start.ts', 'apps/web/src/main.ts', 'apps/consumer/src/main.ts']

test.each(programs)('%s names every problem of its environment at once', async (module) => {
  const place = await makePlace('the embedded queue')
  const program = new Program(process.execPath, [module], {
    ...place.env,
    REDIS_URL: 'http://127.0.0.1',
    PORT: '70000',
    ACK: 'maybe',
    FLUSH_INTERVAL_MS: '1.5',
    ACK_TIMEOUT_MS:
      '30001',
    CORS_ORIGINS: 'example.org',
    BODY_PAIRS_MAX: 'many',
    HOST: '',
  })
  expect(await program.exited).toBe(78)
  for (const name of ['REDIS_URL', 'PORT', 'ACK', 'FLUSH_INTERVAL_MS', 'ACK_TIMEOUT_MS', 'CORS_ORIGINS',
    'BODY_PAIRS_MAX']) {
    expect(program.output).toMatch(new RegExp(`^  ${name} must be `, 'm'))
  }
  expect(program.output).toMatch(/7 problems/)
  expect(program.output).not.toMatch(/HOST|\n +at /)
  expect(existsSync(dirname(place.databasePath))).toBe(false)
})

test.each(['start', 'web', 'consumer', 'verify', 'rejected', 'rebind', 'backup'])(
  '%s names an option that it does not know, in one line', async (name) => {
    const program = startCommand(name, ['--bogus'], {})
    expect(await program.exited).toBe(64)
    expect(program.output).toMatch(/^gearbox: .*--bogus.*\n$/)
  })

// Two stops sit out their deadline of 10 s.
test('what a stopping worker can not push to a dead Redis waits in UNSENT_DIR, and counts once after the next start',
  { timeout: 60_000 }, async () => {
    const redis = await RedisServer.start()
    onTestFinished(async () => { await redis.stop() })
    const dir = temporaryDir()
    const unsentDir = join(dir, 'unsent')
    const env = {
      REDIS_URL: redis.url,
      DATABASE_PATH: join(dir, 'numbers.db'),
      PORT: String(await freePort()),
      UNSENT_DIR: unsentDir,
      ACK_TIMEOUT_MS: '500',
    }
    const startWeb = async (): Promise<Program & { url: string }> =>
      endWithTest(await listening(new Program(process.execPath, ['apps/web/src/main.ts'], env, { detached: true })))
    // Beside it an npm start that has nowhere to leave anything: a file stands where the directory should be.
    writeFileSync(join(dir, 'file'), '')
    const unlucky = await start({
      ...await makePlace('the embedded queue'),
      env: {
        ...env,
        DATABASE_PATH: join(dir, 'unlucky.db'),
        QUEUE_NAME: 'unlucky',
        UNSENT_DIR: join(dir, 'file', 'unsent'),
        PORT: '0',
      },
    })
    const web = await startWeb()

    expect((await post(web.url, 'foo=1')).status).toBe(204)
    await redis.kill()
    expect((await post(web.url, 'foo=10')).status, 'not reached in time').toBe(202)
    expect((await post(`${web.url}/increment?ack=memory`, 'foo=100&bar=-5', { 'idempotency-key': 'once' })).status)
      .toBe(202)
    expect((await post(`${web.url}/increment?ack=memory`, 'foo=1000')).status).toBe(202)
    expect((await post(`${unlucky.url}/increment?ack=memory`, 'foo=1')).status).toBe(202)
    expect((await fetch(`${web.url}/readyz`)).status).toBe(503)
    const stoppedAt = performance.now()
    web.kill('SIGTERM')
    unlucky.kill('SIGTERM')
    expect(await unlucky.exited, unlucky.output).toBe(75)
    expect(performance.now() - stoppedAt, 'ms for workers and consumer together').toBeLessThan(12_500)
    expect(unlucky.output).toMatch(/\b1 batch(es)? .*lost.*unsent/)
    expect(await web.exited, web.output).toBe(0)
    const [file, ...others] = readdirSync(unsentDir)
    expect(others).toEqual([])
    expect(file).toMatch(/^[0-9a-f-]{36}\.jsonl$/)
    expect(web.output).toContain(join(unsentDir, file!))
    const copy = join(dir, 'copy.jsonl')
    copyFileSync(join(unsentDir, file!), copy)

    await redis.startAgain()
    const successor = await startWeb()
    const consumer = endWithTest(new Program(process.execPath, ['apps/consumer/src/main.ts'], env, { detached: true }))
    await until('the file to go', () => readdirSync(unsentDir).length === 0)
    expect(readTotals(env.DATABASE_PATH)).toEqual(new Map([['foo', 1111n], ['bar', -5n]]))
    successor.kill('SIGTERM')
    expect(await successor.exited).toBe(0)

    // As after a crash between the push and the file's removal.
    copyFileSync(copy, join(unsentDir, file!))
    const again = await startWeb()
    await until('the file to go', () => readdirSync(unsentDir).length === 0)
    expect((await post(`${again.url}/increment?ack=stored`, 'last=1')).status).toBe(204)
    expect(readTotals(env.DATABASE_PATH)).toEqual(new Map([['foo', 1111n], ['bar', -5n], ['last', 1n]]))
    again.kill('SIGTERM')
    consumer.kill('SIGTERM')
    expect(await again.exited).toBe(0)
    expect(await consumer.exited).toBe(0)
  })
