// A command of Gearbox as the table in bin/gearbox.ts has it: what it is called, what it reads, and how to run it.
import type { Config } from '../config.ts'
import { FatalError } from '../errors.ts'
import { describeCheck, type WouldRun } from '../plugin/check-report.ts'
import { describeVariables, loadConfiguration } from '../plugin/configuration.ts'
import { loadPluginsOf } from '../plugin/load.ts'
import type { LoadedPlugin, Plugin } from '../plugin/plugin.ts'
import type { CommandOf } from './command-parts.ts'
import { parseOptions, type Options } from './options.ts'
import { runMain } from './run-main.ts'

/** A command of Gearbox. If `plugins` is one of its settings, they are loaded for it. */
export interface Command<O extends Options = Options, Name extends keyof Config = keyof Config>
  extends CommandOf<readonly LoadedPlugin[], O, Name> {
  /** With it the command has --check, which prints what would run. @returns the parts that it would start */
  wouldRun? (config: Pick<Config, Name>): WouldRun
}

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
  const options: Options = {
    ...command.options, ...helpOption, ...(command.wouldRun === undefined ? {} : checkOption),
  }
  const args = parseOptions(command.name, words, options, command.positionals)
  if (args.values.help === true) {
    process.stdout.write(helpOf(command, await pluginsForHelp(command)))
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
export function helpOf ({ summary, usage, settings, wouldRun }: Command, plugins: readonly Plugin[] = []): string {
  const check = wouldRun === undefined
    ? ''
    : '\n\n  --check  reads all variables and loads all plugins, prints what would run, and ends'
  return `${summary}\n\n${usage}${check}\n\nEnvironment:\n${describeVariables(settings, plugins)}\n`
}

/** The plugins whose settings --help lists. If some can't be loaded it helps without them, and says so on stderr. */
async function pluginsForHelp ({ settings }: Command): Promise<readonly Plugin[]> {
  if (!settings.includes('plugins')) return []
  try {
    return await loadPluginsOf(process.env)
  } catch (error) {
    if (!(error instanceof FatalError)) throw error
    process.stderr.write(`gearbox: ${error.message}\n`)
    return []
  }
}
