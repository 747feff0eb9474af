// Command lines. Settings come from the environment; who looks for them among the options is told so.
import { parseArgs, type ParseArgsConfig } from 'node:util'
import { variables } from './config.ts'
import { exitCode, FatalError } from './errors.ts'

/** What a user would type: `npm start`, `npm run web`. */
function command (): string {
  const script = process.env.npm_lifecycle_event ?? 'start'
  return script === 'start' ? 'npm start' : `npm run ${script}`
}

/** Only a number is shown: others may be secrets. */
function setting (variable: string, value: string | undefined): string {
  return `${variable}=${value !== undefined && /^\d{1,19}$/.test(value) ? value : '…'} ${command()}`
}

/** The variable that an option or an npm configuration is named like. */
function variableOf (option: string): string | undefined {
  const name = option.replaceAll('-', '_').toUpperCase()
  return variables.find((variable) => variable === name)
}

/**
 * parseArgs, strict. An option or an argument that is one of the settings is refused with the variable to set,
 * also where npm kept it for itself: `npm start --port 4201` would else start on another port in silence.
 * @throws FatalError (exit code 64) in one line
 */
export function parseOptions<T extends ParseArgsConfig> (config: T): ReturnType<typeof parseArgs<T>> {
  const words = config.args ?? process.argv.slice(2)
  for (const variable of variables) {
    const name = `npm_config_${variable.toLowerCase()}`
    const value = process.env[name]
    if (value === undefined || (process.env[variable] ?? '') !== '') continue
    const option = `--${variable.toLowerCase().replaceAll('_', '-')}`
    // npm parses what follows as an argument of its own.
    throw usageError(`npm keeps ${option} for itself; settings come from the environment: ${setting(variable, value === 'true' ? words[0] : value)}`)
  }
  for (const [i, word] of words.entries()) {
    const [, option, value] = /^--([a-z][a-z-]*)(?:=(.*))?$/s.exec(word) ?? []
    if (option === undefined || Object.hasOwn(config.options ?? {}, option)) continue
    const variable = variableOf(option)
    if (variable !== undefined) throw usageError(`--${option} is not an option; settings come from the environment: ${setting(variable, value ?? words[i + 1])}`)
  }
  for (const word of words) {
    const [, variable, value] = /^([A-Z_]+)=(.*)$/s.exec(word) ?? []
    if (variable !== undefined && variables.includes(variable)) throw usageError(`${variable}=… belongs before the command: ${setting(variable, value)}`)
  }
  return parseArgs(config)
}

function usageError (message: string): FatalError {
  return new FatalError(message, exitCode.usage)
}
