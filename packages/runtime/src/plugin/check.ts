// Whether what a module exports is a plugin, and plugins can be loaded together: names, members, rows of settings and
// commands. Everything that a slip in a plugin's file could be is named here, in one line.
import { isPluginName } from '@gearbox/protocol/plugin-entry.ts'
import { findNear } from '../nearest.ts'
import { commandNames } from '../process/command-parts.ts'
import { variableName } from '../settings/schema.ts'
import { quote } from '../settings/setting.ts'
import type { Plugin } from './plugin.ts'
import { hasPrefix, ownerOf, prefixOf } from './prefixes.ts'

/** The members of a plugin, and what each must be. */
const members: Readonly<Record<keyof Plugin, 'string' | 'object' | 'function' | 'array'>> = {
  name: 'string',
  settings: 'object',
  web: 'function',
  consumer: 'object',
  commands: 'array',
  verify: 'function',
  rebind: 'object',
}

const consumerMembers = {
  migrations: 'array', apply: 'function', afterSums: 'function', afterCorrection: 'function', afterCommit: 'function',
}
const rebindMembers = { options: 'object', run: 'function' }

/** A module's default export as a plugin. @throws Error that says why it is none */
export function checkPlugin (value: unknown): Plugin {
  if (!isObject(value)) {
    throw new Error("its default export is no plugin; write: export default definePlugin({ name: '…' })")
  }
  if (!isPluginName(value.name)) {
    throw new Error('its default export needs a "name" of up to 32 lower-case letters, digits and dashes' +
      (value.name === undefined ? '' : `, not ${quote(String(value.name))}`))
  }
  const { name, settings, consumer, rebind, commands } = value
  const owner = ownerOf(name)
  if (owner !== undefined) {
    throw new Error(`the name ${quote(name)} can't be had: the prefix ${prefixOf(name.split('-', 1)[0]!)}_ is ${owner}`)
  }
  checkMembers('it', value, members)
  if (isObject(consumer)) checkMembers('its "consumer"', consumer, consumerMembers)
  if (isObject(rebind)) checkMembers('its "rebind"', rebind, rebindMembers)
  if (isObject(consumer)) checkMigrations(consumer.migrations)
  if (isObject(settings)) checkSettings(name, settings)
  if (isObject(rebind)) checkRebind(name, rebind)
  if (Array.isArray(commands)) for (const command of commands) checkCommand(command)
  if (!isPlugin(value)) throw new Error('its default export is no plugin')
  return value
}

/** @throws Error that names two plugins which can't be loaded together */
export function checkTogether (plugins: readonly Plugin[]): void {
  const commands = new Map<string, string>()
  for (const [i, { name, commands: own = [] }] of plugins.entries()) {
    const others = plugins.slice(0, i)
    for (const { name: other } of others) {
      const [one, two] = [prefixOf(name), prefixOf(other)]
      if (one === two) throw new Error(`two plugins are called ${quote(name)}`)
      if (hasPrefix(one, two) || hasPrefix(two, one)) {
        throw new Error(`the plugins ${quote(other)} and ${quote(name)} can't be loaded together: ` +
          'the variables of one begin as those of the other do')
      }
    }
    for (const { name: command } of own) {
      const other = commands.get(command)
      if (other !== undefined) {
        throw new Error(`the plugins ${quote(other)} and ${quote(name)} both have a command ${quote(command)}`)
      }
      commands.set(command, name)
    }
  }
}

function isObject (value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null
}

/** Once its members were checked. */
function isPlugin (value: object): value is Plugin {
  return 'name' in value
}

function checkMembers (
  what: string, value: Readonly<Record<string, unknown>>, known: Readonly<Record<string, string>>
): void {
  for (const [member, found] of Object.entries(value)) {
    const type = Object.hasOwn(known, member) ? known[member] : undefined
    if (type === undefined) {
      const near = findNear(member, Object.keys(known))
      throw new Error(`${what} has ${quote(member)}, which is nothing that a plugin has` +
        (near === undefined ? `; there are ${Object.keys(known).join(', ')}` : `; did you mean "${near}"?`))
    }
    if (found === undefined) continue
    if (typeOf(found) !== type) throw new Error(`${what} has a "${member}" that is no ${type}`)
  }
}

