// `npm run verify`: for every worker that lives, what it accepted is stored, queued, in its window or pending; for those that are
// gone, queue and database must have no hole. Whatever is missing or too much is named with the place where it should be.
import { readHeader, type Header } from '@gearbox/protocol/batch.ts'
import { ask, createConnection, redisKeys, shownUrl } from '@gearbox/queue/redis/connection.ts'
import { has, none, parseSequences, type Sequences } from '@gearbox/protocol/sequences.ts'
import {
  belongsTo, embeddedQueueName, listUnsent, placeOf, redisQueueName, SpoolFile, type Origin,
} from '@gearbox/queue/spool-file.ts'
import { keyFor } from '@gearbox/runtime/access/api-keys.ts'
import { loadConfig, type Config } from '@gearbox/runtime/config.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import { printLines } from '@gearbox/runtime/log/output.ts'
import { createLogger } from '@gearbox/runtime/log/logger.ts'
import { openForReading } from '@gearbox/runtime/open-for-reading.ts'
import { defineCommand } from '@gearbox/runtime/process/command.ts'

const usage = `Of workers that are gone, what waits in this machine's UNSENT_DIR is counted where it belongs to this database.
Exit code 0: all of it adds up; 1: it does not, and the output says where.

usage: npm run verify [-- --url http://HOST:PORT[BASE_PATH] …]

  --url    where /metrics of the workers is (default: http://HOST:PORT[BASE_PATH], where npm start answers for all of them). Workers
           that were started one by one have it on the METRICS_PORT of each: name all of them, --url http://HOST:METRICS_PORT each`

/** What is under way while it is read can be seen twice or not at all: a difference counts only if it stays. */
const attempts = 20
const attemptPauseMs = 250

const busyTimeoutMs = 5000

/** Elements of the queue that are read at once. */
const pageElements = 100

interface Progress {
  readonly sequences: Sequences
  readonly increments: number
}

interface Living {
  readonly accepted: number
  readonly pending: number
  readonly window: number
}

interface Finding {
  readonly text: string
  readonly right: boolean
}

/** `npm run verify`. */
export const command = defineCommand({
  name: 'verify',
  summary: 'Reconciles what was accepted with what is stored, queued, in a window or pending, worker by worker.',
  usage,
  options: { url: { type: 'string', multiple: true } },
  settings: ['host', 'port', 'redisUrl', 'queueName', 'databasePath', 'unsentDir', 'basePath', 'apiKeys', 'logLevel'],
  run: async ({ values }) => await verify(values.url),
})

async function verify (named: readonly string[] | undefined): Promise<number> {
  const config = loadConfig(process.env)
  const urls = named ?? [`http://${config.host.includes(':') ? `[${config.host}]` : config.host}:${config.port}${config.basePath}`]
  let findings: Finding[] = []
  for (let attempt = 1; attempt <= attempts; attempt++) {
    findings = await reconcile(config, urls)
    if (findings.every(({ right }) => right)) break
    if (attempt < attempts) await new Promise((resolve) => setTimeout(resolve, attemptPauseMs))
  }
  const right = findings.every((finding) => finding.right)
  const lines = [...findings.map(({ text }) => text), right ? 'all of it adds up' : 'it does not add up: see the lines that say so']
  await printLines(lines)
  return right ? 0 : 1
}

async function reconcile (config: Config, urls: readonly string[]): Promise<Finding[]> {
  // In the order in which increments move on, so that what moves meanwhile is seen twice rather than never.
  const living = await readLiving(urls, keyFor('read', config.apiKeys))
  const files = await readUnsent(config)
  const { queued, generation } = await readQueue(config)
  const { stored, rejected, uuid } = readDatabase(config.databasePath)
  const { unsent, findings } = countUnsent(files, { queue: queueNameOf(config), generation, database: uuid }, stored)
  findings.push(...await readTroubles(urls))
  const producers = new Set([...living.keys(), ...queued.keys(), ...unsent.keys(), ...stored.keys()])
  let [goneProducers, goneStored, goneQueued, goneUnsent] = [0, 0, 0, 0]
  for (const producer of producers) {
    const { sequences, increments } = stored.get(producer) ?? { sequences: none, increments: 0 }
    // What is in the queue and applied already has not been acknowledged yet.
    const waiting = (queued.get(producer) ?? []).filter(({ seq }) => !has(sequences, seq))
    const inQueue = sum(new Map(waiting.map((header) => [header.seq, header.increments])).values())
    const worker = living.get(producer)
    if (worker === undefined) {
      goneProducers++
      goneStored += increments
      goneQueued += inQueue
      const waitingSeqs = new Set(waiting.map(({ seq }) => seq))
      const inFile = (unsent.get(producer) ?? []).filter(({ seq }) => !has(sequences, seq) && !waitingSeqs.has(seq))
      goneUnsent += sum(new Map(inFile.map((header) => [header.seq, header.increments])).values())
      findings.push(...holes(producer, sequences, [...waiting, ...inFile]))
    } else {
      findings.push(balance(producer, worker, increments, inQueue))
    }
  }
  if (goneProducers > 0) findings.push({ text: `workers that are gone (or not named with --url): ${goneProducers}; stored ${goneStored}, queued ${goneQueued}, in unsent files ${goneUnsent}`, right: true })
  findings.push({ text: `rejected: ${rejected}${rejected === 0 ? '' : ' entries of what stands as stored, which npm run rejected lists'}`, right: true })
  return findings
}

