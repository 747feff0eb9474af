// The database's file moved, removed or replaced while all runs: noticed within a second, said, and answered to;
// nothing is made in its place, and with the file back everything counts once.
import { spawnSync } from 'node:child_process'
import { copyFileSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, Load, Program, readTotals, startCommand } from '@gearbox/test-kit/gearbox.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  consumerModule, launchConsumer, makePlaceFor, modes, childOf, readiness, runCommand, startConsumer, startGearbox,
  startWeb, stop, stopAndExpectExact, type Place,
} from './fixtures.ts'

const said = /the database's file is not in its place/

async function notReady (url: string): Promise<string> {
  return await until('readyz to say so', async () => {
    const response = await fetch(`${url}/readyz`, { headers: { connection: 'close' } })
    return response.status === 503 ? await response.text() : undefined
  })
}

function move (from: string, to: string, suffixes: readonly string[]): void {
  for (const suffix of suffixes) if (existsSync(`${from}${suffix}`)) renameSync(`${from}${suffix}`, `${to}${suffix}`)
}

const everything = ['', '-wal', '-shm']

interface Move { readonly what: string, readonly away: (path: string) => void, readonly back: (path: string) => void }

const moves: readonly Move[] = [
  {
    what: 'renamed',
    away: (path) => move(path, `${path}.away`, ['']),
    back: (path) => move(`${path}.away`, path, ['']),
  },
  {
    what: 'moved with all its files',
    away: (path) => move(path, `${path}.away`, everything),
    back: (path) => move(`${path}.away`, path, everything),
  },
  {
    what: 'in a directory that is renamed',
    away: (path) => renameSync(dirname(path), `${dirname(path)}.away`),
    back: (path) => {
      // What workers left meanwhile lies in a directory of that name.
      rmSync(dirname(path), { recursive: true, force: true })
      renameSync(`${dirname(path)}.away`, dirname(path))
    },
  },
  {
    what: 'replaced by a copy',
    away: (path) => {
      copyFileSync(path, `${path}.copy`)
      move(path, `${path}.away`, everything)
      renameSync(`${path}.copy`, path)
    },
    back: (path) => move(`${path}.away`, path, everything),
  },
  {
    what: 'replaced by a FIFO',
    away: (path) => {
      move(path, `${path}.away`, [''])
      spawnSync('mkfifo', [path])
    },
    back: (path) => move(`${path}.away`, path, ['']),
  },
]

/** Nothing was made where it was, but what the test itself put there. */
function expectNothingMade (path: string, before: readonly string[]): void {
  const names = existsSync(dirname(path)) ? readdirSync(dirname(path)) : []
  expect(names.filter((name) => !before.includes(name) && !/\.lock|unsent/.test(name))).toEqual([])
}

