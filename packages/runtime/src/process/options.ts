// Command lines. Settings come from the environment; whoever writes one as an option is shown the variable to set.
import { parseArgs, type ParseArgsConfig } from 'node:util'
import { variables } from '../config.ts'
import { FatalError } from '../errors.ts'
import { exitCode } from './exit-codes.ts'

/** What a command takes besides the environment, as node:util's parseArgs has it. */
export type Options = NonNullable<ParseArgsConfig['options']>

/** A command line, read. */
export interface Arguments<O extends Options> {
  readonly values: ReturnType<typeof parseArgs<{ options: O, strict: true }>>['values']
  /** Words that are not options; empty where a command takes none. */
  readonly positionals: readonly string[]
}

/**
 * parseArgs, strict. An option or an argument that is one of the settings is refused with the variable to set,
 * also where npm kept it for itself: `npm start --port 4201` would else start on another port in silence.
 * @param command its name, for messages
 * @param words what was typed behind it
 * @throws FatalError (exit code 64) in one line
 */
export function parseOptions<O extends Options> (
  command: string, words: readonly string[], options: O, allowPositionals = false
): Arguments<O> {
  const setting = (variable: string, value: string | undefined): string =>
    `${variable}=${shown(value)} ${typed(command)}`
  refuseKeptByNpm(words, setting)
  refuseSettings(words, options, setting)
  const args = words.map((word) => /^-\d+$/.test(word) ? `${mark}${word}` : word)
  const { values, positionals } = parseArgs({ args, options, allowPositionals, strict: true })
  const unmarked = Object.entries(values).map(([name, value]) =>
    [name, typeof value === 'string' ? value.replace(mark, '') : value])
  return { values: Object.fromEntries(unmarked), positionals: positionals.map((word) => word.replace(mark, '')) }
}

/** Put before negative numbers, which parseArgs would take for options. No word of a command line can have it. */
const mark = '\0'

/** Commands besides `start` that have an npm script. */
const scripts = ['web', 'consumer', 'verify', 'rejected', 'rebind', 'backup'] as const

/** How a command is typed. */
function typed (command: string): string {
  if (command === 'start') return 'npm start'
  return scripts.some((name) => name === command) ? `npm run ${command}` : `npm run gearbox -- ${command}`
}

/** Only a number is shown: other values may be secrets. */
function shown (value: string | undefined): string {
  return value !== undefined && /^\d{1,19}$/.test(value) ? value : '…'
}

type ShowSetting = (variable: string, value: string | undefined) => string

/** @throws FatalError for a setting that npm took for one of its own options */
function refuseKeptByNpm (words: readonly string[], setting: ShowSetting): void {
  for (const variable of variables) {
    const value = process.env[`npm_config_${variable.toLowerCase()}`]
    if (value === undefined || (process.env[variable] ?? '') !== '') continue
    const option = `--${variable.toLowerCase().replaceAll('_', '-')}`
    // npm parses what follows as a separate argument.
    const shown = setting(variable, value === 'true' ? words[0] : value)
    throw usageError(`npm keeps ${option} for itself; settings come from the environment: ${shown}`)
  }
}

/** @throws FatalError for `--port 1`, `--port=1` and `PORT=1`, unless the command has an option of that name */
function refuseSettings (words: readonly string[], options: Options, setting: ShowSetting): void {
  for (const [i, word] of words.entries()) {
    const [, option, value] = /^--([a-z][a-z-]*)(?:=(.*))?$/s.exec(word) ?? []
    if (option === undefined || Object.hasOwn(options, option)) continue
    const variable = option.replaceAll('-', '_').toUpperCase()
    if (!variables.includes(variable)) continue
    throw usageError(
      `--${option} is not an option; settings come from the environment: ${setting(variable, value ?? words[i + 1])}`)
  }
  for (const word of words) {
    const [, variable, value] = /^([A-Z_]+)=(.*)$/s.exec(word) ?? []
    if (variable === undefined || !variables.includes(variable)) continue
    throw usageError(`${variable}=… belongs before the command: ${setting(variable, value)}`)
  }
}

function usageError (message: string): FatalError {
  return new FatalError(message, exitCode.usage)
}
