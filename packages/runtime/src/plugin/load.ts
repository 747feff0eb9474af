// Loads the plugins that PLUGINS names, in every process that runs parts of them. A plugin that can't be loaded ends
// the process: one that was left out in silence would lose what it was to do.
import { existsSync, readdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { pathToFileURL } from 'node:url'
import { isPluginName } from '@gearbox/protocol/plugin-entry.ts'
import { FatalError } from '../errors.ts'
import { findNear } from '../nearest.ts'
import { exitCode } from '../process/exit-codes.ts'
import { quote } from '../settings/setting.ts'
import { checkPlugin, checkTogether } from './check.ts'
import { builtInPlugins, isPath, parsePlugins } from './names.ts'
import type { Plugin } from './plugin.ts'
import { importPlugin, isNotFound } from './resolve.ts'

/** A module may await something while it is loaded, but a start can't wait for ever. */
const loadTimeoutMs = 10_000

/** Characters of a plugin's own error that are printed. */
const causeCharactersMax = 500

const pluginsDir = join(import.meta.dirname, '../../../../plugins')

/** The module of a built-in plugin. */
export function builtInModule (name: string): string {
  return join(pluginsDir, name, 'src/plugin.ts')
}

/**
 * Loads plugins.
 * @param names as in PLUGINS
 * @returns the plugins, in the order of their names
 * @throws FatalError (exit code 78): one line with the plugin and the cause
 */
export async function loadPlugins (names: readonly string[]): Promise<Plugin[]> {
  const plugins: Plugin[] = []
  // One after another: of several that are wrong, the same one is named every time.
  for (const name of names) {
    try {
      plugins.push(await load(name))
    } catch (error) {
      throw refusal(`the plugin ${quote(name)} can't be loaded: ${causeOf(error)}`)
    }
  }
  plugins.sort((one, other) => one.name < other.name ? -1 : 1)
  try {
    checkTogether(plugins)
  } catch (error) {
    throw refusal(causeOf(error))
  }
  return plugins
}

/** Loads the plugins of an environment of which nothing else is wanted. @throws FatalError */
export async function loadPluginsOf ({ PLUGINS: text = '' }: NodeJS.ProcessEnv): Promise<Plugin[]> {
  let names = builtInPlugins
  try {
    if (text !== '') names = parsePlugins(text)
  } catch (error) {
    throw refusal(`PLUGINS ${causeOf(error)}`)
  }
  return await loadPlugins(names)
}

async function load (name: string): Promise<Plugin> {
  const isBuiltIn = isPluginName(name) && existsSync(builtInModule(name))
  const abort = new AbortController()
  const module = await Promise.race([
    isBuiltIn ? import(pathToFileURL(builtInModule(name)).href) : importOther(name),
    delay(loadTimeoutMs, undefined, { signal: abort.signal }).then(() => {
      throw new Error(`its module did not load within ${loadTimeoutMs / 1000} s`)
    }),
  ]).finally(() => abort.abort())
  const plugin = checkPlugin(defaultOf(module))
  if (isBuiltIn && plugin.name !== name) throw new Error(`it calls itself ${quote(plugin.name)}`)
  return plugin
}

async function importOther (name: string): Promise<unknown> {
  if (isPath(name)) {
    const path = resolve(name)
    if (!existsSync(path)) throw new Error(`there is no file ${path}`)
    return await importPlugin(pathToFileURL(path).href)
  }
  try {
    return await importPlugin(name)
  } catch (error) {
    if (!isNotFound(error, name)) throw error
    const own = builtIns()
    const near = findNear(name, own)
    throw new Error((own.length === 0 ? 'it is no' : `it is neither built in (${own.join(', ')}) nor a`) +
      ' package that is installed here; write a path as ./NAME.ts' +
      (near === undefined ? '' : `; did you mean "${near}"?`))
  }
}

/** All plugins of the folder `plugins/`, loaded by default or not. */
function builtIns (): string[] {
  if (!existsSync(pluginsDir)) return []
  return readdirSync(pluginsDir).filter((name) => isPluginName(name) && existsSync(builtInModule(name)))
}

function defaultOf (module: unknown): unknown {
  return typeof module === 'object' && module !== null && 'default' in module ? module.default : undefined
}

/** What was thrown, in one line. */
function causeOf (error: unknown): string {
  const text = error instanceof Error ? error.message : String(error)
  // Node writes the place of a syntax error before its stack.
  const [, place] = error instanceof SyntaxError ? /^file:\/\/(\S+:\d+)\n/.exec(error.stack ?? '') ?? [] : []
  const line = text.replaceAll(/\s*[\r\n]+\s*/g, ' ').trim().slice(0, causeCharactersMax)
  return place === undefined ? line : `${line} (${place})`
}

function refusal (message: string): FatalError {
  return new FatalError(message, exitCode.config)
}
