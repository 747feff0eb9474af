// Whether what `npm run verify` has gathered adds up. Reads nothing: the same input gives the same findings.
import type { Header } from '@gearbox/protocol/batch.ts'
import { has, none, type Sequences } from '@gearbox/protocol/sequences.ts'
import { belongsTo, placeOf, type Origin } from '@gearbox/queue/spool-file.ts'
import { byProducer, type Gathered, type Stored, type UnsentFile } from './gather.ts'
import type { LivingWorker } from './workers.ts'

/** One line of the result. */
export interface Finding {
  readonly text: string
  /** Whether it is as it should be. */
  readonly right: boolean
}

/** What a worker that is gone has left, in increments. */
interface Left {
  readonly stored: number
  readonly queued: number
  readonly unsent: number
}

/** All findings, in the order in which they are printed. */
export function judge ({ workers, files, queued, stored, rejected, here, troubles }: Gathered): Finding[] {
  const belonging = files.filter((file) => file.problem === undefined && belongs(file, here, stored))
  const unsent = byProducer(belonging.flatMap(({ headers }) => headers))
  const findings = [
    ...files.flatMap((file) => judgeFile(file, belongs(file, here, stored))),
    ...Array.from(troubles, ([url, why]) => ({ text: `${url} is NOT READY: ${why}`, right: false })),
  ]
  const left: Left[] = []
  for (const producer of new Set([...workers.keys(), ...queued.keys(), ...unsent.keys(), ...stored.keys()])) {
    const { sequences, increments } = stored.get(producer) ?? { sequences: none, increments: 0 }
    // What is in the queue and applied already has not been acknowledged yet.
    const waiting = (queued.get(producer) ?? []).filter(({ seq }) => !has(sequences, seq))
    const worker = workers.get(producer)
    if (worker === undefined) {
      const inQueue = new Set(waiting.map(({ seq }) => seq))
      const inFile = (unsent.get(producer) ?? []).filter(({ seq }) => !has(sequences, seq) && !inQueue.has(seq))
      left.push({ stored: increments, queued: incrementsOf(waiting), unsent: incrementsOf(inFile) })
      findings.push(...holes(producer, sequences, [...waiting, ...inFile]))
    } else {
      findings.push(balance(producer, worker, increments, incrementsOf(waiting)))
    }
  }
  if (left.length > 0) findings.push({ text: describeLeft(left), right: true })
  const rejectedHint = rejected === 0 ? '' : ' entries of what is counted as stored here, which npm run rejected lists'
  findings.push({ text: `rejected: ${rejected}${rejectedHint}`, right: true })
  return findings
}

/** Whether a file's batches belong here. One that does not say where belongs here if the database knows its workers. */
function belongs ({ origin, headers }: UnsentFile, here: Origin, stored: ReadonlyMap<string, Stored>): boolean {
  if (origin === undefined) return headers.every(({ producer }) => stored.has(producer))
  return belongsTo(origin, here) === true
}

function judgeFile ({ path, origin, problem }: UnsentFile, isHere: boolean): Finding[] {
  if (problem !== undefined) {
    const text = `unsent file ${path} CAN'T BE READ (${problem}): what is in it is not counted`
    return [{ text, right: origin !== undefined && !isHere }]
  }
  if (isHere) return []
  const why = origin === undefined ? 'it does not say where it belongs' : `it belongs to ${placeOf(origin)}`
  return [{ text: `unsent file ${path} is not counted: ${why}`, right: true }]
}

function describeLeft (left: readonly Left[]): string {
  const stored = sum(left.map((one) => one.stored))
  const queued = sum(left.map((one) => one.queued))
  const unsent = sum(left.map((one) => one.unsent))
  return `workers that are gone (or not named with --url): ${left.length}; ` +
    `stored ${stored}, queued ${queued}, in unsent files ${unsent}`
}

function balance (
  producer: string, { accepted, pending, window }: LivingWorker, stored: number, queued: number
): Finding {
  const found = stored + queued + window + pending
  const parts = `worker ${producer}: accepted ${accepted}; ` +
    `stored ${stored}, queued ${queued}, in its window ${window}, pending ${pending}`
  if (found === accepted) return { text: parts, right: true }
  const yet = window + pending === 0 ? '' : ' yet'
  const difference = found > accepted
    ? `${found - accepted} too many`
    : `${accepted - found} missing: they were pushed, and neither the queue nor the database has them${yet}`
  return { text: `${parts}: DOES NOT ADD UP, ${difference}`, right: false }
}

/**
 * Batches of a worker that is gone which neither the database nor the queue nor a file has, though later ones were
 * there.
 */
function holes (producer: string, { high, gaps }: Sequences, waiting: readonly Header[]): Finding[] {
  const queued = [...new Set(waiting.map(({ seq }) => seq))].sort((one, other) => one - other)
  const last = queued.at(-1) ?? 0
  const unstored = last > high ? [...gaps, [high + 1, last] as const] : gaps
  const found: Array<readonly [from: number, to: number]> = []
  let next = 0
  // Both are in order: of each range, what is between the queued ones is missing.
  for (const [from, to] of unstored) {
    let at = from
    for (; next < queued.length && queued[next]! <= to; next++) {
      const seq = queued[next]!
      if (seq > at) found.push([at, seq - 1])
      at = Math.max(at, seq + 1)
    }
    if (at <= to) found.push([at, to])
  }
  return found.map(([from, to]) => ({
    text: `worker ${producer}, gone: batches ${from} to ${to} are MISSING, the queue lost them`, right: false,
  }))
}

/** Increments of batches, each sequence once. */
function incrementsOf (headers: readonly Header[]): number {
  return sum(new Map(headers.map(({ seq, increments }) => [seq, increments])).values())
}

function sum (values: Iterable<number>): number {
  let total = 0
  for (const value of values) total += value
  return total
}