function balance (producer: string, { accepted, pending, window }: Living, stored: number, queued: number): Finding {
  const found = stored + queued + window + pending
  const parts = `worker ${producer}: accepted ${accepted}; stored ${stored}, queued ${queued}, in its window ${window}, pending ${pending}`
  if (found === accepted) return { text: parts, right: true }
  const where = found > accepted
    ? `${found - accepted} too many`
    : `${accepted - found} missing: they were pushed, and neither the queue nor the database has them${window + pending === 0 ? '' : ' yet'}`
  return { text: `${parts}: DOES NOT ADD UP, ${where}`, right: false }
}

/** Batches of a worker that is gone which neither the database nor the queue nor a file has, though later ones were there. */
function holes (producer: string, { high, gaps }: Sequences, waiting: readonly Header[]): Finding[] {
  const queued = [...new Set(waiting.map(({ seq }) => seq))].sort((one, other) => one - other)
  const last = queued.at(-1) ?? 0
  const unstored = last > high ? [...gaps, [high + 1, last] as const] : gaps
  const found: Array<readonly [from: number, to: number]> = []
  let next = 0
  // Both are in order: of each range, what lies between the queued ones is missing.
  for (const [from, to] of unstored) {
    let at = from
    for (; next < queued.length && queued[next]! <= to; next++) {
      const seq = queued[next]!
      if (seq > at) found.push([at, seq - 1])
      at = Math.max(at, seq + 1)
    }
    if (at <= to) found.push([at, to])
  }
  return found.map(([from, to]) => ({ text: `worker ${producer}, gone: batches ${from} to ${to} are MISSING, the queue lost them`, right: false }))
}

function baseOf (url: string): string {
  return url.replace(/\/(metrics\/?)?$/, '')
}

async function readLiving (urls: readonly string[], apiKey: string | undefined): Promise<Map<string, Living>> {
  const living = new Map<string, Living>()
  for (const url of urls) {
    const text = await scrape(url, apiKey)
    for (const [producer, accepted] of read(text, 'gearbox_producer_increments')) {
      living.set(producer, {
        accepted,
        pending: read(text, 'gearbox_producer_pending_increments').get(producer) ?? 0,
        window: read(text, 'gearbox_producer_window_increments').get(producer) ?? 0,
      })
    }
  }
  return living
}

/** What keeps living workers' counts from being stored, in their own words. */
async function readTroubles (urls: readonly string[]): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const url of urls) {
    const response = await fetch(`${baseOf(url)}/readyz`, { headers: { connection: 'close' } }).catch(() => undefined)
    // A process that serves its metrics alone has no /readyz.
    if (response?.status !== 503) continue
    findings.push({ text: `${url} is NOT READY: ${messageOf(await response.text())}`, right: false })
  }
  return findings
}

/** @param url with or without /metrics at its end @throws FatalError that says what to name instead */
async function scrape (url: string, apiKey: string | undefined): Promise<string> {
  const address = `${baseOf(url)}/metrics`
  let response: Response
  try {
    response = await fetch(address, { headers: { connection: 'close', ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }) } })
  } catch (error) {
    throw new FatalError(`no worker answers at ${url} (${reasonOf(error instanceof Error ? error.cause ?? error : error)}); name where they have /metrics with --url`)
  }
  const text = await response.text()
  if (response.ok) return text
  if (response.status === 401) throw new FatalError(`${address} answers 401; API_KEYS must have one of its keys that may read`)
  throw new FatalError(`${address} answers ${response.status}: ${messageOf(text)}` + (response.status === 404
    ? '\nName all of them: npm run verify -- --url http://HOST:METRICS_PORT --url http://HOST:ANOTHER_METRICS_PORT'
    : ''))
}

/** The message of an error of ours, or the beginning of whatever else was answered. */
function messageOf (text: string): string {
  try {
    const error: unknown = JSON.parse(text)
    if (typeof error === 'object' && error !== null && 'message' in error) return String(error.message)
  } catch {
    // Somebody else's answer.
  }
  return JSON.stringify(text.slice(0, 64))
}

