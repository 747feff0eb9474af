// What is explored: bounds by name, and the rules that are broken in them.
import { realRules, type Rules } from './rules.ts'
import type { Size } from './state.ts'

export interface Configuration extends Size {
  /** It has somewhat more states than this; far fewer would mean that something can't happen any more. */
  readonly statesMin: number
}

const one = { increments: [2], consumers: 1 }
const withEntries = { ...one, entries: true }

/** One kind of fault at a time. Two increments of a worker become one batch or two. */
export const configurations = {
  'no fault': { ...one, faults: {}, statesMin: 300 },
  'no fault, three batches': { increments: [3], consumers: 1, faults: {}, statesMin: 1_100 },
  timeouts: { ...one, faults: { timeouts: 2 }, statesMin: 7_000 },
  'timeouts, two workers': { increments: [1, 1], consumers: 1, faults: { timeouts: 1 }, statesMin: 11_000 },
  'late messages': { ...one, faults: { late: 2 }, statesMin: 20_000 },
  'consumer crash': { ...one, faults: { consumerCrashes: 2 }, statesMin: 4_400 },
  'consumer crash, two workers': { increments: [1, 1], consumers: 1, faults: { consumerCrashes: 1 }, statesMin: 7_500 },
  'worker crash': { ...one, faults: { workerCrashes: 1, late: 1 }, statesMin: 3_700 },
  'two consumers': { increments: [2], consumers: 2, faults: { secondConsumers: 1 }, statesMin: 5_900 },
  'two consumers, twice': { increments: [2], consumers: 2, faults: { secondConsumers: 2 }, statesMin: 14_000 },
  'loss noticed': { ...one, faults: { restarts: 1, saves: 1 }, statesMin: 110_000 },
  'loss noticed, failover': { increments: [1], consumers: 1, faults: { failovers: 1, saves: 1 }, statesMin: 7_000 },
  'loss unnoticed': { ...one, faults: { flushes: 1 }, statesMin: 5_400 },
  'loss unnoticed, twice': { ...one, faults: { flushes: 2 }, statesMin: 31_000 },
  'loss unnoticed, two workers': { increments: [1, 1], consumers: 1, faults: { flushes: 1 }, statesMin: 70_000 },
  removals: { ...one, faults: { removals: 1 }, statesMin: 2_000 },
  'removals, three batches': { increments: [3], consumers: 1, faults: { removals: 1 }, statesMin: 16_000 },
  'removals, twice': { ...one, faults: { removals: 2 }, statesMin: 6_000 },
  'an older copy, no connection closed': { ...one, faults: { swaps: 1, saves: 1 }, statesMin: 36_000 },
  'slow report': { ...one, faults: { slowReports: 2 }, statesMin: 1_500 },
  stop: { ...one, faults: { stops: 1 }, statesMin: 650 },
  'entries, consumer crash': { ...withEntries, faults: { consumerCrashes: 2 }, statesMin: 20_000 },
  'entries, timeouts': { ...withEntries, faults: { timeouts: 1 }, statesMin: 13_000 },
  'entries, two consumers': { ...withEntries, consumers: 2, faults: { secondConsumers: 1 }, statesMin: 78_000 },
  'entries, loss unnoticed': { ...withEntries, faults: { flushes: 1 }, statesMin: 42_000 },
  'entries, two workers': { ...withEntries, increments: [1, 1], faults: { consumerCrashes: 1 }, statesMin: 74_000 },
} as const satisfies Record<string, Configuration>

/** Two kinds at a time, where one alone can't show something. */
export const mixed = {
  'worker and consumer crash': { ...one, faults: { workerCrashes: 1, consumerCrashes: 1 }, statesMin: 2_000 },
  'slow report and consumer crash': { ...one, faults: { slowReports: 1, consumerCrashes: 1 }, statesMin: 5_000 },
  'stop and late messages': { ...one, faults: { stops: 1, late: 1 }, statesMin: 7_000 },
  'stop and removal': { ...one, faults: { stops: 1, removals: 1 }, statesMin: 4_000 },
  'stop and loss': { ...one, faults: { stops: 1, flushes: 1 }, statesMin: 9_000 },
  'worker crash and loss': { ...one, faults: { workerCrashes: 1, flushes: 1 }, statesMin: 6_000 },
  'loss and late messages': { ...one, faults: { flushes: 1, late: 1 }, statesMin: 90_000 },
  'two failovers': { increments: [1], consumers: 1, faults: { failovers: 2, saves: 1 }, statesMin: 30_000 },
} as const satisfies Record<string, Configuration>

export interface Broken {
  readonly name: string
  readonly rules: Rules
  readonly fails: keyof typeof configurations | keyof typeof mixed
  /** What is wrong; 'restless': it never comes to rest, as a worker asks for ever. */
  readonly how: RegExp | 'restless'
}

