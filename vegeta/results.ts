// Reads Vegeta's results, and says of each what its reply promises about the request's increments.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { delimiter, join } from 'node:path'
import { createInterface } from 'node:readline'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'

/** counted: all of it. refused: nothing of it. unknown: either, and for each key by itself. */
export type Promised = 'counted' | 'refused' | 'unknown'

export interface Result {
  readonly method: string
  /** The target's, with its fragment. */
  readonly url: string
  /** 0: no whole reply. */
  readonly code: number
  readonly promised: Promised
  /** Vegeta's words, where there was no whole reply or one that it takes for a failure. */
  readonly error: string
}

/** Fields of Vegeta's result that matter here; it holds the reply's body, but not the request's. */
interface VegetaResult {
  readonly seq: number
  readonly code: number
  readonly method: string
  readonly url: string
  readonly error: string
  readonly body: string | null
}

/**
 * The results of one attack, in the order of their replies. Those of no request are left out: with -lazy, Vegeta writes
 * one for each worker that found no more targets.
 * @throws FatalError where the file can't be read, or lacks results
 */
export async function * readResults (path: string): AsyncGenerator<Result> {
  const vegeta = spawn('vegeta', ['encode', '--to', 'json', path], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, PATH: `${process.env.PATH ?? ''}${delimiter}${join(import.meta.dirname, '../.tmp/bin')}` },
  })
  let errors = ''
  vegeta.stderr.on('data', (chunk) => { errors += String(chunk) })
  const ended = once(vegeta, 'close').then(([code]) => Number(code), (error: unknown) => {
    throw new FatalError(`vegeta can't be started (${reasonOf(error)}); install/install_vegeta.sh installs it`, 2)
  })
  ended.catch(() => {})
  let count = 0
  let seqMax = -1
  for await (const line of createInterface({ input: vegeta.stdout })) {
    const result = parse(path, line)
    count++
    seqMax = Math.max(seqMax, result.seq)
    if (result.method !== '') yield { ...result, promised: promisedBy(result) }
  }
  if (await ended !== 0) throw new FatalError(`vegeta can't read ${path}: ${errors.trim()}`, 2)
  if (count === 0) throw new FatalError(`${path} holds no results`, 2)
  // Sequence numbers count up from 0, one for each request.
  if (count !== seqMax + 1) {
    throw new FatalError(`${path} has ${count} results of at least ${seqMax + 1} requests: Vegeta was killed, or it ` +
      'is of several attacks. Nothing can be said of the rest', 2)
  }
}

function parse (path: string, line: string): VegetaResult {
  const result: unknown = JSON.parse(line)
  if (!isResult(result)) throw new FatalError(`${path} has a line that is no result: ${line.slice(0, 100)}`, 2)
  return result
}

function isResult (value: unknown): value is VegetaResult {
  return typeof value === 'object' && value !== null && 'seq' in value && Number.isSafeInteger(value.seq) &&
    'code' in value && typeof value.code === 'number' &&
    'method' in value && typeof value.method === 'string' && 'url' in value && typeof value.url === 'string' &&
    'error' in value && typeof value.error === 'string' && 'body' in value &&
      (value.body === null || typeof value.body === 'string')
}

function promisedBy ({ code, error, body }: VegetaResult): Promised {
  if (code === 202 || code === 204) return 'counted'
  // It names the keys that were refused, but not always all of them; the others were counted.
  if (code === 422 && Buffer.from(body ?? '', 'base64').includes('GBX_TOTAL_OVERFLOW')) return 'unknown'
  if ((code >= 400 && code < 500) || code === 503) return 'refused'
  // A connection that was never made has carried nothing.
  return code === 0 && /: dial tcp /.test(error) ? 'refused' : 'unknown'
}
