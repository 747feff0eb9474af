// Who gives numbers: Gearbox, and what it is compared with. All answer `POST /tickets/bench` with the next number.
import { mkdtempSync } from 'node:fs'
import { connect } from 'node:net'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import { freePort } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { until } from '@gearbox/test-kit/until.ts'
import {
  NotMeasuredError, startGearbox, startNginxWith, startNode, startPeer, startProgram, totalAt, type Asks, type Host,
  type Server, type Start,
} from '../host.ts'
import { tornadoVersion, tree } from '../machine.ts'
import { checkedLog } from './log.ts'
import { startPostgres } from './postgres.ts'
import { run } from './run.ts'
import { findBest } from './search.ts'

/** The name of the line that all rows take numbers of. */
export const line = 'bench'

/** What everybody is asked; Gearbox answers with JSON and a receipt, all others with a line of text. */
export const asks: Asks = { path: `/tickets/${line}`, headers: {}, body: '' }

/** The same for a line of text, which Gearbox gives who asks for it. */
export const asksText: Asks = { ...asks, headers: { Accept: 'text/plain' } }

const processCounts = [1, 2, 4, 8, 16]
const poolSizes = [1, 2, 4, 8, 16, 32]

/** @throws NotMeasuredError that names the package of a program that is missing */
function needs (programs: Readonly<Record<string, string>>): void {
  for (const [program, debian] of Object.entries(programs)) {
    if (findProgram(program) === undefined) {
      throw new NotMeasuredError(`${program} is not installed: sudo apt-get install ${debian}`)
    }
  }
}

async function startTickets (host: Host, withRedis: boolean): Promise<Server> {
  const server = await startGearbox(host, {}, withRedis)
  const { databasePath, port } = server
  const { status } = await fetch(`http://127.0.0.1:${port}/tickets/probe`, { method: 'POST' })
  if (status !== 201) {
    await server.stop()
    if (status === 404) throw new NotMeasuredError('the plugin tickets is not loaded')
    throw new Error(`a ticket was answered ${status}`)
  }
  return {
    ...server,
    asks,
    total: async () => checkedLog(databasePath!, line),
    counted: async () => ({ ...await server.counted!(), increments: undefined }),
  }
}

/** nginx, so many FastCGI processes behind it, and memcached, which holds the number. */
async function startFastcgi (host: Host): Promise<Server> {
  needs({
    nginx: 'nginx-light',
    memcached: 'memcached',
    'spawn-fcgi': 'spawn-fcgi',
    cc: 'gcc libc6-dev libmemcached-dev libfcgi-dev',
  })
  const dir = mkdtempSync(join(host.dir, 'fastcgi-'))
  const program = join(dir, 'tickets')
  try {
    await run('cc', ['-O2', '-o', program, join(import.meta.dirname, '../peers/tickets/tickets.c'), '-lfcgi',
      '-lmemcached'])
  } catch (error) {
    throw new NotMeasuredError('the FastCGI program can\'t be built: sudo apt-get install gcc libc6-dev ' +
      'libmemcached-dev libfcgi-dev', { cause: error })
  }
  return await findBest(host, asks, processCounts.flatMap((processes) =>
    [host.cores.server, undefined].map((core) => ({
      label: `${processes} FastCGI ${processes === 1 ? 'process' : 'processes'} on ` +
        (core === undefined ? 'all cores' : "nginx's core"),
      start: async () => await startFastcgiWith(host, mkdtempSync(join(dir, 'run-')), program, processes, core),
    }))))
}

