// Tables of plugins in a database that is restored, and in one that a plugin can't work with, with real processes.
import { copyFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { launchConsumer, makePlaceFor, query, runCommand, startGearbox, stop } from './fixtures.ts'

/** The path of a plugin that writes down what it is told. */
function writePlugin (migration: string): string {
  const path = join(temporaryDir(), 'diary.ts')
  writeFileSync(path, `import { definePlugin } from '@gearbox/runtime/plugin.ts'
    export default definePlugin({
      name: 'diary',
      consumer: {
        migrations: [${JSON.stringify(migration)}],
        afterSums: ({ sums }, { database }) => {
          for (const { json } of sums) database.run('INSERT INTO diary_lines(text) VALUES (?)', json)
        },
      },
      rebind: {
        options: { 'diary-note': { type: 'string', usage: 'TEXT: is written into the diary' } },
        run: (database, values) => {
          database.run('INSERT INTO diary_lines(text) VALUES (?)', values['diary-note'] ?? 'no note')
          return ['diary: noted']
        },
      },
    })`)
  return path
}

test('a rebind after a restore has plugins do their part, with their options', async () => {
  const place = await makePlaceFor('Redis', { PLUGINS: writePlugin('CREATE TABLE diary_lines(text TEXT) STRICT') })
  const { databasePath } = place
  for (const key of ['before', 'after']) {
    const gearbox = await startGearbox(place)
    expect((await post(`${gearbox.url}/increment?ack=stored`, `${key}=1`)).status).toBe(204)
    await stop(gearbox)
    if (key === 'before') copyFileSync(databasePath, `${databasePath}.copy`)
  }
  const lines = (): unknown[] => query(databasePath, 'SELECT text FROM diary_lines')
  expect(lines()).toEqual([{ text: '{"before":1}' }, { text: '{"after":1}' }])
  copyFileSync(`${databasePath}.copy`, databasePath)
  for (const suffix of ['-wal', '-shm']) rmSync(databasePath + suffix, { force: true })
  const rebound = await runCommand(place, 'rebind', ['--diary-note', 'restored', databasePath])
  expect(rebound, rebound.output).toMatchObject({ code: 0, output: expect.stringMatching(/^diary: noted$/m) })
  expect(lines()).toEqual([{ text: '{"before":1}' }, { text: 'restored' }])
})

test('a plugin whose tables can not be made ends the consumer with one line, and nothing is changed', async () => {
  const place = await makePlaceFor('Redis', { PLUGINS: writePlugin('CREATE TABLE other(text TEXT) STRICT') })
  const consumer = launchConsumer(place, place.databasePath)
  expect(await consumer.exited, consumer.output).toBe(78)
  expect(consumer.output).toContain('plugin diary: migration 1 failed: its table "other" is not its own')
  expect(consumer.output).not.toMatch(/\n +at /)
  expect(query(place.databasePath, "SELECT name FROM sqlite_schema WHERE name = 'other'")).toEqual([])
})