const lost = /^at rest, increment \d+ is lost \(acknowledged\), and its worker lives$/m
const forgotten = /^at rest, acknowledged increment \d+ is lost, and Redis did not lose it$/m
const doubled = /^increment \d+ is counted 2 times$/m

/** Each of these is one rule away from the real ones, and wrong. */
export const broken: readonly Broken[] = [
  {
    name: 'pop before commit',
    rules: { ...realRules, take: 'pops' },
    fails: 'worker and consumer crash',
    how: forgotten,
  },
  {
    name: 'LTRIM n as acknowledgement',
    rules: { ...realRules, acknowledge: 'trims n' },
    fails: 'worker crash',
    how: forgotten,
  },
  {
    name: 'retry under a new sequence',
    rules: { ...realRules, retry: 'new sequence' },
    fails: 'timeouts',
    how: doubled,
  },
  {
    name: 'merging into a retried batch',
    rules: { ...realRules, retry: 'merged with what came since' },
    fails: 'timeouts',
    how: lost,
  },
  { name: 'no window', rules: { ...realRules, window: 'none' }, fails: 'loss noticed', how: lost },
  { name: 'an empty queue proves nothing', rules: { ...realRules, tails: 'ignored' }, fails: 'removals', how: lost },
  {
    name: 'pushed again once and never more',
    rules: { ...realRules, again: 'never' },
    fails: 'removals, twice',
    how: lost,
  },
  {
    name: 'a stop that keeps only what was not pushed',
    rules: { ...realRules, stop: 'what was not pushed' },
    fails: 'stop and removal',
    how: forgotten,
  },
  {
    name: 'nothing reported at the start',
    rules: { ...realRules, start: 'reports nothing' },
    fails: 'consumer crash',
    how: /never receives a report/,
  },
  {
    name: 'outcomes that are not asked for again',
    rules: { ...realRules, missing: 'not asked for' },
    fails: 'entries, consumer crash',
    how: /never gets the outcome/,
  },
  {
    name: 'outcomes that are kept until they are reported',
    rules: { ...realRules, outcomes: 'kept until reported' },
    fails: 'entries, timeouts',
    how: 'restless',
  },
  {
    name: 'outcomes that are in the memory of the consumer only',
    rules: { ...realRules, outcomes: 'kept in memory' },
    fails: 'entries, consumer crash',
    how: 'restless',
  },
  {
    name: 'an entry that is applied again for its outcome',
    rules: { ...realRules, duplicates: 'asked again' },
    fails: 'entries, consumer crash',
    how: /was applied twice/,
  },
  {
    name: 'a binding checked against a database that was read before the queue',
    rules: { ...realRules, binding: 'database first' },
    fails: 'two consumers',
    how: /was refused/,
  },
]

/**
 * A second line of defence: alone each of the two changes nothing, both together are wrong. What an empty queue has not
 * reported is pushed again, and within these bounds that makes up for whatever else loses a living worker's batches; so
 * it is often the first to go.
 */
export interface SecondLine extends Omit<Broken, 'rules' | 'how'> {
  readonly how: RegExp
  readonly first: Partial<Rules>
  readonly second: Partial<Rules>
}

export const secondLines: readonly SecondLine[] = [
  {
    name: 'the generation',
    first: { tails: 'ignored' },
    second: { generation: 'ignored' },
    fails: 'loss unnoticed',
    how: lost,
  },
  { name: 'run_id', first: { tails: 'ignored' }, second: { runId: 'ignored' }, fails: 'loss noticed', how: lost },
  {
    name: 'the replication id',
    first: { tails: 'ignored' },
    second: { runId: 'read' },
    fails: 'two failovers',
    how: lost,
  },
  {
    name: 'dedup by the highest sequence without gaps, behind the push that compares the generation',
    first: { generation: 'polled', tails: 'ignored' },
    second: { appliedBefore: 'highest' },
    fails: 'loss unnoticed',
    how: lost,
  },
  {
    name: 'a window trimmed up to n, behind the push that compares the generation',
    first: { generation: 'polled', tails: 'ignored' },
    second: { drop: 'up to the highest' },
    fails: 'loss unnoticed',
    how: lost,
  },
  {
    name: 'filling a reported gap, before the queue is empty',
    first: { tails: 'only above the highest' },
    second: { gaps: 'ignored' },
    fails: 'removals',
    how: lost,
  },
  {
    name: 'polling run_id and replication id, behind the empty queue',
    first: { tails: 'ignored' },
    second: { polled: 'generation' },
    fails: 'an older copy, no connection closed',
    how: lost,
  },
  {
    name: 'reading what was applied before outside the transaction, behind the epoch',
    first: { epoch: 'ignored' },
    second: { readApplied: 'at the take' },
    fails: 'two consumers',
    how: doubled,
  },
]