async function startFastcgiWith (host: Host, dir: string, program: string, processes: number,
  core: number | undefined): Promise<Server> {
  const [memcachedSocket, socket] = [join(dir, 'memcached'), join(dir, 'fastcgi')]
  // Where it is started as root, it wants to know whom to run as; this directory is closed to all others.
  const user = process.getuid?.() === 0 ? ['-u', 'root'] : []
  const memcached = startProgram(['memcached', '-s', memcachedSocket, ...user], host.cores.load)
  const spawned: number[] = []
  const stop = async (): Promise<void> => {
    for (const pid of spawned) {
      try {
        process.kill(pid, 'SIGTERM')
      } catch {
        // It has ended by itself.
      }
    }
    await memcached.end()
  }
  try {
    await until('memcached to listen', async () => await readMemcached(memcachedSocket) !== undefined)
    const output = await run('spawn-fcgi', ['-s', socket, '-b', '4096', '-F', String(processes), '--', program,
      memcachedSocket], core)
    spawned.push(...Array.from(output.matchAll(/PID: (\d+)/g), ([, pid]) => Number(pid)))
    if (spawned.length !== processes) throw new Error(`spawn-fcgi started ${spawned.length} of ${processes}: ${output}`)
    // No fastcgi_keep_conn: a process that keeps its connection serves nobody else, and the rest would wait for ever.
    const nginx = await startNginxWith(host, `location / {
    fastcgi_pass unix:${socket};
    fastcgi_param REQUEST_METHOD $request_method;
    fastcgi_param CONTENT_LENGTH $content_length;
  }`)
    return {
      ...nginx,
      asks,
      get pids () { return [...tree(nginx.pids[0]!), ...spawned] },
      beside: [memcached.pid],
      total: async () => await readMemcached(memcachedSocket) ?? NaN,
      stop: async () => {
        await nginx.stop()
        await stop()
      },
    }
  } catch (error) {
    await stop()
    throw error
  }
}

/** What memcached has under the key of the line; 0 if nothing. */
async function readMemcached (path: string): Promise<number | undefined> {
  const socket = connect(path)
  let text = ''
  try {
    return await new Promise((resolve, reject) => {
      socket.on('error', reject)
      socket.on('data', (chunk) => {
        text += String(chunk)
        if (text.endsWith('END\r\n')) resolve(Number(/\r\n(\d+) *\r\n/.exec(text)?.[1] ?? 0))
      })
      socket.write(`get ${line}\r\n`)
    })
  } finally {
    socket.destroy()
  }
}

/** The counter is a variable: one process, which forgets it when it ends. */
async function startTornado (host: Host): Promise<Server> {
  needs({ python3: 'python3 python3-venv' })
  const dir = join(host.dir, 'tornado')
  const python = join(dir, 'bin/python')
  try {
    await run('python3', ['-m', 'venv', dir])
    await run(python, ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--retries', '1', '--timeout',
      '10', `tornado==${tornadoVersion}`])
  } catch (error) {
    throw new NotMeasuredError(`Tornado can't be installed from PyPI into a new venv (needs python3-venv): ${
      error instanceof Error ? error.message : String(error)}`, { cause: error })
  }
  const port = await freePort()
  return await startPeer(host, {
    port,
    command: [python, join(import.meta.dirname, '../peers/tickets/server.py'), String(port)],
    asks,
    total: totalAt(port),
  })
}

/** A Fastify server that asks a database for every number. */
async function startFastify (host: Host, args: readonly string[], beside: readonly number[] = []): Promise<Server> {
  const server = await startNode(host, 'tickets/fastify.ts', args, { asks, beside })
  return { ...server, total: totalAt(server.port) }
}

async function startRedisIncr (host: Host): Promise<Server> {
  const redis = await host.redis()
  const client = new Redis(redis.url)
  await client.del('bench-tickets').finally(() => client.disconnect())
  return await startFastify(host, ['redis', redis.url], [redis.pid])
}

async function startSqliteTickets (host: Host): Promise<Server> {
  return await startFastify(host, ['sqlite', join(mkdtempSync(join(host.dir, 'sqlite-')), 'tickets.db')])
}

async function startPostgresTickets (host: Host): Promise<Server> {
  return await findBest(host, asks, poolSizes.flatMap((size) =>
    [host.cores.load, undefined].map((core) => ({
      label: `${size} ${size === 1 ? 'connection' : 'connections'}, PostgreSQL on ` +
        (core === undefined ? 'all cores' : "the load's core"),
      start: async () => {
        const postgres = await startPostgres(core)
        try {
          const server = await startFastify(host, ['postgres', postgres.socket, String(size)])
          return {
            ...server,
            get beside () { return tree(postgres.pid) },
            stop: async () => {
              await server.stop()
              await postgres.stop()
            },
          }
        } catch (error) {
          await postgres.stop()
          throw error
        }
      },
    }))))
}

/** Added to the servers of all rows. */
export const ticketServers = {
  tickets: (host) => startTickets(host, true),
  'tickets-embedded': (host) => startTickets(host, false),
  'tickets-fastcgi': startFastcgi,
  'tickets-tornado': startTornado,
  'tickets-redis': startRedisIncr,
  'tickets-postgres': startPostgresTickets,
  'tickets-sqlite': startSqliteTickets,
} satisfies Record<string, Start>
