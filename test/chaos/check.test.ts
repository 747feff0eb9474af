// The chaos run itself: what it must find it finds, and it ends as it should.
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import Database from 'better-sqlite3'
import { describe, expect, onTestFinished, test } from 'vitest'
import { endWithTest, listProcesses, Program } from '@gearbox/test-kit/gearbox.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { edges, Ledger, type Attempt, type Operation, type Outcome } from './ledger.ts'
import { runChaos } from './run.ts'

/** What has an answer, and may have been in a worker or a Redis that is no more. */
interface Told {
  readonly outcome: Outcome
  readonly once?: true
  readonly shared?: bigint
  readonly edge?: bigint
  /** It was told that its edge pair was refused. */
  readonly refused?: true
  readonly marks?: Partial<Pick<Attempt, 'killed' | 'orphan' | 'dataLost'>>
  /** Its worker was killed before a sweep saw any of it in the database; as `marks`, through the ledger. */
  readonly workerKilled?: true
}

type Rejected = readonly [key: string, value: bigint, reason: string, idempotencyKey?: string]

/**
 * One operation of the pairs a=5 and b=-7, and what a database is found to have.
 * @returns what the ledger says is wrong
 */
function judge (told: Told, totals: Readonly<Record<string, bigint>>,
  rejected: readonly Rejected[] = []): readonly string[] {
  const dir = temporaryDir()
  const db = new Database(join(dir, 'numbers.db'))
  onTestFinished(() => { db.close() })
  db.exec('CREATE TABLE numbers(key TEXT PRIMARY KEY, value INTEGER NOT NULL); CREATE TABLE rejected(key TEXT, value ' +
    'INTEGER, once TEXT, reason TEXT)')
  const ledger = new Ledger(join(dir, 'operations.jsonl'), db)
  const pair = (key: string | undefined, delta: bigint | undefined): Operation['edge'] =>
    key === undefined || delta === undefined ? undefined : { key, delta }
  const operation: Operation = {
    id: 1,
    own: [{ key: 'a', delta: 5n }, { key: 'b', delta: -7n }],
    shared: pair('hot', told.shared),
    edge: pair(edges[0]?.key, told.edge),
    level: 'queued',
    idempotencyKey: told.once === undefined ? undefined : 'k',
    attempts: [],
  }
  const attempt = ledger.begin(operation)
  ledger.end(attempt, told.outcome, told.refused === undefined ? 'told' : '422', false)
  Object.assign(attempt, told.marks)
  if (told.workerKilled === true) ledger.workerKilled(undefined, new Set())
  const insert = db.prepare<[string, bigint]>('INSERT INTO numbers VALUES (?, ?)')
  for (const { key, delta } of edges) if (totals[key] === undefined) insert.run(key, delta)
  for (const [key, value] of Object.entries(totals)) insert.run(key, value)
  const reject = db.prepare<[string, bigint, string, string | null]>(
    'INSERT INTO rejected(key, value, reason, once) VALUES (?, ?, ?, ?)'
  )
  for (const [key, value, reason, name] of rejected) {
    reject.run(key, value, reason,
      name === undefined ? null : createHash('sha256').update(`0:${name.length}:${name}`).digest('hex'))
  }
  ledger.judge()
  ledger.close()
  return ledger.problems
}

const whole = { a: 5n, b: -7n }
const above = edges[0]!.key

