// What the totals must have grown by: each target's pairs, as often as its replies promise.
import { FatalError } from '@gearbox/runtime/errors.ts'
import type { Promised } from './results.ts'
import { readTargets, type Target } from './targets.ts'

/** The replies to one target. */
export interface Tally extends Record<Promised, number> {
  target?: Target
}

/** Tallies by method and URL. */
export type Tallies = Map<string, Tally>

/** What is sure of a key's sum, and each delta that may have been added to it, with how often. */
export interface Sum {
  sure: bigint
  /** Whether there must be a row: something was surely counted, if only a zero. */
  stored: boolean
  maybe: Map<bigint, number> | undefined
}

export function tallyName (method: string, url: string): string {
  return `${method} ${url}`
}

/** @throws FatalError where results can't be told to targets */
export async function sumByKey (tallies: Tallies, targetsPath: string): Promise<Map<string, Sum>> {
  await findTargets(tallies, targetsPath)
  const sums = new Map<string, Sum>()
  for (const { target, counted, unknown } of countOnce(tallies.values())) {
    if (target === undefined || (counted === 0 && unknown === 0)) continue
    for (const [key, delta] of readBody(target)) {
      const sum = sums.get(key) ?? { sure: 0n, stored: false, maybe: undefined }
      sums.set(key, sum)
      if (counted > 0) {
        sum.sure += delta * BigInt(counted)
        sum.stored = true
      }
      if (unknown > 0) {
        sum.maybe ??= new Map()
        sum.maybe.set(delta, (sum.maybe.get(delta) ?? 0) + unknown)
      }
    }
  }
  return sums
}

/** Gives each tally its target. A URL is all that a result has of it, so targets of the same URL must be the same. */
async function findTargets (tallies: Tallies, path: string): Promise<void> {
  for await (const target of readTargets(path)) {
    const tally = tallies.get(tallyName(target.method, target.url))
    if (tally === undefined) continue
    tally.target ??= target
    if (!tally.target.body.equals(target.body) || tally.target.idempotencyKey !== target.idempotencyKey) {
      throw new FatalError(`${path}: the targets in lines ${tally.target.line} and ${target.line} have the same URL ` +
      'and differ, so results can\'t tell which one was hit. ' +
        'Give each URL a #fragment of its own, as create_targets.ts does: it is not sent', 2)
    }
  }
  for (const [name, { target }] of tallies) {
    if (target === undefined) {
      throw new FatalError(`there are results of ${name}, which is not in ${path}: --targets names the file that ` +
        'Vegeta had', 2)
    }
  }
}

/** Joins the tallies of each idempotency key: its first request counts, its repeats don't. */
function countOnce (tallies: Iterable<Tally>): Tally[] {
  const byKey = new Map<string, Tally>()
  const others: Tally[] = []
  for (const tally of tallies) {
    const { target } = tally
    if (target?.idempotencyKey === undefined) {
      others.push(tally)
      continue
    }
    const seen = byKey.get(target.idempotencyKey) ?? { target, counted: 0, refused: 0, unknown: 0 }
    byKey.set(target.idempotencyKey, seen)
    if (seen.target?.body.equals(target.body) !== true) {
      throw new FatalError(`the targets in lines ${seen.target?.line} and ${target.line} have the same ` +
        'Idempotency-Key and different bodies: which one came first can\'t be told', 2)
    }
    seen.counted = Math.min(1, seen.counted + tally.counted)
    seen.unknown = seen.counted > 0 ? 0 : Math.min(1, seen.unknown + tally.unknown)
  }
  return [...others, ...byKey.values()]
}

/**
 * A body's delta for each key. Read with URLSearchParams and not with the service's own parser, which is under test.
 * Empty for a body that the service can't have counted.
 */
function readBody ({ url, body }: Target): Map<string, bigint> {
  const fields = [...new URLSearchParams(body.toString())]
  const named = (name: string): string | undefined => fields.find(([field]) => field === name)?.[1]
  const [key, value] = [named('key'), named('value')]
  const original = fields.length === 2 && key !== undefined && value !== undefined &&
    new URL(url).searchParams.get('form') !== 'pairs'
  const deltas = new Map<string, bigint>()
  for (const [name, number] of original ? [[key, value] as const] : fields) {
    if (!/^-?[0-9]{1,5000}$/.test(number)) return new Map()
    deltas.set(name, (deltas.get(name) ?? 0n) + BigInt(number))
  }
  return deltas
}

/** More sums than these aren't listed one by one: 2^16, which 16 different deltas can make. */
const reachableMax = 65_536

export interface Range {
  readonly min: bigint
  readonly max: bigint
  /**
   * All sums from min to max that can be; undefined where they are too many to list, so that only the ends are known.
   */
  readonly sums: ReadonlySet<bigint> | undefined
}

/** Every value that a total can have which was `before`. */
export function reachable (before: bigint, { sure, maybe = new Map() }: Sum): Range {
  let [min, max] = [before + sure, before + sure]
  let sums: Set<bigint> | undefined = new Set([min])
  for (const [delta, count] of maybe) {
    if (delta < 0n) min += delta * BigInt(count)
    else max += delta * BigInt(count)
    if (delta !== 0n && sums !== undefined) sums = withDelta(sums, delta, count)
  }
  return { min, max, sums }
}

/**
 * All sums with `delta` added never to `count` times. Parts of 1, 2, 4, … and the rest make up every number of times.
 */
function withDelta (sums: Set<bigint>, delta: bigint, count: number): Set<bigint> | undefined {
  const grown = new Set(sums)
  for (let left = count, part = 1; left > 0; left -= part, part *= 2) {
    const added = delta * BigInt(Math.min(part, left))
    for (const sum of [...grown]) grown.add(sum + added)
    if (grown.size > reachableMax) return undefined
  }
  return grown
}

export function isReachable (value: bigint, { min, max, sums }: Range): boolean {
  return sums === undefined ? value >= min && value <= max : sums.has(value)
}