describe.each(modes)('with %s', (mode) => {
  test.each(moves)('a database $what, under load', { timeout: 60_000 }, async ({ away, back }) => {
    const place = await makePlaceFor(mode)
    const gearbox = await startGearbox(place)
    const load = new Load(gearbox.url)
    await load.more(200)
    const movedAt = performance.now()
    away(place.databasePath)
    const before = existsSync(dirname(place.databasePath)) ? readdirSync(dirname(place.databasePath)) : []
    expect(await notReady(gearbox.url)).toMatch(/nothing is stored: the database's file is not in its place/)
    expect(performance.now() - movedAt).toBeLessThan(process.env.CI === undefined ? 3000 : 10_000)
    await gearbox.printed(said)
    expect((await post(`${gearbox.url}/increment?ack=stored`, 'probe=1')).status).not.toBe(204)
    await until('requests that are not answered as stored',
      async () => (await post(`${gearbox.url}/increment?ack=stored`,
        'probe=1')).status === (mode === 'Redis' ? 202 : 503))
    if (mode === 'Redis') expect((await post(`${gearbox.url}/increment?ack=queued`, 'other=1')).status).toBe(204)
    else expect(gearbox.output).not.toMatch(/data is lost|[Nn]othing is lost/)
    expectNothingMade(place.databasePath, before)
    back(place.databasePath)
    await gearbox.printed(/storing batches again/)
    await until('readyz', async () => await readiness(gearbox.url) === 200)
    await load.more(200)
    await stopAndExpectExact(gearbox, place, load)
  })

  test('a database that is moved while nothing is counted, and an own consumer that is killed meanwhile',
    { timeout: 60_000 }, async () => {
      const place = await makePlaceFor(mode)
      const gearbox = await startGearbox(place)
      expect((await post(`${gearbox.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
      move(place.databasePath, `${place.databasePath}.away`, everything)
      const movedAt = performance.now()
      await notReady(gearbox.url)
      expect(performance.now() - movedAt).toBeLessThan(3000)
      process.kill(await childOf(gearbox, consumerModule), 'SIGKILL')
      await gearbox.printed(/consumer ended/)
      await until('the next consumer to say so', () => gearbox.output.split('not in its place').length > 2)
      await notReady(gearbox.url)
      expect((await post(`${gearbox.url}/increment?ack=memory`, 'foo=10')).status).toBe(202)
      expect(existsSync(place.databasePath)).toBe(false)
      move(`${place.databasePath}.away`, place.databasePath, everything)
      // One worker may be ready before the other: until then that one refuses, and counts nothing.
      const status = await until('a request that is not refused', async () => {
        const reply = await post(`${gearbox.url}/increment?ack=stored`, 'foo=100')
        return reply.status === 503 ? undefined : reply.status
      })
      expect(status).toBe(204)
      await stop(gearbox)
      expect(readTotals(place.databasePath)).toEqual(new Map([['foo', 111n]]))
    })
})

test('with separate programs, workers elsewhere say so too, until that consumer is gone',
  { timeout: 60_000 }, async () => {
    const place = await makePlaceFor('Redis')
    const consumer = await startConsumer(place)
    const web = await startWeb(place, { DATABASE_PATH: join(place.dir, 'elsewhere.db') })
    expect((await post(`${web.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    move(place.databasePath, `${place.databasePath}.away`, everything)
    expect(await notReady(web.url)).toMatch(said)
    move(`${place.databasePath}.away`, place.databasePath, everything)
    await until('readyz', async () => await readiness(web.url) === 200)
    move(place.databasePath, `${place.databasePath}.away`, everything)
    await notReady(web.url)
    consumer.kill('SIGKILL')
    await consumer.exited
    // Without its database another consumer refuses, in one line that names the command.
    const refused = launchConsumer(place, place.databasePath)
    expect(await refused.exited).toBe(69)
    expect(refused.output).toContain(`npm run rebind -- ${place.databasePath}`)
    await until('what it reported to expire', async () => await readiness(web.url) === 200)
  })

// Starting over, and a consumer that has gone for good

test('with Redis kept and the database deleted, one command starts over, and what waits counts',
  { timeout: 60_000 }, async () => {
    const place = await makePlaceFor('Redis')
    const first = await startGearbox(place)
    expect((await post(`${first.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    await stop(first)
    const web = await startWeb(place)
    expect((await post(`${web.url}/increment`, 'foo=10')).status).toBe(204)
    await stop(web)
    rmSync(dirname(place.databasePath), { recursive: true })
    const refused = endWithTest(new Program(process.execPath, ['bin/start.ts'], { ...place.env, PORT: '0' }))
    expect(await refused.exited).toBe(69)
    expect(refused.output.trimEnd().split('\n')).toHaveLength(1)
    const [, command] = /npm run rebind -- (\S+)\n$/.exec(refused.output) ?? []
    expect(command).toBe(place.databasePath)
    expect(existsSync(place.databasePath)).toBe(false)
    const rebind = await runCommand(place, 'rebind', [place.databasePath])
    expect(rebind).toMatchObject({ code: 0, output: expect.stringMatching(/\(created\); 1 batch waits/) })
    const second = await startGearbox(place)
    await until('what waited', () => readTotals(place.databasePath).get('foo') === 10n)
    await stop(second)
  })

test('without REDIS_URL a database that belongs to Redis is refused in one line, and left as it is', async () => {
  const place = await makePlaceFor('Redis')
  await stop(await startGearbox(place))
  const bare = { ...place.env, REDIS_URL: undefined }
  const files = readdirSync(dirname(place.databasePath))
  const refused = endWithTest(new Program(process.execPath, ['bin/start.ts'], { ...bare, PORT: '0' }))
  expect(await refused.exited).toBe(69)
  expect(refused.output).toMatch(/^gearbox: .*REDIS_URL is unset.*npm run rebind -- --embedded .*\n$/)
  expect(readdirSync(dirname(place.databasePath))).toEqual(files)
  expect((await runCommand({ ...place, env: bare }, 'rebind', ['--embedded', place.databasePath])).code).toBe(0)
  await stop(await startGearbox({ ...place, env: bare }))
})

test('a stranger\'s database is refused by a start in one line, and nothing is made next to it', async () => {
  const place: Place = await makePlaceFor('the embedded queue')
  mkdirSync(dirname(place.databasePath))
  spawnSync('sqlite3', [place.databasePath, 'CREATE TABLE users(id)'])
  const start = endWithTest(new Program(process.execPath, ['bin/start.ts'], { ...place.env, PORT: '0' }))
  expect(await start.exited).toBe(1)
  expect(start.output).toMatch(/^gearbox: .*another application: it has table "users".*\n$/)
  expect(readdirSync(dirname(place.databasePath))).toEqual(['numbers.db'])
})

test('a rebind of a running installation is refused, and one whose consumer has gone for good says so everywhere',
  { timeout: 60_000 }, async () => {
    const place = await makePlaceFor('Redis')
    const gearbox = await startGearbox(place)
    const refused = await runCommand(place, 'rebind', [place.databasePath])
    expect(refused).toMatchObject({ code: 69, output: expect.stringContaining('nothing was changed') })
    expect((await post(`${gearbox.url}/increment?ack=stored`, 'foo=1')).status).toBe(204)
    const verify = async (): Promise<{ code: number | NodeJS.Signals, output: string }> => {
      const program = endWithTest(startCommand('verify', ['--url', gearbox.url], place.env))
      return { code: await program.exited, output: program.output }
    }
    expect((await verify()).code).toBe(0)

    const other = await runCommand(place, 'rebind', ['--force', join(place.dir, 'other.db')])
    expect(other.code, other.output).toBe(0)
    await gearbox.printed(/consumer exited and will not be restarted; web workers keep running/)
    const urls = Array.from({ length: 10 }, () => gearbox.url)
    for (const url of urls) expect(await notReady(url)).toMatch(/consumer exited and will not be restarted/)
    expect((await post(`${gearbox.url}/increment`, 'foo=10')).status, 'another consumer may take it').toBe(204)
    const after = await verify()
    expect(after.code).toBe(1)
    expect(after.output).toMatch(/NOT READY: .*consumer exited and will not be restarted/)
    // A worker that is started later knows as well.
    for (const { pid } of gearbox.children('apps/web')) process.kill(pid, 'SIGKILL')
    await until('new workers', async () => await readiness(gearbox.url).catch(() => 0) === 503)
    for (const url of urls) expect(await notReady(url)).toMatch(/consumer exited and will not be restarted/)
    gearbox.kill('SIGTERM')
    await gearbox.exited
  })

test('a temporary directory that is tidied up under all of it: workers and consumer that are started again still ' +
  'find each other', { timeout: 60_000 }, async () => {
  const place = await makePlaceFor('the embedded queue')
  const gearbox = await startGearbox(place)
  const load = new Load(gearbox.url)
  const tmp = join(place.dir, 'tmp')
  const dir = join(tmp, readdirSync(tmp)[0]!)
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  for (const module of ['apps/web', consumerModule]) {
    await load.more(50)
    await until('the directory', () => existsSync(join(dir, 'queue')))
    rmSync(dir, { recursive: true })
    await load.more(50)
    process.kill(await childOf(gearbox, module), 'SIGKILL')
    // Ready is what it may still say before it has noticed.
    await until('a request that is stored',
      async () => (await post(`${gearbox.url}/increment?ack=stored`, 'foo=1').catch(() => undefined))?.status === 204)
    await load.more(50)
  }
  await stopAndExpectExact(gearbox, place, load, ['memory'])
  expect(existsSync(dir)).toBe(false)
})