describe('a database is compared with what was told, and nothing is said', () => {
  test.each<[name: string, told: Told, totals: Record<string, bigint>, rejected?: Rejected[]]>([
    ['counted', { outcome: 'counted' }, whole],
    ['refused', { outcome: 'notCounted' }, {}],
    ['no answer, and counted', { outcome: 'unknown' }, whole],
    ['no answer, and counted in part', { outcome: 'unknown' }, { b: -7n }],
    ['no answer, with an idempotency key, and not counted', { outcome: 'unknown', once: true }, {}],
    ['a shared key', { outcome: 'counted', shared: 3n }, { ...whole, hot: 3n }],
    ['a shared key without an answer', { outcome: 'unknown', shared: 3n }, { ...whole, hot: 0n }],
    ['in memory of a worker that was killed, and lost', { outcome: 'memory', marks: { killed: true } }, {}],
    ['in memory of a worker that was killed, and lost, beyond 64 bits with an idempotency key',
      { outcome: 'memory', edge: 1n, once: true, workerKilled: true }, {}],
    ['queued in a Redis that lost it, from a worker that left',
      { outcome: 'counted', marks: { orphan: true, dataLost: true } }, {}],
    ['beyond 64 bits, and set aside', { outcome: 'counted', edge: 1n }, whole, [[above, 1n, 'overflow']]],
    ['beyond 64 bits, and refused', { outcome: 'counted', edge: 1n, refused: true }, whole],
    ['beyond 64 bits with an idempotency key, and refused whole',
      { outcome: 'notCounted', edge: 1n, once: true, refused: true }, {}],
    ['beyond 64 bits with an idempotency key, and set aside', { outcome: 'counted', edge: 1n, once: true }, {},
      [[above, 1n, 'overflow', 'k']]],
  ])('%s', (_name, told, totals, rejected) => {
    expect(judge(told, totals, rejected)).toEqual([])
  })
})

describe('a database is compared with what was told, and it is found', () => {
  test.each<[name: string, told: Told, totals: Record<string, bigint>, rejected?: Rejected[]]>([
    ['counted, and lost', { outcome: 'counted' }, {}],
    ['counted, and lost in part', { outcome: 'counted' }, { a: 5n }],
    ['counted, and doubled', { outcome: 'counted' }, { a: 10n, b: -14n }],
    ['refused, and counted', { outcome: 'notCounted' }, whole],
    ['no answer, and doubled', { outcome: 'unknown' }, { a: 10n, b: -7n }],
    ['no answer, with an idempotency key, and counted in part', { outcome: 'unknown', once: true }, { a: 5n }],
    ['in memory of a worker that left in order, and lost', { outcome: 'memory', marks: { orphan: true } }, {}],
    ['queued, from a worker that was killed, and lost', { outcome: 'counted', marks: { killed: true, orphan: true } },
      {}],
    ['queued in a Redis that lost it, from a worker that lives, and lost',
      { outcome: 'counted', marks: { dataLost: true } }, {}],
    ['a shared key with a sum that can not be', { outcome: 'counted', shared: 3n }, { ...whole, hot: 6n }],
    ['a shared key without an answer, with a sum that can not be', { outcome: 'unknown', shared: 3n },
      { ...whole, hot: 2n }],
    ['beyond 64 bits, and not set aside', { outcome: 'counted', edge: 1n }, whole],
    ['beyond 64 bits, refused, and kept to be tried again', { outcome: 'counted', edge: 1n, refused: true }, whole,
      [[above, 1n, 'overflow']]],
    ['beyond 64 bits with an idempotency key, refused, and kept',
      { outcome: 'notCounted', edge: 1n, once: true, refused: true }, {}, [[above, 1n, 'overflow', 'k']]],
    ['queued, beyond 64 bits with an idempotency key, from a worker that was killed, and lost',
      { outcome: 'counted', edge: 1n, once: true, workerKilled: true }, {}],
    ['beyond 64 bits with an idempotency key, promised, and not set aside',
      { outcome: 'counted', edge: 1n, once: true }, {}],
    ['beyond 64 bits, and set aside twice', { outcome: 'counted', edge: 1n }, whole,
      [[above, 1n, 'overflow'], [above, 1n, 'overflow']]],
    ['beyond 64 bits with an idempotency key, and counted in part',
      { outcome: 'notCounted', edge: 1n, once: true, refused: true }, whole],
    ['a total at an end of 64 bits that has moved', { outcome: 'counted' }, { ...whole, [above]: 2n ** 63n - 2n }],
    ['set aside though it fits', { outcome: 'counted' }, whole, [['a', 5n, 'overflow']]],
    ['set aside for another reason', { outcome: 'counted', edge: 1n }, whole, [[above, 1n, 'too late']]],
    ['a key that nobody counted', { outcome: 'counted' }, { ...whole, c: 1n }],
  ])('%s', (_name, told, totals, rejected) => {
    expect(judge(told, totals, rejected)).toEqual([expect.stringMatching(/^1 totals disagree/), expect.any(String)])
  })
})

