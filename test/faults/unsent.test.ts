// Two installations that share a directory for unsent batches, as those whose databases are in one folder do: each
// pushes its own.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, readTotals, startCommand } from '@gearbox/test-kit/gearbox.ts'
import { freePort } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  freeze, makePlace, childOf, startConsumer, startGearbox, startRedis, startWeb, stop, type Place,
} from './fixtures.ts'

function unsentFiles (dir: string): string[] {
  return existsSync(dir)
    ? readdirSync(dir).filter((name) => name.endsWith('.jsonl')).map((name) => join(dir, name))
    : []
}

async function verify ({ env }: Place, url: string): Promise<{ code: number | NodeJS.Signals, output: string }> {
  const program = endWithTest(startCommand('verify', ['--url', url], env))
  return { code: await program.exited, output: program.output }
}

test('with embedded queues: what one leaves is not touched by the other, and counts once at its own next start',
  { timeout: 60_000 }, async () => {
    const dir = temporaryDir()
    const ours = makePlace(undefined,
      { DATABASE_PATH: join(dir, 'ours.db'), WEB_WORKERS: '1', ACK_TIMEOUT_MS: '5000', PORT: String(await freePort()) })
    const theirs = makePlace(undefined,
      {
        DATABASE_PATH: join(dir, 'theirs.db'),
        WEB_WORKERS: '2',
        ACK_TIMEOUT_MS: '5000',
        PORT: String(await freePort()),
      })
    const first = await startGearbox(ours)
    expect((await post(`${first.url}/increment?ack=stored`, 'a=1')).status).toBe(204)
    const worker = await childOf(first, 'apps/web')
    const consumer = await childOf(first, 'apps/consumer')
    freeze(consumer)
    expect((await post(`${first.url}/increment?ack=memory`, 'a=10')).status).toBe(202)
    expect((await post(`${first.url}/increment?ack=memory`, 'a=100')).status).toBe(202)
    // The worker leaves its file; nobody is left to start another one.
    first.kill('SIGSTOP')
    process.kill(worker, 'SIGTERM')
    const [file] = await until('the file',
      () => unsentFiles(join(dir, 'unsent')).length === 1 ? unsentFiles(join(dir, 'unsent')) : undefined)
    first.killGroup('SIGKILL')
    await first.exited
    const content = readFileSync(file!)

    const other = await startGearbox(theirs)
    await other.printed(/belongs to database/)
    expect((await post(`${other.url}/increment?ack=stored`, 'b=1')).status).toBe(204)
    const { code, output } = await verify(theirs, other.url)
    expect(output).toMatch(/unsent file \S+ is not counted: it belongs to database [0-9a-f-]{36}/)
    expect(code, output).toBe(0)
    await stop(other)
    expect(readTotals(theirs.databasePath)).toEqual(new Map([['b', 1n]]))
    expect(readFileSync(file!).equals(content)).toBe(true)

    const again = await startGearbox(ours)
    await until('the file to go', () => unsentFiles(join(dir, 'unsent')).length === 0)
    await stop(again)
    expect(readTotals(ours.databasePath)).toEqual(new Map([['a', 111n]]))
  })

test('with queues in one Redis: what a worker of one leaves is pushed by its own next worker only',
  { timeout: 60_000 }, async () => {
    const redis = await startRedis()
    const dir = temporaryDir()
    const [ours, theirs] = ['ours', 'theirs'].map((name) => makePlace(redis.url, {
      DATABASE_PATH: join(dir, `${name}.db`), QUEUE_NAME: name, ACK_TIMEOUT_MS: '5000',
    })) as [Place, Place]
    const consumers = [await startConsumer(ours), await startConsumer(theirs)] as const
    const web = await startWeb(ours)
    expect((await post(`${web.url}/increment?ack=stored`, 'a=1')).status).toBe(204)
    await redis.kill()
    expect((await post(`${web.url}/increment?ack=memory`, 'a=10&c=1')).status).toBe(202)
    web.kill('SIGTERM')
    expect(await web.exited, web.output).toBe(0)
    expect(web.output).toMatch(/1 batches \(2 increments\) are not known to be in the queue or stored: they wait in/)
    await redis.startAgain()
    const [file] = unsentFiles(join(dir, 'unsent'))
    const content = readFileSync(file!)

    const other = await startWeb(theirs)
    await other.printed(/belongs to database/)
    expect((await post(`${other.url}/increment?ack=stored`, 'b=1')).status).toBe(204)
    expect(readFileSync(file!).equals(content)).toBe(true)
    const { code, output } = await verify(theirs, other.metricsUrl)
    expect(output).toMatch(/unsent file \S+ is not counted: it belongs to database [0-9a-f-]{36}/)
    expect(code, output).toBe(0)

    const next = await startWeb(ours)
    await until('the file to go', () => unsentFiles(join(dir, 'unsent')).length === 0)
    await stop(other, next, ...consumers)
    expect(readTotals(ours.databasePath)).toEqual(new Map([['a', 11n], ['c', 1n]]))
    expect(readTotals(theirs.databasePath)).toEqual(new Map([['b', 1n]]))
  })
