// A command of Gearbox as the table in bin/gearbox.ts has it: what it is called, what it reads, and how to run it.
import { describeConfig, type Config } from '../config.ts'
import { parseOptions, type Arguments, type Options } from './options.ts'
import { runMain } from './run-main.ts'

/**
 * One thing that Gearbox can be told to do. Its module does nothing when it is loaded, unless it is the program itself.
 */
export interface Command<O extends Options = Options> {
  /** The npm script, and the word behind `gearbox`. */
  readonly name: string
  /** What it does, in one line. */
  readonly summary: string
  /** The rest of its --help above the variables: `usage: npm run NAME …`, then its options. */
  readonly usage: string
  /** Its options besides --help; those without a line in `usage` are for Gearbox itself. */
  readonly options: O
  /** Whether it takes words that are not options. */
  readonly positionals?: boolean
  /** The settings that it reads; its --help lists these variables and no others. */
  readonly settings: ReadonlyArray<keyof Config>
  /**
   * Whether it runs until it is told to stop. Others end when they are done, and wait for a slow reader of what they
   * print.
   */
  readonly service?: boolean
  /** Does it. @returns the exit code @throws FatalError */
  run (args: Arguments<O>): Promise<number>
}

/** A service that has stopped waits this long for whoever should read its last lines. */
const serviceOutputMs = 1000

const helpOption = { help: { type: 'boolean', short: 'h' } } as const

/** A command, with the types of its arguments taken from its options. */
export function defineCommand<const O extends Options> (command: Command<O>): Command<O> {
  return command
}

/** Runs a command and ends the process. @param words what was typed behind its name */
export async function runCommand (command: Command, words: readonly string[] = process.argv.slice(2)): Promise<void> {
  await runMain(async () => {
    const options: Options = { ...command.options, ...helpOption }
    const args = parseOptions(command.name, words, options, command.positionals)
    if (args.values.help !== true) return await command.run(args)
    process.stdout.write(helpOf(command))
    return 0
  }, command.service === true ? serviceOutputMs : undefined)
}

/** What --help prints. */
export function helpOf ({ summary, usage, settings }: Command): string {
  return `${summary}\n\n${usage}\n\nEnvironment:\n${describeConfig(settings)}\n`
}
