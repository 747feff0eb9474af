// PLUGINS: which plugins are loaded.
import { quote } from '../settings/setting.ts'

/** The plugins in the folder `plugins/` that are loaded where PLUGINS is unset: one list, in this one place. */
export const builtInPlugins: readonly string[] = ['tickets']

/** Reads PLUGINS. Their order means nothing. @throws Error whose message completes "PLUGINS …" */
export function parsePlugins (text: string): readonly string[] {
  if (text === 'none') return []
  const names = text.split(',').map((name) => name.trim())
  for (const [i, name] of names.entries()) {
    if (name === '') throw new Error('must be comma-separated plugins, none of them empty; or none')
    if (name === 'none') throw new Error('must be plugins, or none alone')
    if (names.indexOf(name) !== i) throw new Error(`names ${quote(name)} twice`)
  }
  return names
}

/** Whether a name in PLUGINS is the path of a file. */
export function isPath (name: string): boolean {
  return /^\.{0,2}\//.test(name) || /^\.{1,2}$/.test(name)
}
