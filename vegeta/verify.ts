// Checks the maths after an attack: what the replies promised, added up key by key, against what the database holds.
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import type Database from 'better-sqlite3'
import { keyFor, parseApiKey } from '@gearbox/runtime/access/api-keys.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { runMain } from '@gearbox/runtime/process/run-main.ts'
import { readResults } from './results.ts'
import { isReachable, reachable, sumByKey, tallyName, type Range, type Sum, type Tallies } from './sums.ts'
import { countRejected, drained, openDatabase, readBaseline, saveBaseline, totalsOf } from './totals.ts'

const usage = `Checks that the totals in a database are what Vegeta's results promise.

usage: npm run verify:load -- RESULTS... DATABASE [options]
       npm run verify:load -- --save-baseline FILE DATABASE

  RESULTS               written by vegeta attack; several where the same targets were sent in several attacks
  --targets FILE        what Vegeta was given (default: .tmp/vegeta/targets.json)
  --baseline FILE       totals before the attack: from --save-baseline, or a copy of the database (default: none)
  --save-baseline FILE  writes the totals there and checks nothing
  --url URL             waits until its /metrics say that nothing waits to be stored: one for all of npm start,
                        or one for each web worker that runs alone. With API_KEYS, a key of
                        the environment's API_KEYS that may read is sent
  --quiet-ms MS         then waits until the database has not changed for so long (default: 500 with --url, else 3000)
  --deadline-ms MS      waits at most so long (default: 60000)
  --show COUNT          differences listed (default: 20)

A 202 or 204 was counted; a 4xx, a 503 or a connection that could not be made was not. Anything else, and no
reply at all, may have been: then every sum is accepted that can come of it. With an Idempotency-Key,
repeats count once.
Exit code: 0 all totals are right, 1 some differ, 2 it can't be told.
`

async function main (): Promise<number> {
  const options = parse()
  if (options === undefined) {
    process.stdout.write(usage)
    return 0
  }
  const db = openDatabase(options.database)
  try {
    if (options.saveBaseline !== undefined) {
      await drained(db, options)
      process.stdout.write(`${saveBaseline(db, options.saveBaseline)} totals: ${options.saveBaseline}\n`)
      return 0
    }
    const { tallies, summary } = await tally(options.results)
    const sums = await sumByKey(tallies, options.targets)
    const before = options.baseline === undefined ? new Map<string, bigint>() : readBaseline(options.baseline)
    await drained(db, options)
    return report(db, compare(db, sums, before, options.show), summary, options.baseline !== undefined)
  } finally {
    db.close()
  }
}

interface Options {
  readonly results: readonly string[]
  readonly database: string
  readonly targets: string
  readonly baseline: string | undefined
  readonly saveBaseline: string | undefined
  readonly urls: readonly string[]
  readonly apiKey: string | undefined
  readonly quietMs: number
  readonly deadlineMs: number
  readonly show: number
}

/** @returns undefined if help was asked for @throws FatalError */
function parse (): Options | undefined {
  const { values, positionals } = parseOptions()
  if (values.help === true) return undefined
  const number = (name: string, text: string): number => {
    if (!/^[0-9]{1,9}$/.test(text)) {
      throw new FatalError(`${name} must be a whole number, not ${JSON.stringify(text)}`, 2)
    }
    return Number(text)
  }
  const urls = values.url ?? []
  const wrong = urls.find((url) => !URL.canParse(url))
  if (wrong !== undefined) {
    throw new FatalError(`--url must be one such as http://127.0.0.1:3333, not ${JSON.stringify(wrong)}`, 2)
  }
  const database = positionals.at(-1)
  const results = positionals.slice(0, -1)
  const saves = values['save-baseline'] !== undefined
  if (database === undefined || (results.length > 0) === saves) {
    throw new FatalError(`${saves ? 'only DATABASE is' : 'RESULTS and DATABASE are'} needed\n\n${usage}`, 2)
  }
  return {
    results,
    database,
    targets: values.targets,
    baseline: values.baseline,
    saveBaseline: values['save-baseline'],
    urls,
    apiKey: readKey(process.env.API_KEYS ?? ''),
    quietMs: number('--quiet-ms', values['quiet-ms'] ?? (urls.length > 0 ? '500' : '3000')),
    deadlineMs: number('--deadline-ms', values['deadline-ms']),
    show: number('--show', values.show),
  }
}

/** @throws FatalError */
function readKey (apiKeys: string): string | undefined {
  if (apiKeys === '') return undefined
  try {
    return keyFor('read', apiKeys.split(',').map((entry) => parseApiKey(entry.trim())))
  } catch (error) {
    throw new FatalError(`API_KEYS ${reasonOf(error)}`, 2)
  }
}