function typeOf (value: unknown): string {
  return Array.isArray(value) ? 'array' : value === null ? 'null' : typeof value
}

function checkMigrations (migrations: unknown): void {
  if (!Array.isArray(migrations)) return
  const wrong = migrations.findIndex((script) => typeof script !== 'string' || script.trim() === '')
  if (wrong !== -1) throw new Error(`its migration ${wrong + 1} is no SQL script`)
}

function checkSettings (name: string, settings: Readonly<Record<string, unknown>>): void {
  const prefix = prefixOf(name)
  const seen = new Set<string>()
  for (const [setting, row] of Object.entries(settings)) {
    const variable = variableName(setting)
    if (!/^[a-z][A-Za-z0-9]*$/.test(setting)) {
      throw new Error(`its setting ${quote(setting)} must be a name such as ${camel(`${name}-limit`)}`)
    }
    if (!hasPrefix(variable, prefix)) {
      throw new Error(`its setting ${quote(setting)} is the variable ${variable}, which is outside its prefix: ` +
        `${prefix} or ${prefix}_…; call it ${camel(name)}${setting[0]!.toUpperCase()}${setting.slice(1)}`)
    }
    if (seen.has(variable)) throw new Error(`${variable} is the variable of two of its settings`)
    seen.add(variable)
    checkRow(setting, row)
  }
}

function checkRow (setting: string, row: unknown): void {
  const fail = (why: string): never => { throw new Error(`its setting ${quote(setting)} ${why}`) }
  if (!isObject(row)) return fail('is no row; make one with integer, oneOf, path, list or optional')
  if (typeof row.parse !== 'function') fail('has no "parse"')
  if (typeof row.about !== 'string' || /[\r\n]/.test(row.about)) fail('has no "about" in one line')
  if (row.fallback !== undefined && typeof row.fallback !== 'string') fail('has a "fallback" that is no text')
  if (row.shown !== undefined && typeof row.shown !== 'string') fail('has a "shown" that is no text')
}

function checkRebind (name: string, { options, run }: Readonly<Record<string, unknown>>): void {
  if (typeof run !== 'function') throw new Error('its "rebind" has no "run"')
  for (const [option, value] of isObject(options) ? Object.entries(options) : []) {
    if (!/^[a-z][a-z0-9-]*$/.test(option) || (option !== name && !option.startsWith(`${name}-`))) {
      throw new Error(`its option ${quote(option)} of rebind must begin with the plugin's name: ${name}-…`)
    }
    if (!isObject(value) || value.type !== 'string' || typeof value.usage !== 'string') {
      throw new Error(`its option ${quote(option)} of rebind must have the type 'string', and a "usage"`)
    }
  }
}

function checkCommand (command: unknown): void {
  if (!isObject(command) || typeof command.name !== 'string' || !/^[a-z][a-z0-9-]*$/.test(command.name)) {
    throw new Error('it has a command without a "name" of lower-case letters, digits and dashes')
  }
  const { name } = command
  if (commandNames.some((taken) => taken === name)) {
    throw new Error(`its command ${quote(name)} is one of Gearbox's own`)
  }
  if (typeof command.run !== 'function' || typeof command.summary !== 'string' || typeof command.usage !== 'string' ||
    !isObject(command.options) || !Array.isArray(command.settings)) {
    throw new Error(`its command ${quote(name)} needs summary, usage, options, settings and run; use defineCommand`)
  }
}

/** `my-plugin` → `myPlugin` */
function camel (name: string): string {
  return name.replaceAll(/-(.)/g, (_, letter: string) => letter.toUpperCase())
}
