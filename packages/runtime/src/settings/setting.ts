// One row of the table of settings, and the kinds of rows: what a variable's text may be, what is made of it,
// and its line in --help.
import { resolve } from 'node:path'

/** What a number counts: the first word of its line in --help, and the last of its variable's name (before `_MAX`). */
export type Unit = 'ms' | 's' | 'bytes' | 'hours'

/** One environment variable: its name is that of its row, `flushIntervalMs` for FLUSH_INTERVAL_MS. */
export interface Setting<T> {
  /** The text of an unset variable, as a user would write it; undefined: the value is undefined then. */
  readonly fallback: string | undefined
  /** How --help shows the default, where the text itself says too little. */
  readonly shown?: string
  readonly unit?: Unit
  /** What it is for, in one line; behind the unit if it has one. */
  readonly about: string
  /** Whether a value may be printed: it can't be a secret. */
  readonly printable?: boolean
  /** @throws Error whose message completes "NAME …" and shows no secret */
  readonly parse: (text: string) => T
}

/** A whole number within bounds. */
export interface IntegerOptions {
  readonly fallback: number
  /** The least and the greatest value. */
  readonly range: readonly [min: number, max: number]
  readonly unit?: Unit
  readonly shown?: string
  readonly about: string
}

/** A row for a whole number in plain decimal digits. */
export function integer ({ fallback, range: [min, max], ...rest }: IntegerOptions): Setting<number> {
  const parse = (text: string): number => {
    const value = Number(text)
    if (!/^[0-9]+$/.test(text) || value < min || value > max) {
      throw new Error(`must be a whole number from ${min} to ${max}, not ${quote(text)}`)
    }
    return value
  }
  return { ...rest, fallback: String(fallback), printable: true, parse }
}

/** A row for one of a few words. */
export function oneOf<const T extends string> (fallback: T, words: readonly T[], about: string): Setting<T> {
  const parse = (text: string): T => {
    const word = words.find((candidate) => candidate === text)
    if (word === undefined) throw new Error(`must be one of ${words.join(', ')}, not ${quote(text)}`)
    return word
  }
  return { fallback, about: `${about} (${words.join(', ')})`, printable: true, parse }
}

/** A row for a path, which is made absolute. */
export function path (fallback: string, about: string): Setting<string> {
  return { fallback, about, printable: true, parse: (text) => resolve(text) }
}

/** A row for a comma-separated list; unset, it is empty. @param item reads one entry, and throws like `parse` */
export function list<T> (about: string, item: (text: string) => T): Setting<readonly T[]> {
  const parse = (text: string): readonly T[] => text === '' ? [] : text.split(',').map((part) => item(part.trim()))
  return { fallback: '', shown: 'unset', about, parse }
}

/** The same row without a default: the value is undefined where the variable is unset. */
export function optional<T> (setting: Setting<T>, shown = 'unset'): Setting<T | undefined> {
  return { ...setting, fallback: undefined, shown }
}

/** The same row for values that can't be secrets. */
export function printable<T> (setting: Setting<T>): Setting<T> {
  return { ...setting, printable: true }
}

/** A value as a message may show it: at most 64 characters. Not for secrets. */
export function quote (text: string): string {
  return JSON.stringify(text.length > 64 ? `${text.slice(0, 64)}…` : text)
}
