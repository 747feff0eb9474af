// What plugins add to commands: checks of their own tables, and what they do when a database gets a new identity.
import { expect, test } from 'vitest'
import { definePlugin, type LoadedPlugin, type Plugin } from '@gearbox/runtime/plugin.ts'
import { element } from '@gearbox/test-kit/batches.ts'
import { verifyPlugins } from '../src/commands/verify/of-plugins.ts'
import { freshPath, openStore, query } from './open-store.ts'
import { listPlugin } from './plugin-parts.ts'

function checking (verify: NonNullable<Plugin['verify']>): LoadedPlugin {
  return { plugin: definePlugin({ name: 'list', verify }), settings: {} }
}

test('verify has the findings of each plugin; one that fails or writes is a finding itself', () => {
  const { store, path } = openStore({ plugins: [listPlugin()] })
  store.apply([element({ seq: 1, entries: [{ plugin: 'list', data: 'one' }] })])
  expect(verifyPlugins(path, [
    listPlugin(),
    checking((database) => [{
      text: `${database.get<{ items: number }>('SELECT count(*) AS items FROM list_items')?.items} items`, right: true,
    }]),
    checking((database) => { database.run('DELETE FROM list_items'); return [] }),
    checking((database) => database.all('SELECT * FROM list_nothing')),
  ])).toEqual([
    { text: '1 items', right: true },
    { text: expect.stringMatching(/^plugin list CAN'T BE VERIFIED: attempt to write a readonly/), right: false },
    { text: expect.stringMatching(/^plugin list CAN'T BE VERIFIED: no such table: list_nothing$/), right: false },
  ])
  expect(query(path, 'SELECT count(*) FROM list_items').flat()).toEqual([1n])
  expect(verifyPlugins(freshPath(), [listPlugin()])).toEqual([])
})

test('what a plugin does when a database gets a new identity is done in one transaction with it, or neither', () => {
  const { store, path } = openStore({ plugins: [listPlugin()] })
  const before = store.owner
  expect(() => store.renew((databaseOf) => {
    databaseOf('list').run("INSERT INTO list_items(text) VALUES ('floor')")
    throw new Error('a wrong value')
  })).toThrow('a wrong value')
  expect(() => store.renew((databaseOf) => {
    try {
      databaseOf('list').run('INSERT OR ROLLBACK INTO list_items(text) VALUES (NULL)')
    } catch {}
  })).toThrow(/ended the transaction/)
  expect(store.owner).toEqual(before)
  expect(query(path, 'SELECT text FROM list_items')).toEqual([])
  const renewed = store.renew((databaseOf) => {
    databaseOf('list').run("INSERT INTO list_items(text) VALUES ('floor')")
  })
  expect(renewed.uuid).not.toBe(before.uuid)
  expect(query(path, 'SELECT text FROM list_items').flat()).toEqual(['floor'])
})
