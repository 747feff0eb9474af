// The scripts that run inside Redis: what they are, and which commands they need the right to run.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'

function lua (name: string): string {
  return readFileSync(join(import.meta.dirname, `${name}.lua`), 'utf8')
}

/** The scripts as ioredis takes them: each becomes a method of a connection. */
export const scripts = {
  gearboxPush: { lua: lua('push'), numberOfKeys: 2 },
  gearboxTake: { lua: lua('take'), numberOfKeys: 2 },
  gearboxAcknowledge: { lua: lua('acknowledge'), numberOfKeys: 2 },
  gearboxBind: { lua: lua('bind'), numberOfKeys: 1 },
  gearboxWaiting: { lua: lua('waiting'), numberOfKeys: 1 },
}

const commandsBySha1 = new Map(Object.values(scripts).map(({ lua }) => [sha1(lua), commandsOf(lua)]))

function commandsOf (lua: string): string[] {
  return [...new Set(Array.from(lua.matchAll(/redis\.p?call\('([A-Z]+)'/g), ([, command]) => command!))]
}

function sha1 (text: string): string {
  return createHash('sha1').update(text).digest('hex')
}

/** The commands that one of these scripts runs; none for any other. @param script its text, or the SHA-1 of that */
export function scriptCommands (script: string): readonly string[] {
  return commandsBySha1.get(script) ?? commandsBySha1.get(sha1(script)) ?? []
}
