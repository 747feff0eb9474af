// What --check prints: the parts that would run, the plugins, and the settings that are not the defaults. No secrets:
// of a setting that is not known to be harmless it says only that it is set.
import type { Config } from '../config.ts'
import { variableName, type Schema } from '../settings/schema.ts'
import { quote } from '../settings/setting.ts'
import { allRows } from './configuration.ts'
import type { LoadedPlugin } from './plugin.ts'

/** What a command would run: lines of a name and what it is. */
export type WouldRun = Readonly<Record<string, string>>

/** The whole report. @param listed the core's settings that the command reads @param env as they are set */
export function describeCheck (
  parts: WouldRun, listed: ReadonlyArray<keyof Config>, plugins: readonly LoadedPlugin[], env: NodeJS.ProcessEnv
): string {
  const all = allRows(plugins.map(({ plugin }) => plugin))
  const rows = Object.fromEntries(Object.entries(all).filter(([name]) =>
    listed.some((one) => one === name) || plugins.some(({ plugin: { settings = {} } }) => name in settings)))
  const lines = {
    ...parts,
    plugins: plugins.length === 0 ? 'none' : plugins.map(describePlugin).join(', '),
    settings: changed(rows, env).join(' ') || 'all by default',
  }
  const width = Math.max(...Object.keys(lines).map((name) => name.length))
  const text = Object.entries(lines).map(([name, what]) => `${name.padEnd(width)}  ${what}\n`).join('')
  return `${text}The configuration is right; nothing was started.\n`
}

function describePlugin ({ plugin: { name, consumer } }: LoadedPlugin): string {
  const version = consumer?.migrations?.length ?? 0
  return version === 0 ? name : `${name} (tables of version ${version})`
}

/** The variables that are set to something else than their default. */
function changed (rows: Schema, env: NodeJS.ProcessEnv): string[] {
  return Object.entries(rows).flatMap(([name, { fallback, printable }]) => {
    const variable = variableName(name)
    const text = env[variable] ?? ''
    if (text === '' || text === fallback) return []
    return `${variable}=${printable === true ? shown(text) : '…'}`
  })
}

function shown (text: string): string {
  return /^[\w./:,@*+-]{1,64}$/.test(text) ? text : quote(text)
}
