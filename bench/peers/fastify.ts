// Bare Fastify: it parses, sums in memory and answers 204. With `redis URL` it sends one INCRBY a pair and answers when
// Redis has it; with `sqlite PATH` it commits one upsert a pair (WAL, synchronous FULL) before it answers.
import Database from 'better-sqlite3'
import Fastify from 'fastify'
import { Redis } from 'ioredis'
import { eachPair, port, sum, total } from './sums.ts'

const [, , , kind, where = ''] = process.argv

const app = Fastify()
app.removeAllContentTypeParsers()
app.addContentTypeParser('application/x-www-form-urlencoded', { parseAs: 'string' },
  (_request, body, done) => done(null, body))
app.get('/total', async () => total())

if (kind === 'redis') {
  const redis = new Redis(where)
  app.post<{ Body: string }>('/increment', async ({ body }, reply) => {
    const added: Array<Promise<number>> = []
    eachPair(body, (key, value) => { added.push(redis.incrby(key, value)) })
    await Promise.all(added)
    return await reply.code(204).send()
  })
} else if (kind === 'sqlite') {
  const db = new Database(where)
  db.pragma('journal_mode = WAL')
  db.pragma('synchronous = FULL')
  db.exec('CREATE TABLE IF NOT EXISTS numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID')
  const upsert =
    db.prepare('INSERT INTO numbers(key, value) VALUES (?, CAST(? AS INTEGER)) ON CONFLICT(key) DO UPDATE SET value ' +
      '= value + excluded.value')
  app.post<{ Body: string }>('/increment', ({ body }, reply) => {
    eachPair(body, (key, value) => { upsert.run(key, value) })
    reply.code(204).send()
  })
} else {
  app.post<{ Body: string }>('/increment', ({ body }, reply) => {
    sum(body)
    reply.code(204).send()
  })
}

await app.listen({ port, host: '127.0.0.1', backlog: 65_535 })
