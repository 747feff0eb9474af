// Which sequences of a producer are stored: the highest one and the gap ranges below it.
// Producers give sequences from 1 without holes, so both together stay small whatever happens.

/** Inclusive bounds of sequences that are missing below the highest. */
export type Gap = readonly [from: number, to: number]

export interface Sequences {
  /** 0: none yet. */
  readonly high: number
  /** In order, not touching each other, all below `high`. */
  readonly gaps: readonly Gap[]
}

export const none: Sequences = { high: 0, gaps: [] }

export function has ({ high, gaps }: Sequences, seq: number): boolean {
  return seq <= high && !gaps.some(([from, to]) => seq >= from && seq <= to)
}

/** Whether every sequence from `from` to `to` is in. */
export function hasAll ({ high, gaps }: Sequences, from: number, to: number): boolean {
  return to <= high && !gaps.some((gap) => gap[0] <= to && gap[1] >= from)
}

/** The sequences and `seq`. The caller has made sure that it is not in yet. */
export function include ({ high, gaps }: Sequences, seq: number): Sequences {
  if (seq > high) return { high: seq, gaps: seq > high + 1 ? [...gaps, [high + 1, seq - 1]] : gaps }
  return {
    high,
    gaps: gaps.flatMap(([from, to]): Gap[] => {
      if (seq < from || seq > to) return [[from, to]]
      const rest: Gap[] = [[from, seq - 1], [seq + 1, to]]
      return rest.filter(([first, last]) => first <= last)
    }),
  }
}

/** Whether all of `some` is in `all`. */
export function isSubset (some: Sequences, all: Sequences): boolean {
  if (some.high > all.high) return false
  return all.gaps.every(([from, to]) => {
    const last = Math.min(to, some.high)
    return from > last || some.gaps.some((gap) => gap[0] <= from && gap[1] >= last)
  })
}

/** Parses sequences that came from outside; undefined if they are not any. */
export function parseSequences (value: unknown): Sequences | undefined {
  if (typeof value !== 'object' || value === null || !('high' in value) || !('gaps' in value)) return undefined
  const { high, gaps } = value
  if (typeof high !== 'number' || !Number.isSafeInteger(high) || high < 0 || !Array.isArray(gaps)) return undefined
  const pairs = gaps.filter((gap): gap is Gap => Array.isArray(gap) && gap.length === 2 && gap.every(Number.isSafeInteger))
  return pairs.length === gaps.length ? { high, gaps: pairs } : undefined
}
