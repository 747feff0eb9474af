// Fastify that asks a database for the next number, one transaction per request, and answers once the number is on the
// disk: `redis URL` (INCR; the server syncs its file at every write), `postgres SOCKET CONNECTIONS` (a row that is
// updated and so locked), `sqlite PATH` (WAL, synchronous FULL).
import Database from 'better-sqlite3'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import { PostgresPool } from './postgres.ts'

interface Counter {
  readonly next: () => number | Promise<number>
  readonly total: () => number | Promise<number>
}

const [, , port, kind, where = '', connections] = process.argv

function openSqlite (path: string): Counter {
  const db = new Database(path)
  db.pragma('journal_mode = WAL')
  db.pragma('synchronous = FULL')
  db.exec('CREATE TABLE IF NOT EXISTS lines(name TEXT PRIMARY KEY, issued INTEGER NOT NULL) STRICT, WITHOUT ROWID')
  db.exec("INSERT OR IGNORE INTO lines VALUES ('bench', 0)")
  const next = db.prepare<[], number>("UPDATE lines SET issued = issued + 1 WHERE name = 'bench' RETURNING issued")
    .pluck()
  const total = db.prepare<[], number>("SELECT issued FROM lines WHERE name = 'bench'").pluck()
  return { next: () => next.get() ?? NaN, total: () => total.get() ?? NaN }
}

async function openPostgres (socket: string, size: number): Promise<Counter> {
  const pool = await PostgresPool.open(socket, size)
  await pool.query('CREATE TABLE IF NOT EXISTS lines(name text PRIMARY KEY, issued bigint NOT NULL)')
  await pool.query("INSERT INTO lines VALUES ('bench', 0) ON CONFLICT DO NOTHING")
  return {
    next: async () =>
      Number(await pool.query("UPDATE lines SET issued = issued + 1 WHERE name = 'bench' RETURNING issued")),
    total: async () => Number(await pool.query("SELECT issued FROM lines WHERE name = 'bench'")),
  }
}

function openRedis (url: string): Counter {
  const redis = new Redis(url)
  return {
    next: async () => await redis.incr('bench-tickets'),
    total: async () => Number(await redis.get('bench-tickets')),
  }
}

const counter = kind === 'redis'
  ? openRedis(where)
  : kind === 'postgres' ? await openPostgres(where, Number(connections)) : openSqlite(where)
const app = Fastify()
app.post('/tickets/bench', async (_request, reply) =>
  await reply.type('text/plain').send(`ticket number ${String(await counter.next()).padStart(10, '0')}\n`))
app.get('/total', async () => String(await counter.total()))

await app.listen({ port: Number(port), host: '127.0.0.1', backlog: 65_535 })
