// `gearbox COMMAND`: the one table of commands. The npm scripts, the systemd units and the installed `gearbox` all call
// it; only the command that is asked for is loaded.
import { FatalError } from '@gearbox/runtime/errors.ts'
import { runCommand, type Command } from '@gearbox/runtime/process/command.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { runMain } from '@gearbox/runtime/process/run-main.ts'

const commands: Readonly<Record<string, () => Promise<{ readonly command: Command }>>> = {
  start: async () => await import('./start.ts'),
  web: async () => await import('@gearbox/web/main.ts'),
  consumer: async () => await import('@gearbox/consumer/main.ts'),
  verify: async () => await import('@gearbox/consumer/commands/verify.ts'),
  rejected: async () => await import('@gearbox/consumer/commands/rejected.ts'),
  rebind: async () => await import('@gearbox/consumer/commands/rebind.ts'),
  backup: async () => await import('@gearbox/consumer/commands/backup.ts'),
}

/** What `gearbox --help` prints. */
async function usage (): Promise<string> {
  const loaded = await Promise.all(Object.values(commands).map(async (load) => (await load()).command))
  const width = Math.max(...loaded.map(({ name }) => name.length))
  const lines = loaded.map(({ name, summary }) => `  ${name.padEnd(width)}  ${summary}`)
  return `usage: npm run gearbox -- COMMAND [ARGUMENT...]\n\n${lines.join('\n')}\n\nEach has its own --help.\n`
}

const [name, ...words] = process.argv.slice(2)
if (name !== undefined && Object.hasOwn(commands, name)) {
  const { command } = await commands[name]!()
  await runCommand(command, words)
} else {
  await runMain(async () => {
    if (name === '--help' || name === '-h') {
      process.stdout.write(await usage())
      return 0
    }
    const wrong = name === undefined ? 'name a command' : `${JSON.stringify(name.slice(0, 64))} is not a command`
    throw new FatalError(`${wrong}; there are ${Object.keys(commands).join(', ')}`, exitCode.usage)
  })
}