test('a total that is wrong by one fails a run, which says its seed, its schedule and the operation, and ' +
  'keeps its files', { timeout: 60_000 }, async () => {
  const seed = 4711
  const plant = (path: string): void => {
    const db = new Database(path)
    db.exec("UPDATE numbers SET value = value + 1 WHERE key = (SELECT key FROM numbers WHERE key GLOB 'c[0-9]*' AND " +
      'value <> 0 ORDER BY key LIMIT 1)')
    db.close()
  }
  const { summary, problems } = await runChaos({ seed, queue: 'embedded', durationMs: 10_000, plant })
  const dir = /files are kept in (.*)/.exec(problems[0] ?? '')?.[1]
  expect(dir, summary).toBeDefined()
  onTestFinished(() => rmSync(dir!, { recursive: true, force: true }))
  const [what, ...rest] = problems
  expect(what).toContain(`seed ${seed}, embedded`)
  const wrong = rest.indexOf('what is wrong:')
  expect(rest.slice(0, wrong)).toEqual(['what befell it:',
    ...Array.from({ length: wrong - 1 }, () => expect.stringMatching(/^\d+ ms: /))])
  expect(wrong).toBeGreaterThan(1)
  expect(rest.slice(wrong + 1)).toEqual(['1 totals disagree with what the clients were told:',
    expect.stringMatching(/^counted, found .*: operation \d+ c\d+-/)])
  const [, operation] = /operation (\d+)/.exec(problems.at(-1) ?? '') ?? []
  expect(readFileSync(join(dir!, 'operations.jsonl'), 'utf8')).toContain(`"id":${operation},`)
  expect(readFileSync(join(dir!, 'output.log'), 'utf8')).toMatch(/listens on/)
  expect(existsSync(join(dir!, 'data', 'numbers.db'))).toBe(true)
})

describe('npm run chaos', () => {
  function start (args: readonly string[], env: NodeJS.ProcessEnv = {}): { program: Program, tmp: string } {
    const tmp = join(temporaryDir(), 'tmp')
    mkdirSync(tmp)
    return {
      program: endWithTest(new Program(process.execPath, ['test/chaos/main.ts', ...args], { TMPDIR: tmp, ...env })),
      tmp,
    }
  }

  test.each(['SIGINT', 'SIGTERM'] as const)('leaves nothing behind at a %s', async (signal) => {
    const { program, tmp } = start(['--seed', '1'])
    const running = await until('clients to count', () => {
      const [dir] = readdirSync(tmp).filter((name) => name.startsWith('gearbox-chaos-'))
      const counts = dir !== undefined && existsSync(join(tmp, dir, 'operations.jsonl'))
      return counts && listProcesses().filter(({ parent }) => parent === program.pid)
    })
    expect(running.length, 'the product and Redis').toBe(2)
    const groups = new Set(running.map(({ group }) => group)
      .filter((group) => group !== listProcesses().find(({ pid }) => pid === program.pid)?.group))
    program.kill(signal)
    expect(await program.exited, program.output).toBe(signal === 'SIGINT' ? 130 : 143)
    expect(program.output).toMatch(/^chaos: .*\n$/)
    expect(readdirSync(tmp)).toEqual([])
    expect(listProcesses().filter(({ pid, group }) => groups.has(group) || running.some((part) => part.pid === pid)))
      .toEqual([])
  })

  const poor = (): NodeJS.ProcessEnv => {
    const dir = temporaryDir()
    symlinkSync(findProgram('ps') ?? '', join(dir, 'ps'))
    return { PATH: dir }
  }

  test.each<[what: string, env: () => NodeJS.ProcessEnv, says: RegExp]>([
    ['without redis-server', poor, /^chaos: redis-server is not installed/],
    ['with a product that does not start', () => ({ HEADERS_TIMEOUT_MS: 'soon' }), /^chaos: .*HEADERS_TIMEOUT_MS/],
  ])('%s says so in one line', async (_what, env, says) => {
    const { program, tmp } = start([], env())
    expect(await program.exited).toBe(1)
    expect(program.output).toMatch(says)
    expect(program.output.trim()).not.toContain('\n')
    expect(readdirSync(tmp)).toEqual([])
  })
})
