// Programs that end by themselves: compilers, installers, ab.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import { pinned } from '../machine.ts'

/** Runs a program to its end. @returns what it printed @throws Error with its last line if it fails */
export async function run (command: string, args: readonly string[], core?: number): Promise<string> {
  const [first, ...rest] = pinned(core, [command, ...args])
  const child = spawn(first, rest, { stdio: ['ignore', 'pipe', 'pipe'] })
  const [output, errors, [code]] = await Promise.all([text(child.stdout), text(child.stderr), once(child, 'close')])
  if (code !== 0) {
    const said = lastLine(errors) ?? lastLine(output) ?? 'it said nothing'
    throw new Error(`${command} ended with ${String(code)}: ${said}`)
  }
  return output
}

function lastLine (output: string): string | undefined {
  const found = output.trim().split('\n').at(-1)
  return found === '' ? undefined : found
}
