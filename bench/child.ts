// Measurements in their own process, pinned: what they print last is their result, as JSON.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { pinned } from './machine.ts'

/** Runs a module of this folder. @throws Error if it fails */
export async function runChild (core: number | undefined, module: string, args: readonly string[]): Promise<unknown> {
  const [command, ...rest] = pinned(core,
    [process.execPath, ...process.execArgv, join(import.meta.dirname, module), ...args])
  const child = spawn(command, rest, { stdio: ['ignore', 'pipe', 'inherit'] })
  const [output, [code]] = await Promise.all([text(child.stdout), once(child, 'exit')])
  if (code !== 0) throw new Error(`${module} ended with ${String(code)}`)
  return JSON.parse(output.trim().split('\n').at(-1) ?? '')
}

export function printResult (result: unknown): void {
  process.stdout.write(`${JSON.stringify(result)}\n`)
}
