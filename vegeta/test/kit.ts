// The load kit as its users run it, each program its own process.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { delimiter, join } from 'node:path'
import { onTestFinished } from 'vitest'
import { Program, root, startAll } from '@gearbox/test-kit/gearbox.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'

/** Building it takes a while where nothing is cached. For a beforeAll. */
export const installTimeoutMs = 300_000

/** Installs Vegeta where it is missing. @throws Error that says how to, where that fails */
export function requireVegeta (): void {
  process.env.PATH = `${process.env.PATH ?? ''}${delimiter}${join(root, '.tmp/bin')}`
  if (findProgram('vegeta') !== undefined) return
  const { status, stdout, stderr } = spawnSync('install/install_vegeta.sh', { cwd: root, encoding: 'utf8' })
  if (status !== 0 || findProgram('vegeta') === undefined) {
    throw new Error('install vegeta first, the load kit is tested with it; install/install_vegeta.sh ' +
      `said:\n${stdout}${stderr}`)
  }
}

export interface Ended {
  readonly code: number | NodeJS.Signals
  readonly output: string
}

export async function run (command: string, args: readonly string[]): Promise<Ended> {
  return await runWith({}, command, args)
}

export async function runWith (env: NodeJS.ProcessEnv, command: string, args: readonly string[]): Promise<Ended> {
  const program = new Program(command, args, env)
  onTestFinished(async () => { await program.end() })
  return { code: await program.exited, output: program.output }
}

/** run, for what has to succeed. @throws Error with its output */
export async function succeed (command: string, args: readonly string[]): Promise<string> {
  const { code, output } = await run(command, args)
  if (code !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${code}:\n${output}`)
  return output
}

export async function createTargets (...args: readonly string[]): Promise<string> {
  return await succeed(process.execPath, ['vegeta/create_targets.ts', ...args])
}

export async function verify (...args: readonly string[]): Promise<Ended> {
  return await run(process.execPath, ['vegeta/verify.ts', ...args])
}

export type Product = Awaited<ReturnType<typeof startAll>> & {
  readonly host: string
  readonly databasePath: string
  readonly dir: string
}

/** `npm start` with a database in a directory of the test's own. */
export async function startProduct (env: NodeJS.ProcessEnv = {}): Promise<Product> {
  const dir = temporaryDir()
  const databasePath = join(dir, 'data', 'numbers.db')
  const program = await startAll({ DATABASE_PATH: databasePath, ...env })
  onTestFinished(async () => { await program.end() })
  return Object.assign(program, { host: new URL(program.url).host, databasePath, dir })
}

/** expected.json, as exact as it stands there: its sums are far below 2^53. */
export function readExpected (path: string): Map<string, bigint> {
  const sums = JSON.parse(readFileSync(path, 'utf8')) as Record<string, number>
  return new Map(Object.entries(sums).map(([key, sum]) => [key, BigInt(sum)]))
}

/** Sorted, so that two of them compare whatever their order was. */
export function sorted (totals: ReadonlyMap<string, bigint>): [string, bigint][] {
  return [...totals].sort(([a], [b]) => a < b ? -1 : 1)
}
