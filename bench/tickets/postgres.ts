// A PostgreSQL cluster of its own in a temporary directory, as Debian's package brings it: it syncs every commit.
import { chownSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { NotMeasuredError, startProgram } from '../host.ts'
import { run } from './run.ts'

/** A cluster that runs. */
export interface Postgres {
  readonly pid: number
  /** The Unix socket that it listens on. */
  readonly socket: string
  /** Ends it and removes its files. Whoever is connected disconnects first. */
  readonly stop: () => Promise<void>
}

const debian = '/usr/lib/postgresql'

/** Debian keeps the server's programs out of PATH, by version. @throws NotMeasuredError */
function findFolder (): string {
  const path = findProgram('initdb')
  if (path !== undefined) return join(path, '..')
  let versions: string[] = []
  try {
    versions = readdirSync(debian).sort((a, b) => Number(a) - Number(b))
  } catch {
    // It is not there.
  }
  const newest = versions.at(-1)
  if (newest === undefined) throw new NotMeasuredError('PostgreSQL is not installed: sudo apt-get install postgresql')
  return join(debian, newest, 'bin')
}

/** Starts a new cluster, on one core or wherever it likes. @throws NotMeasuredError if it can't be had */
export async function startPostgres (core: number | undefined): Promise<Postgres> {
  const folder = findFolder()
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-bench-postgres-'))
  const remove = (): void => { rmSync(dir, { recursive: true, force: true }) }
  try {
    // It refuses to run as root.
    const unprivileged: string[] = []
    if (process.getuid?.() === 0) {
      const [uid, gid] = (await run('id', ['-u', 'postgres']) + await run('id', ['-g', 'postgres'])).trim().split('\n')
      chownSync(dir, Number(uid), Number(gid))
      unprivileged.push('setpriv', `--reuid=${uid}`, `--regid=${gid}`, '--init-groups')
    }
    const command = (...args: [string, ...string[]]): [string, ...string[]] => {
      const [first, ...rest] = [...unprivileged, ...args]
      return [first!, ...rest]
    }
    const [init, ...initArgs] = command(join(folder, 'initdb'), '--username=bench', '--auth=trust', '--no-sync',
      '--locale=C', '--encoding=UTF8', '-D', join(dir, 'data'))
    await run(init, initArgs)
    const settings = ['fsync=on', 'synchronous_commit=on', 'listen_addresses=', `unix_socket_directories=${dir}`]
    const program = startProgram(command(join(folder, 'postgres'), '-D', join(dir, 'data'),
      ...settings.flatMap((setting) => ['-c', setting])), core)
    const stop = async (): Promise<void> => {
      await program.end()
      remove()
    }
    try {
      await until('PostgreSQL to be ready', () => {
        if (program.child.exitCode !== null) throw new Error(program.output)
        return program.output.includes('ready to accept connections')
      })
    } catch (error) {
      await stop()
      throw error
    }
    return { pid: program.pid, socket: join(dir, '.s.PGSQL.5432'), stop }
  } catch (error) {
    remove()
    throw error
  }
}
