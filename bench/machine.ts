// The machine: which core serves and which one loads, what its processes used, and what it and the programs are called.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { listProcesses, root } from '@gearbox/test-kit/gearbox.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'

/** Cores to pin to; undefined where pinning can't be had. */
export interface Cores {
  readonly load: number | undefined
  readonly server: number | undefined
  readonly note: string
}

/** @throws FatalError where processes can't be looked at */
export function findCores (): Cores {
  if (process.platform !== 'linux') throw new FatalError('the bench reads /proc: it needs Linux')
  const allowed = (/^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ??
    '').split(',').flatMap((range) => {
    const [first, last = first] = range.split('-').map(Number)
    return Array.from({ length: last! - first! + 1 }, (_, i) => first! + i)
  })
  const [load, server] = allowed
  const why = findProgram('taskset') === undefined
    ? 'there is no taskset'
    : server === undefined ? 'there is one core' : undefined
  if (why !== undefined) {
    return {
      load: undefined,
      server: undefined,
      note: `**Nothing is pinned, as ${why}: load and server get in each other's way, and the figures say little.**`,
    }
  }
  return {
    load,
    server,
    note: `The load and what runs next to a server (consumer, Redis, the parent) are pinned to core ${load}, the ` +
      `server under test to core ${server}.`,
  }
}

/** A command that runs pinned. */
export function pinned (core: number | undefined, command: readonly [string, ...string[]]): [string, ...string[]] {
  return core === undefined ? [...command] : ['taskset', '-c', String(core), ...command]
}

/** Pins a process that runs, with all its threads. */
export function pin (pid: number, core: number | undefined): void {
  if (core !== undefined) spawnSync('taskset', ['-a', '-c', '-p', String(core), String(pid)])
}

/** A process and all below it. */
export function tree (pid: number): number[] {
  const processes = listProcesses()
  const pids = [pid]
  for (const above of pids) pids.push(...processes.filter(({ parent }) => parent === above).map(({ pid }) => pid))
  return pids
}

const ticksPerSecond = Number(spawnSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }).stdout)

/**
 * Seconds of CPU that processes have used so far, user and system, with all their threads and those of their children
 * that have ended; in steps of a tick (10 ms).
 */
export function cpuSeconds (pids: readonly number[]): number {
  const ticks = pids.map((pid) => {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
    return fields.slice(11, 15).reduce((sum, of) => sum + Number(of), 0)
  })
  return ticks.reduce((sum, of) => sum + of, 0) / ticksPerSecond
}

/** Resident memory of a process in bytes: now (VmRSS), or the most there ever was (VmHWM). */
export function residentBytes (pid: number, field: 'VmRSS' | 'VmHWM'): number {
  return Number(new RegExp(`^${field}:\\s*(\\d+) kB$`,
    'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) * 1024
}

/** Ticks that a core has had so far, and those in which it did anything. */
export function coreTicks (core: number | undefined): { readonly all: number, readonly busy: number } {
  const fields = new RegExp(`^cpu${core ?? ''} +(.*)$`,
    'm').exec(readFileSync('/proc/stat', 'utf8'))![1]!.split(' ').slice(0, 8).map(Number)
  const all = fields.reduce((sum, ticks) => sum + ticks, 0)
  return { all, busy: all - fields[3]! - fields[4]! }
}

export function openFilesMax (): number {
  return Number(/^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1])
}

export function describeMachine (): string {
  const all = cpus()
  return `${all[0]?.model.trim() ?? 'unknown CPU'}, ${all.length} cores, ${(totalmem() / 2 ** 30).toFixed(0)} GiB of ` +
    `memory, Linux ${release()}`
}

/** The version that is built where there is no rqlited. */
export const rqliteVersion = '8.43.4'

/** The version that is installed from PyPI. */
export const tornadoVersion = '6.6.1'

/** Names and versions of all that takes part, as far as they are there. */
export function describeVersions (): string {
  const said = (command: string, args: readonly string[], pattern: RegExp, otherwise = 'not there'): string => {
    const { stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' })
    return pattern.exec(`${stdout ?? ''}${stderr ?? ''}`)?.[1] ?? otherwise
  }
  const versionIn = (folder: string): string => {
    try {
      return /"version": *"([^"]+)"/.exec(readFileSync(join(root, folder, 'package.json'), 'utf8'))?.[1] ?? 'unknown'
    } catch {
      return 'not there'
    }
  }
  const packaged = (name: string): string => versionIn(`node_modules/${name}`)
  const db = new Database(':memory:')
  const sqlite = db.prepare<[], string>('SELECT sqlite_version()').pluck().get() ?? 'unknown'
  db.close()
  return Object.entries({
    Gearbox: versionIn('.'),
    Node: process.version.slice(1),
    Fastify: packaged('fastify'),
    Express: packaged('express'),
    ioredis: packaged('ioredis'),
    'better-sqlite3': `${packaged('better-sqlite3')} (SQLite ${sqlite})`,
    Redis: said('redis-server', ['--version'], /v=(\S+)/),
    nginx: said('nginx', ['-v'], /nginx\/(\S+)/),
    webdis: said('dpkg-query', ['-s', 'webdis'], /^Version: (\S+)/m),
    Go: said('go', ['version'], /go(\d\S+)/),
    rqlite: said('rqlited', ['-version'], /v(\d\S+)/, rqliteVersion),
    memcached: said('memcached', ['-V'], /memcached (\S+)/),
    Tornado: tornadoVersion,
    PostgreSQL: said('dpkg-query', ['-l', 'postgresql-[0-9]*'], /^ii +postgresql-\d+ +(\S+)/m),
    ab: said('ab', ['-V'], /Version (\S+)/),
    wrk: said('wrk', ['-v'], /wrk \S*?(\d[^ ]*)/),
  }).map(([name, version]) => `${name} ${version}`).join(', ')
}
