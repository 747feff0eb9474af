// `npm run backup` while everything counts, and the way back from one, as the README describes it.
import { copyFileSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { Load, readTotals } from '@gearbox/test-kit/gearbox.ts'
import { metric } from '@gearbox/test-kit/metrics.ts'
import { makePlaceFor, modes, query, runCommand, startGearbox, stop } from './fixtures.ts'

describe.each(modes)('with %s', (mode) => {
  test('a copy made under load is one moment of it, and counts again from there when it is restored', async () => {
    const place = await makePlaceFor(mode, { COMMIT_INTERVAL_MS: '0' })
    const gearbox = await startGearbox(place)
    const [load, url] = [new Load(gearbox.url), `${gearbox.url}/increment`]
    // Both halves of a request are in one batch, which a moment has whole or not at all.
    const counting = new AbortController()
    const pairs = (async () => { while (!counting.signal.aborted) await post(url, 'left=1&right=-1') })()
    await load.more(300)
    const least = readTotals(place.databasePath)
    const commits = await metric(gearbox.url, 'gearbox_commit_duration_seconds_count')
    const copy = join(place.dir, 'copy.db')
    const made = await runCommand(place, 'backup', [copy])
    expect(made.code, made.output).toBe(0)
    expect(made.output).toMatch(/\d+ keys, checked/)
    expect(await metric(gearbox.url, 'gearbox_commit_duration_seconds_count'),
      'commits meanwhile').toBeGreaterThan(commits)
    await load.more(50)
    const most = readTotals(place.databasePath)

    expect(query(copy, 'PRAGMA integrity_check')).toEqual([{ integrity_check: 'ok' }])
    const kept = readTotals(copy)
    expect(kept.get('left')).toBe(-kept.get('right')!)
    for (const [key, total] of kept) {
      if (key === 'right') continue
      expect(total >= (least.get(key) ?? 0n) && total <= most.get(key)!, key).toBe(true)
    }
    // The totals belong to just the batches that it says it has.
    const absolute = [...kept.values()].reduce((sum, total) => sum + (total < 0n ? -total : total), 0n)
    expect(query(copy, 'SELECT sum(increments) AS increments FROM producers'))
      .toEqual([{ increments: Number(absolute) }])

    const again = await runCommand(place, 'backup', [copy])
    expect(again.code).not.toBe(0)
    expect(again.output).toMatch(/exists/)
    expect(readTotals(copy)).toEqual(kept)

    counting.abort()
    await pairs
    await load.stop()
    await stop(gearbox)
    copyFileSync(copy, place.databasePath)
    for (const suffix of ['-wal', '-shm']) rmSync(place.databasePath + suffix, { force: true })
    if (mode === 'Redis') {
      const rebound = await runCommand(place, 'rebind', [place.databasePath])
      expect(rebound.code, rebound.output).toBe(0)
    }
    const restored = await startGearbox(place)
    expect((await post(`${restored.url}/increment?ack=stored`, 'left=1&new=5')).status).toBe(204)
    await stop(restored)
    expect(readTotals(place.databasePath)).toEqual(new Map(kept).set('left', kept.get('left')! + 1n).set('new', 5n))
  })
})

test('a copy ends although commits never do', async () => {
  const place = await makePlaceFor('the embedded queue', { COMMIT_INTERVAL_MS: '0' })
  const gearbox = await startGearbox(place)
  const filler = 'x'.repeat(200)
  await Promise.all(Array.from({ length: 100 }, async (_, i) => {
    await post(gearbox.url, Array.from({ length: 250 }, (_, j) => `${filler}${i}-${j}=1`).join('&'))
  }))
  const load = new Load(gearbox.url, 'busy', 6)
  await load.more(100)
  const startedAt = performance.now()
  const made = await runCommand(place, 'backup', [join(place.dir, 'copy.db')])
  expect(made.code, made.output).toBe(0)
  expect(performance.now() - startedAt, 'ms').toBeLessThan(10_000)
  await load.stop()
  await stop(gearbox)
})

test('what can not be copied is named, and nothing is left of the attempt', async () => {
  const place = await makePlaceFor('the embedded queue')
  const { databasePath, dir } = place
  const target = join(dir, 'copy.db')
  expect(await runCommand(place, 'backup', [target]))
    .toMatchObject({ code: 1, output: expect.stringMatching(/there is no database/) })
  expect(await runCommand(place, 'backup', []))
    .toMatchObject({ code: 1, output: expect.stringMatching(/name the copy/) })
  const gearbox = await startGearbox(place)
  expect((await post(`${gearbox.url}/increment?ack=stored`,
    Array.from({ length: 500 }, (_, i) => `key ${i}=1`).join('&'))).status).toBe(204)
  await stop(gearbox)
  const [before, files] = [readFileSync(databasePath), readdirSync(dir)]
  const damaged = join(dir, 'damaged.db')
  const bytes = Buffer.from(before)
  bytes.fill(0xaa, 4096 * 3, 4096 * 5)
  writeFileSync(damaged, bytes)
  const made = await runCommand({ ...place, env: { ...place.env, DATABASE_PATH: damaged } }, 'backup', [target])
  expect(made.code, made.output).toBe(1)
  expect(made.output).not.toMatch(/unexpected|\n +at /)
  expect(existsSync(target)).toBe(false)
  expect(readdirSync(dir).filter((name) => !name.startsWith('damaged'))).toEqual(files)
  const unwritable = await runCommand(place, 'backup', [join(dir, 'not-there', 'copy.db')])
  expect(unwritable.code, unwritable.output).toBe(1)
  expect(unwritable.output).not.toMatch(/unexpected|\n +at /)
  const db = new Database(databasePath, { readonly: true })
  onTestFinished(() => { db.close() })
  expect(db.prepare('SELECT count(*) FROM numbers').pluck().get()).toBe(500)
})
