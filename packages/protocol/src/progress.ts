// How far a producer's batches have come: the message that the consumer sends to web workers, through whichever queue.
// It travels as JSON, in which `omittedRejections` is called `untold` and `omittedFiled` is called `untoldFiled`.
import { parseResults, type EntryResult } from './plugin-entry.ts'
import { parseSequences, type Sequences } from './sequences.ts'

/** Why an entry of a batch was not applied. `trigger`: a trigger or an index of the database's owner refuses it. */
export type RejectReason = 'overflow' | 'unreadable' | 'other body' | 'too late' | 'trigger'

/** All reasons, in the order in which they are shown. */
export const rejectReasons: readonly RejectReason[] = ['overflow', 'unreadable', 'other body', 'too late', 'trigger']

/** An entry that was not applied: of the sums by its key, of the idempotent requests by its id. */
export interface Rejection {
  readonly seq: number
  readonly key?: string
  readonly once?: string
  readonly reason: RejectReason
  /**
   * Whether it is kept in `rejected`, as it was promised or may have been. Without it (as a consumer of the version
   * before sends it) it is. False: nothing is kept, and its clients get a refusal.
   */
  readonly filed?: boolean
  /** The sum, in decimal digits, of an entry of the sums that was not filed. */
  readonly value?: string
}

/** All that is stored of one producer. Complete in itself: it replaces whatever was reported before. */
export interface Progress extends Sequences {
  /** Rejections of about the last minute; a stored sequence may have older ones. */
  readonly rejected: readonly Rejection[]
  /** Sequences whose rejections were too many to report. */
  readonly omittedRejections: readonly number[]
  /** Those of `omittedRejections` whose rejections were filed. */
  readonly omittedFiled?: readonly number[]
  /**
   * Outcomes of entries of plugins. Unlike all else these are only news: a stored sequence may have others, which its
   * worker asks for (ResultRequest).
   */
  readonly results?: readonly EntryResult[]
}

/** What a worker tells and asks the consumer about the outcomes of its entries. It can be lost, and be repeated. */
export interface ResultRequest {
  readonly producer: string
  /** Sequences of which it has all outcomes: they need not be kept any longer. */
  readonly received: readonly number[]
  /** Sequences that are stored and of which it lacks outcomes. */
  readonly missing: readonly number[]
}

/** Parses a ResultRequest; undefined if the text is not one. */
export function parseResultRequest (text: string): ResultRequest | undefined {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return undefined
  }
  if (typeof value !== 'object' || value === null || !('producer' in value)) return undefined
  const { producer } = value
  if (typeof producer !== 'string' || !/^[0-9a-f-]{36}$/.test(producer)) return undefined
  const received = 'received' in value ? parseNumbers(value.received) : []
  return { producer, received, missing: 'missing' in value ? parseNumbers(value.missing) : [] }
}

/** A progress message as JSON. */
export function encodeProgress (progress: Progress): string {
  const { high, gaps, rejected, omittedRejections, omittedFiled, results } = progress
  const untoldFiled = omittedFiled === undefined ? {} : { untoldFiled: omittedFiled }
  return JSON.stringify({ high, gaps, rejected, untold: omittedRejections, ...untoldFiled, results })
}

/** Parses a progress message; undefined if the text is not one. */
export function parseProgress (text: string): Progress | undefined {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    return undefined
  }
  const sequences = parseSequences(value)
  if (sequences === undefined || typeof value !== 'object' || value === null) return undefined
  const rejected = 'rejected' in value && Array.isArray(value.rejected) ? value.rejected.filter(isRejection) : []
  const omittedRejections = 'untold' in value ? parseNumbers(value.untold) : []
  const omittedFiled = 'untoldFiled' in value ? { omittedFiled: parseNumbers(value.untoldFiled) } : {}
  const results = 'results' in value ? { results: parseResults(value.results) } : {}
  return { ...sequences, rejected, omittedRejections, ...omittedFiled, ...results }
}

function parseNumbers (value: unknown): number[] {
  return Array.isArray(value) ? value.filter((seq): seq is number => Number.isSafeInteger(seq)) : []
}

function isRejection (value: unknown): value is Rejection {
  return typeof value === 'object' && value !== null && 'seq' in value && typeof value.seq === 'number' &&
    'reason' in value && rejectReasons.some((reason) => reason === value.reason) &&
    (!('key' in value) || typeof value.key === 'string') && (!('once' in value) || typeof value.once === 'string') &&
    (!('filed' in value) || typeof value.filed === 'boolean') &&
    (!('value' in value) || (typeof value.value === 'string' && /^-?\d{1,19}$/.test(value.value)))
}
