// Plugins for tests of the consumer's side: one that keeps a list, and whatever a test passes instead.
import { definePlugin, type AppliedEntry, type ConsumerPart, type LoadedPlugin } from '@gearbox/runtime/plugin.ts'

/** The settings of a plugin that has none. */
export type NoSettings = LoadedPlugin['settings']

/** The table of the plugin `list`. */
export const listMigration = 'CREATE TABLE list_items(number INTEGER PRIMARY KEY, text TEXT NOT NULL) STRICT'

/** Appends the text that an entry brings. @returns its number */
export const append: NonNullable<ConsumerPart<NoSettings>['apply']> = ({ data }, { database }) => {
  database.run('INSERT INTO list_items(text) VALUES (?)', String(data))
  return database.get<{ number: number }>('SELECT max(number) AS number FROM list_items')?.number ?? null
}

/** A plugin with a consumer part and nothing else. */
export function namedPlugin (name: string, consumer: ConsumerPart<NoSettings>): LoadedPlugin {
  return { plugin: definePlugin({ name, consumer }), settings: {} }
}

/** A plugin `list` whose consumer part is what is given, in addition to its table. */
export function listPlugin (part: ConsumerPart<NoSettings> = { apply: append }): LoadedPlugin {
  return namedPlugin('list', { migrations: [listMigration], ...part })
}

/** The same, and all entries with which `apply` was called. */
export function recordingPlugin (apply = append): { loaded: LoadedPlugin, calls: AppliedEntry[] } {
  const calls: AppliedEntry[] = []
  const loaded = listPlugin({
    apply: (entry, context) => {
      calls.push(entry)
      return apply(entry, context)
    },
  })
  return { loaded, calls }
}
