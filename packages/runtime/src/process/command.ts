// A command of Gearbox as the table in bin/gearbox.ts has it: what it is called, what it reads, and how to run it.
import type { Config } from '../config.ts'
import { FatalError } from '../errors.ts'
import { describeCheck, type WouldRun } from '../plugin/check-report.ts'
import { describeVariables, loadConfiguration } from '../plugin/configuration.ts'
import { loadPluginsOf } from '../plugin/load.ts'
import type { LoadedPlugin, Plugin, RebindPart } from '../plugin/plugin.ts'
import type { CommandOf } from './command-parts.ts'
import { parseOptions, type Options } from './options.ts'
import { runMain } from './run-main.ts'

/** A command of Gearbox. If `plugins` is one of its settings, they are loaded for it. */
export interface Command<O extends Options = Options, Name extends keyof Config = keyof Config>
  extends CommandOf<readonly LoadedPlugin[], O, Name> {
  /** Options that plugins add to it, with the lines that --help shows for them; what is given is among its values. */
  optionsOf? (plugins: readonly Plugin[]): PluginOptions
  /** With it the command has --check, which prints what would run. @returns the parts that it would start */
  wouldRun? (config: Pick<Config, Name>): WouldRun
}

/** Options that plugins add to a command, by their names. */
export type PluginOptions = NonNullable<RebindPart['options']>

/** A service that has stopped waits this long for whoever should read its last lines. */
const serviceOutputMs = 1000

const helpOption = { help: { type: 'boolean', short: 'h' } } as const
const checkOption = { check: { type: 'boolean' } } as const

/** A command, with the types of its arguments and of its config taken from its options and settings. */
export function defineCommand<const O extends Options, const Name extends keyof Config> (
  command: Command<O, Name>
): Command<O, Name> {
  return command
}

/** Runs a command and ends the process. @param words what was typed behind its name */
export async function runCommand (command: Command, words: readonly string[] = process.argv.slice(2)): Promise<void> {
  const outputMs = command.service === true ? serviceOutputMs : undefined
  await runMain(async () => await executeCommand(command, words), outputMs)
}

/** Runs a command. @param words what was typed behind its name @returns the exit code @throws FatalError */
export async function executeCommand (command: Command, words: readonly string[]): Promise<number> {
  const helps = words.includes('--help') || words.includes('-h')
  const known = helps || command.optionsOf !== undefined ? await pluginsBefore(command, helps) : []
  const options: Options = {
    ...command.options,
    ...typesOf(command.optionsOf?.(known) ?? {}),
    ...helpOption,
    ...(command.wouldRun === undefined ? {} : checkOption),
  }
  const args = parseOptions(command.name, words, options, command.positionals)
  if (args.values.help === true) {
    process.stdout.write(helpOf(command, known))
    return 0
  }
  const { variables = {}, required } = command.environment?.(args) ?? {}
  const withPlugins = command.settings.includes('plugins')
  const env = { ...process.env, ...variables, ...(withPlugins ? {} : { PLUGINS: 'none' }) }
  const { config, plugins } = await loadConfiguration(env, required)
  if (args.values.check === true && command.wouldRun !== undefined) {
    process.stdout.write(describeCheck(command.wouldRun(config), command.settings, plugins, env))
    return 0
  }
  return await command.run(args, pick(config, command.settings), plugins)
}

function pick (config: Config, names: ReadonlyArray<keyof Config>): Config {
  return Object.fromEntries(names.map((name) => [name, config[name]])) as Config
}

/** What --help prints. @param plugins those whose settings it lists */
export function helpOf (command: Command, plugins: readonly Plugin[] = []): string {
  const { summary, usage, settings, wouldRun } = command
  const options = Object.entries(command.optionsOf?.(plugins) ?? {})
    .map(([name, { usage }]) => `\n  --${name} ${usage}`)
  const more = options.length === 0 ? '' : `\n${options.join('')}`
  const check = wouldRun === undefined
    ? ''
    : '\n\n  --check  reads all variables and loads all plugins, prints what would run, and ends'
  return `${summary}\n\n${usage}${more}${check}\n\nEnvironment:\n${describeVariables(settings, plugins)}\n`
}

/** Options as the parser takes them, which knows no usage. */
function typesOf (options: PluginOptions): Options {
  return Object.fromEntries(Object.entries(options).map(([name, { type }]) => [name, { type }]))
}

/**
 * The plugins as they are known before the environment is read: for their options, and for the settings in --help. If
 * some can't be loaded --help helps without them, and says so on stderr.
 */
async function pluginsBefore ({ settings }: Command, helps: boolean): Promise<readonly Plugin[]> {
  if (!settings.includes('plugins')) return []
  try {
    return await loadPluginsOf(process.env)
  } catch (error) {
    if (!helps || !(error instanceof FatalError)) throw error
    process.stderr.write(`gearbox: ${error.message}\n`)
    return []
  }
}