/** A labelled figure in Prometheus's text format: producer → value. */
function read (text: string, name: string): Map<string, number> {
  return new Map(Array.from(text.matchAll(new RegExp(`^${name}\\{producer="([^"]+)"\\} (\\d+)$`, 'gm')), ([, producer, value]) => [producer!, Number(value)]))
}

interface Unsent {
  readonly origin: Origin | undefined
  readonly headers: readonly Header[]
  /** Why it could not be read; undefined if it could. */
  readonly problem: string | undefined
}

/** What stopping workers left in UNSENT_DIR, by path. */
async function readUnsent ({ unsentDir }: Config): Promise<Map<string, Unsent>> {
  const files = new Map<string, Unsent>()
  for (const path of await listUnsent(unsentDir)) {
    const headers: Header[] = []
    let file: SpoolFile | undefined
    let problem: string | undefined
    try {
      file = await SpoolFile.open(path)
      for await (const { header } of file.batches()) headers.push(header)
    } catch (error) {
      // It may just have gone.
      if (error instanceof Error && 'code' in error && error.code === 'ENOENT') continue
      problem = reasonOf(error)
    }
    await file?.close()
    files.set(path, { origin: file?.origin, headers, problem })
  }
  return files
}

/** The batches in files that belong here, by worker. A file that does not say where it belongs does if the database knows its workers. */
function countUnsent (files: ReadonlyMap<string, Unsent>, here: Origin, stored: ReadonlyMap<string, Progress>): { unsent: Map<string, Header[]>, findings: Finding[] } {
  const unsent = new Map<string, Header[]>()
  const findings: Finding[] = []
  for (const [path, { origin, headers, problem }] of files) {
    const belongs = origin === undefined ? headers.every(({ producer }) => stored.has(producer)) : belongsTo(origin, here) === true
    if (problem !== undefined) {
      findings.push({ text: `unsent file ${path} CAN'T BE READ (${problem}): what is in it is not counted`, right: origin !== undefined && !belongs })
    } else if (!belongs) {
      findings.push({ text: `unsent file ${path} is not counted: ${origin === undefined ? 'it does not say where it belongs' : `it belongs to ${placeOf(origin)}`}`, right: true })
    } else {
      for (const header of headers) {
        const of = unsent.get(header.producer)
        if (of === undefined) unsent.set(header.producer, [header])
        else of.push(header)
      }
    }
  }
  return { unsent, findings }
}

function queueNameOf ({ redisUrl, queueName, databasePath }: Config): string {
  return redisUrl === undefined ? embeddedQueueName(databasePath) : redisQueueName(redisUrl, shownUrl(redisUrl), queueName)
}

async function readQueue ({ redisUrl, queueName, logLevel }: Config): Promise<{ queued: Map<string, Header[]>, generation: string | undefined }> {
  const queued = new Map<string, Header[]>()
  if (redisUrl === undefined) return { queued, generation: undefined }
  let lost: string | undefined
  const redis = createConnection(redisUrl, createLogger('verify', logLevel), (reason) => { lost ??= reason })
  try {
    await ask(redis.connect())
    const generation = await ask(redis.get(redisKeys(queueName).generation)) ?? undefined
    for (let first = 0; ; first += pageElements) {
      const elements = await ask(redis.lrangeBuffer(redisKeys(queueName).batches, first, first + pageElements - 1))
      for (const element of elements) {
        const header = readHeader(element)
        if (typeof header === 'string') continue
        const headers = queued.get(header.producer) ?? []
        headers.push(header)
        queued.set(header.producer, headers)
      }
      if (elements.length < pageElements) return { queued, generation }
    }
  } catch (error) {
    throw new FatalError(`the queue in Redis at ${shownUrl(redisUrl)} can't be read: ${lost ?? reasonOf(error)}`)
  } finally {
    redis.disconnect()
  }
}

function readDatabase (path: string): { stored: Map<string, Progress>, rejected: number, uuid: string } {
  try {
    const db = openForReading(path, busyTimeoutMs)
    try {
      const rows = db.prepare<[], { producer: string, high: number, gaps: string, increments: number }>('SELECT producer, high, gaps, increments FROM producers').all()
      const stored = new Map(rows.map(({ producer, high, gaps, increments }): [string, Progress] =>
        [producer, { sequences: parseSequences({ high, gaps: JSON.parse(gaps) }) ?? none, increments }]))
      const rejected = Number(db.prepare('SELECT count(*) FROM rejected').pluck().get())
      return { stored, rejected, uuid: String(db.prepare("SELECT value FROM meta WHERE name = 'uuid'").pluck().get()) }
    } finally {
      db.close()
    }
  } catch (error) {
    throw new FatalError(`the database ${path} can't be read (${reasonOf(error)}); DATABASE_PATH names it`)
  }
}

function sum (values: Iterable<number>): number {
  let total = 0
  for (const value of values) total += value
  return total
}
