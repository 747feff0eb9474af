// `gearbox COMMAND`: the one table of commands. The npm scripts, the systemd units and the installed `gearbox` all call
// it; only the command that is asked for is loaded. Commands of plugins come after its own.
import { FatalError } from '@gearbox/runtime/errors.ts'
import { pluginCommands } from '@gearbox/runtime/plugin/commands.ts'
import type { commandNames } from '@gearbox/runtime/process/command-parts.ts'
import { executeCommand, runCommand, type Command } from '@gearbox/runtime/process/command.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { runMain } from '@gearbox/runtime/process/run-main.ts'

const commands: Readonly<Record<typeof commandNames[number], () => Promise<{ readonly command: Command }>>> = {
  start: async () => await import('./start.ts'),
  web: async () => await import('@gearbox/web/main.ts'),
  consumer: async () => await import('@gearbox/consumer/main.ts'),
  verify: async () => await import('@gearbox/consumer/commands/verify.ts'),
  rejected: async () => await import('@gearbox/consumer/commands/rejected.ts'),
  rebind: async () => await import('@gearbox/consumer/commands/rebind.ts'),
  backup: async () => await import('@gearbox/consumer/commands/backup.ts'),
  set: async () => await import('@gearbox/consumer/commands/set.ts'),
}

/** What `gearbox --help` prints. */
async function usage (): Promise<string> {
  const own = await Promise.all(Object.values(commands).map(async (load) => (await load()).command))
  const all = [...own, ...await ofPlugins()]
  const width = Math.max(...all.map(({ name }) => name.length))
  const lines = all.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`)
  return `usage: npm run gearbox -- COMMAND [ARGUMENT...]\n\n${lines.join('\n')}\n\nEach has its own --help.\n`
}

/** Commands of plugins. If those can't be loaded there are none, and stderr says why. */
async function ofPlugins (): Promise<Command[]> {
  try {
    return await pluginCommands(process.env)
  } catch (error) {
    if (!(error instanceof FatalError)) throw error
    process.stderr.write(`gearbox: ${error.message}\n`)
    return []
  }
}

function isOwn (name: string): name is keyof typeof commands {
  return Object.hasOwn(commands, name)
}

/** Runs the command of a plugin. @returns the exit code @throws FatalError if none has it */
async function runOther (name: string | undefined, words: readonly string[]): Promise<number> {
  const others = name === undefined ? [] : await pluginCommands(process.env)
  const found = others.find((command) => command.name === name)
  if (found !== undefined) return await executeCommand(found, words)
  const wrong = name === undefined ? 'name a command' : `${JSON.stringify(name.slice(0, 64))} is not a command`
  const names = [...Object.keys(commands), ...others.map((command) => command.name)]
  throw new FatalError(`${wrong}; there are ${names.join(', ')}`, exitCode.usage)
}

const [name, ...words] = process.argv.slice(2)
if (name !== undefined && isOwn(name)) {
  const { command } = await commands[name]()
  await runCommand(command, words)
} else {
  await runMain(async () => {
    if (name !== '--help' && name !== '-h') return await runOther(name, words)
    process.stdout.write(await usage())
    return 0
  })
}
