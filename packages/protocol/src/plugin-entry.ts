// What a plugin sends through a batch to the consumer, and what comes back: an entry, and its outcome once stored.
// Both travel as JSON.

/** What JSON can hold. Integers past 2^53 have to travel as strings. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [name: string]: Json }

/** One entry of a batch that a plugin applies. In JSON: `{"plugin":"tickets","data":…}`, then `id` and `at` if any. */
export interface PluginEntry {
  /** The name of the plugin that applies it. */
  readonly plugin: string
  readonly data: Json
  /** SHA-256 over caller, scope and key, if it came with an Idempotency-Key: the same for every repeat. */
  readonly id?: string
  /** When an entry with an id was accepted, Unix ms. */
  readonly at?: number
}

/** Why an entry was not applied: what its client gets as an error reply. */
export interface EntryError {
  /** 4xx or 5xx. */
  readonly statusCode: number
  readonly code: string
  readonly message: string
  /** What else the reply's body says. */
  readonly details?: { readonly [name: string]: Json }
}

/** What became of an entry that is stored: the plugin's result, or why nothing of it was applied. */
export type EntryOutcome = { readonly result: Json } | { readonly error: EntryError }

/** The outcome of entry number `entry` (from 0) of the batch `seq`. */
export interface EntryResult {
  readonly seq: number
  readonly entry: number
  readonly outcome: EntryOutcome
}

/**
 * JSON bytes of one entry at most: it is parsed and applied in one step, and a batch of about 256 KiB should hold
 * several.
 */
export const entryBytesMax = 64 * 1024

/**
 * Levels of arrays and objects in the JSON of one entry at most, its own included: whoever reads it may be recursive,
 * and no stack is that small.
 */
export const entryLevelsMax = 100

/** Whether JSON has more levels of arrays and objects than an entry may have. */
export function isTooDeep (json: string): boolean {
  // Each level takes two characters.
  if (json.length <= 2 * entryLevelsMax) return false
  let levels = 0
  // Strings are skipped whole: brackets in them are text.
  for (const [token] of json.matchAll(/"(?:[^"\\]|\\.)*"|[[{\]}]/g)) {
    if (token === '[' || token === '{') levels++
    else if (token === ']' || token === '}') levels--
    if (levels > entryLevelsMax) return true
  }
  return false
}

/** JSON bytes of one outcome at most. It is kept in the database until its worker has it, and travels with progress. */
export const resultBytesMax = 4 * 1024

/** Whether a name is that of a plugin: lower-case letters, digits and dashes, beginning with a letter. */
export function isPluginName (name: unknown): name is string {
  return typeof name === 'string' && /^[a-z][a-z0-9-]{0,31}$/.test(name)
}

/** Parses the entries of a batch; undefined if it is not an array of them. */
export function parseEntries (value: unknown): PluginEntry[] | undefined {
  if (!Array.isArray(value)) return undefined
  const entries = value.filter(isEntry)
  return entries.length === value.length ? entries : undefined
}

function isEntry (value: unknown): value is PluginEntry {
  if (typeof value !== 'object' || value === null || !('plugin' in value) || !('data' in value)) return false
  if (!isPluginName(value.plugin)) return false
  if (!('id' in value)) return true
  return typeof value.id === 'string' && /^[0-9a-f]{64}$/.test(value.id) &&
    'at' in value && typeof value.at === 'number' && Number.isSafeInteger(value.at) && value.at >= 0
}

/** Parses results that came with a progress message; what is none is left out. */
export function parseResults (value: unknown): EntryResult[] {
  return Array.isArray(value) ? value.filter(isResult) : []
}

function isResult (value: unknown): value is EntryResult {
  return typeof value === 'object' && value !== null && 'seq' in value && Number.isSafeInteger(value.seq) &&
    'entry' in value && Number.isSafeInteger(value.entry) && 'outcome' in value && isOutcome(value.outcome)
}

/** Whether a parsed value is an outcome. */
export function isOutcome (value: unknown): value is EntryOutcome {
  if (typeof value !== 'object' || value === null) return false
  if ('result' in value) return true
  if (!('error' in value) || typeof value.error !== 'object' || value.error === null) return false
  const { error } = value
  return 'statusCode' in error && typeof error.statusCode === 'number' && error.statusCode >= 400 &&
    error.statusCode <= 599 && 'code' in error && typeof error.code === 'string' &&
    'message' in error && typeof error.message === 'string'
}
