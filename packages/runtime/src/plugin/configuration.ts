// The environment together with the plugins: the core's settings and those of the plugins that PLUGINS names, with all
// of their problems at once.
import { coreSettings, finishConfig, parseConfig, type Config, type Required } from '../config.ts'
import { findNearest } from '../nearest.ts'
import {
  describeSettings, mergeSettings, parseSettings, refuseProblems, variableName, type Schema, type ValuesOf,
} from '../settings/schema.ts'
import { loadPlugins } from './load.ts'
import type { LoadedPlugin, Plugin } from './plugin.ts'
import { hasPrefix, prefixOf } from './prefixes.ts'

/** All that a process is told. */
export interface Configuration {
  readonly config: Config
  /** In the order of their names. */
  readonly plugins: readonly LoadedPlugin[]
}

/**
 * Reads the environment and loads the plugins.
 * @throws FatalError (exit code 78) for a plugin that can't be loaded; or one that names every problem
 */
export async function loadConfiguration (env: NodeJS.ProcessEnv, required: Required = {}): Promise<Configuration> {
  const { values, problems } = parseConfig(env, required)
  const plugins = await loadPlugins(values.plugins ?? [])
  const read = plugins.map((plugin) => ({ plugin, ...readPlugin(plugin, env) }))
  refuseProblems([...problems, ...read.flatMap((one) => one.problems)])
  return { config: finishConfig(values), plugins: read.map(({ plugin, values: settings }) => ({ plugin, settings })) }
}

/** The rows of the core and of plugins, in the order of --help. */
export function allRows (plugins: readonly Plugin[]): Schema {
  return mergeSettings<readonly Schema[]>(coreSettings, ...plugins.map(({ settings = {} }) => settings))
}

/** The table of variables for --help. @param listed the core's settings that it shows, before those of the plugins */
export function describeVariables (listed: ReadonlyArray<keyof Config>, plugins: readonly Plugin[]): string {
  const names = plugins.flatMap(({ settings = {} }) => Object.keys(settings))
  return describeSettings(allRows(plugins), [...listed, ...names])
}

function readPlugin (
  { name, settings = {} }: Plugin, env: NodeJS.ProcessEnv
): { values: ValuesOf<Schema>, problems: readonly string[] } {
  const { values, problems } = parseSettings(settings, env)
  return { values, problems: [...problems, ...findUnknown(name, Object.keys(settings).map(variableName), env)] }
}

/** What container platforms make of the name of a neighbour: TICKETS_SERVICE_HOST, TICKETS_PORT_80_TCP. */
const ofPlatform = /_SERVICE_|_PORT/

/** Variables with a plugin's prefix that are none of its settings: a slip must not mean the default. */
function findUnknown (name: string, known: readonly string[], env: NodeJS.ProcessEnv): string[] {
  const prefix = prefixOf(name)
  const unknown = Object.keys(env).filter((variable) => hasPrefix(variable, prefix) && env[variable] !== '' &&
    !known.includes(variable) && !ofPlatform.test(variable.slice(prefix.length)))
  return unknown.sort().map((variable) => `${variable} is no setting of the plugin ${name}` +
    (known.length === 0 ? ', which has none' : `; did you mean ${findNearest(variable, known).nearest}?`))
}
