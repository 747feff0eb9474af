// A schema is a table of settings. Schemas merge, so that a part of Gearbox can bring its own rows.
// The types of the values, the messages and --help all come from the rows.
import { FatalError } from '../errors.ts'
import { exitCode } from '../process/exit-codes.ts'
import type { Setting } from './setting.ts'

/** Settings by name, in the order of --help. */
export type Schema = Readonly<Record<string, Setting<unknown>>>

/** What a schema makes of an environment. */
export type ValuesOf<S extends Schema> = { readonly [Name in keyof S]: S[Name] extends Setting<infer T> ? T : never }

/** All rows of several schemas: what is in any of a union's members is in an intersection of them. */
type Merged<S extends Schema> =
  (S extends unknown ? (schema: S) => void : never) extends (schema: infer All extends Schema) => void ? All : never

/** `flushIntervalMs` → `FLUSH_INTERVAL_MS` */
export function variableName (name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()
}

/** One schema with the rows of all, in their order. @throws Error if two rows are of one variable */
export function mergeSettings<S extends readonly Schema[]> (...schemas: S): Merged<S[number]> {
  const merged: Record<string, Setting<unknown>> = {}
  const taken = new Set<string>()
  for (const [name, setting] of schemas.flatMap((schema) => Object.entries(schema))) {
    const variable = variableName(name)
    if (taken.has(variable)) throw new Error(`${variable} is the variable of two settings`)
    taken.add(variable)
    merged[name] = setting
  }
  return merged as Merged<S[number]>
}

/** What else an environment must be. */
export interface ReadOptions<S extends Schema> {
  /** Variables that must be set, each with the reason. */
  readonly required?: { readonly [variable: string]: string }
  /** Problems between settings; those with a problem of their own are undefined. */
  readonly check?: (values: Partial<ValuesOf<S>>) => readonly string[]
}

/** What was read, and what is wrong with it. */
export interface Read<Values> {
  /** Those with a problem are undefined. */
  readonly values: Partial<Values>
  /** One line each. */
  readonly problems: readonly string[]
}

/** Reads an environment. An empty variable counts as unset. */
export function parseSettings<S extends Schema> (
  schema: S, env: NodeJS.ProcessEnv, { required = {}, check = () => [] }: ReadOptions<S> = {}
): Read<ValuesOf<S>> {
  const problems: string[] = []
  const read: Record<string, unknown> = {}
  for (const [name, setting] of Object.entries<Setting<unknown>>(schema)) {
    const variable = variableName(name)
    const text = env[variable] === '' ? undefined : env[variable]
    const reason = required[variable]
    if (text === undefined && reason !== undefined) problems.push(`${variable} must be set: ${reason}`)
    const written = text ?? setting.fallback
    try {
      read[name] = written === undefined ? undefined : setting.parse(written)
    } catch (error) {
      problems.push(`${variable} ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  const values = read as Partial<ValuesOf<S>>
  problems.push(...check(values))
  return { values, problems }
}

/** The same, all of it right. @throws FatalError (exit code 78) that names every problem at once */
export function readSettings<S extends Schema> (
  schema: S, env: NodeJS.ProcessEnv, options: ReadOptions<S> = {}
): ValuesOf<S> {
  const { values, problems } = parseSettings(schema, env, options)
  refuseProblems(problems)
  return values as ValuesOf<S>
}

/** @throws FatalError (exit code 78) that names all of them, if there are any */
export function refuseProblems (problems: readonly string[]): void {
  if (problems.length === 0) return
  const count = problems.length === 1 ? 'a problem' : `${problems.length} problems`
  const message = `${count} in the environment (all variables: npm start -- --help)\n  ${problems.join('\n  ')}`
  throw new FatalError(message, exitCode.config)
}

/** The table of variables for --help. @param listed names of the settings that it shows; their order is the schema's */
export function describeSettings (schema: Schema, listed: readonly string[] = Object.keys(schema)): string {
  const rows = Object.entries(schema).filter(([name]) => listed.includes(name)).map(([name, setting]) => ({
    variable: variableName(name),
    fallback: setting.shown ?? setting.fallback ?? 'unset',
    meaning: setting.unit === undefined ? setting.about : `${setting.unit} ${setting.about}`,
  }))
  const variables = Math.max(...rows.map(({ variable }) => variable.length))
  const fallbacks = Math.max(...rows.map(({ fallback }) => fallback.length))
  return rows.map(({ variable, fallback, meaning }) =>
    `  ${variable.padEnd(variables)}  ${fallback.padEnd(fallbacks)}  ${meaning}`).join('\n')
}
