// What every command is made of, those of Gearbox and those of plugins.
import type { Config, Required } from '../config.ts'
import type { Arguments, Options } from './options.ts'

/** The commands of Gearbox itself. A plugin's can't have one of these names. */
export const commandNames = ['start', 'web', 'consumer', 'verify', 'rejected', 'rebind', 'backup', 'set'] as const

/** What a command line changes of the environment. */
export interface Environment {
  /** Variables that it sets. */
  readonly variables?: Readonly<Record<string, string>>
  /** Those that must be set, each with the reason. */
  readonly required?: Required
}

/**
 * One thing that Gearbox can be told to do. Its module does nothing when it is loaded, unless it is the program itself.
 * `Name` is one of the settings that it lists, `Own` what it is given besides the config.
 */
export interface CommandOf<Own, O extends Options = Options, Name extends keyof Config = keyof Config> {
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
  /** The settings that it reads: its --help lists these variables and no others, and its config has no others. */
  readonly settings: readonly Name[]
  /**
   * Whether it runs until it is told to stop. Others end when they are done, and wait for a slow reader of what they
   * print.
   */
  readonly service?: boolean
  /** What its arguments make of the environment, before that is read. @throws FatalError */
  environment? (args: Arguments<O>): Environment
  /** Does it. @returns the exit code @throws FatalError */
  run (args: Arguments<O>, config: Pick<Config, Name>, own: Own): Promise<number>
}
