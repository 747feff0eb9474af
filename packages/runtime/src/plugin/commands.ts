// Commands of plugins as the table in bin/gearbox.ts has its own.
import type { Command } from '../process/command.ts'
import { loadPluginsOf } from './load.ts'
import type { LoadedPlugin, Plugin, PluginCommand } from './plugin.ts'

/** The commands of the plugins that PLUGINS names. @throws FatalError for a plugin that can't be loaded */
export async function pluginCommands (env: NodeJS.ProcessEnv): Promise<Command[]> {
  const plugins = await loadPluginsOf(env)
  return plugins.flatMap((plugin) => (plugin.commands ?? []).map((command) => adopt(plugin, command)))
}

function adopt (plugin: Plugin, command: PluginCommand): Command {
  const { environment } = command
  return {
    ...command,
    settings: [...new Set([...command.settings, 'plugins' as const])],
    ...(environment === undefined ? {} : { environment: (args) => environment.call(command, args) }),
    run: async (args, config, plugins) => await command.run(args, config, ownOf(plugin, plugins)),
  }
}

function ownOf ({ name }: Plugin, plugins: readonly LoadedPlugin[]): LoadedPlugin['settings'] {
  return plugins.find(({ plugin }) => plugin.name === name)?.settings ?? {}
}