function parseOptions () {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        help: { type: 'boolean', short: 'h' },
        targets: { type: 'string', default: join(import.meta.dirname, '../.tmp/vegeta/targets.json') },
        baseline: { type: 'string' },
        'save-baseline': { type: 'string' },
        url: { type: 'string', multiple: true },
        'quiet-ms': { type: 'string' },
        'deadline-ms': { type: 'string', default: '60000' },
        show: { type: 'string', default: '20' },
      },
    })
  } catch (error) {
    throw new FatalError(`${error instanceof Error ? error.message : String(error)}\n\n${usage}`, 2)
  }
}

async function tally (paths: readonly string[]): Promise<{ tallies: Tallies, summary: string }> {
  const tallies: Tallies = new Map()
  const promised = { counted: 0, refused: 0, unknown: 0 }
  const replies = new Map<string, number>()
  for (const path of paths) {
    for await (const result of readResults(path)) {
      const name = tallyName(result.method, result.url)
      const found = tallies.get(name) ?? { counted: 0, refused: 0, unknown: 0 }
      tallies.set(name, found)
      found[result.promised]++
      promised[result.promised]++
      const reply = result.code === 0 ? 'no reply' : String(result.code)
      replies.set(reply, (replies.get(reply) ?? 0) + 1)
    }
  }
  const requests = promised.counted + promised.refused + promised.unknown
  const summary =
    `${requests} requests (${[...replies].sort().map(([reply, count]) => `${reply}: ${count}`).join(', ')}): ` +
    `${promised.counted} counted, ${promised.refused} not counted, ${promised.unknown} may have been\n`
  return { tallies, summary }
}

interface Comparison {
  readonly keys: number
  /** Keys whose total can be one of several, and of those the ones of which only the ends are known. */
  readonly uncertain: number
  readonly ranges: number
  readonly differing: number
  /** Of those, keys that nobody sent and that were not there before. */
  readonly strange: number
  readonly shown: readonly string[]
}

/** @param sums what each key grew by; emptied on the way @param before totals before the attack; likewise */
function compare (db: Database.Database, sums: Map<string, Sum>, before: Map<string, bigint>,
  show: number): Comparison {
  let [keys, uncertain, ranges, differing, strange] = [0, 0, 0, 0, 0]
  const shown: string[] = []
  const differs = (key: string, what: string): void => {
    if (differing++ < show) shown.push(`  ${JSON.stringify(key)}: ${what}\n`)
  }
  const check = (key: string, total: bigint | undefined): void => {
    keys++
    const [sum, old] = [sums.get(key), before.get(key)]
    sums.delete(key)
    before.delete(key)
    if (sum === undefined && old === undefined) {
      strange++
      return differs(key, `nothing was sent, found ${total}`)
    }
    const range = reachable(old ?? 0n, sum ?? { sure: 0n, stored: false, maybe: undefined })
    if (range.min !== range.max) uncertain++
    if (range.sums === undefined) ranges++
    if (total === undefined) {
      if (old !== undefined || sum?.stored === true) differs(key, `expected ${describe(range)}, found no row`)
    } else if (!isReachable(total, range)) {
      differs(key, `expected ${describe(range)}, found ` +
        `${total}${range.min === range.max ? ` (${total > range.min ? '+' : ''}${total - range.min})` : ''}`)
    }
  }
  for (const [key, total] of totalsOf(db)) check(key, total)
  for (const key of [...sums.keys(), ...before.keys()]) if (sums.has(key) || before.has(key)) check(key, undefined)
  return { keys, uncertain, ranges, differing, strange, shown }
}

function describe ({ min, max, sums }: Range): string {
  if (min === max) return String(min)
  if (sums === undefined) return `something from ${min} to ${max}`
  return sums.size <= 8
    ? [...sums].sort((a, b) => a < b ? -1 : 1).join(' or ')
    : `one of ${sums.size} sums from ${min} to ${max}`
}

function report (db: Database.Database, { keys, uncertain, ranges, differing, strange, shown }: Comparison,
  summary: string, hasBaseline: boolean): number {
  const certainty = uncertain === 0
    ? ''
    : `${uncertain} of them could be one of several, by the requests that may have been ` +
      `counted${ranges === 0 ? '' : `; of ${ranges} only the least and the greatest are known`}\n`
  if (differing === 0) {
    process.stdout.write(`${summary}${keys} keys: every total is ${uncertain === 0 ? 'exact' : 'right'}\n${certainty}`)
    return 0
  }
  const rejected = countRejected(db)
  process.stdout.write(`${summary}${keys} keys: ${differing} ` +
  `${differing === 1 ? 'total differs' : 'totals differ'}\n${certainty}${shown.join('')}` +
    `${differing > shown.length ? `  … and ${differing - shown.length} more\n` : ''}` +
    `${strange === 0
? ''
: `${strange} of them were never sent: ` +
      `${hasBaseline
? 'somebody else counts, or another attack came after ' +
        'the baseline'
: 'was the database empty before the attack? If not, --save-baseline first'}\n`}` +
    `${rejected === 0n ? '' : `The consumer refused ${rejected} entries; "npm run rejected" lists them\n`}`)
  return 1
}

await runMain(main)
