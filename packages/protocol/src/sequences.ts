// Which sequences of a producer are stored: the highest one and the gap ranges below it.
// Producers give sequences from 1 without holes, so both together stay small whatever happens.

/** Inclusive bounds of sequences that are missing below the highest. */
export type Gap = readonly [from: number, to: number]

/** The set of stored sequences: all up to `high` but the gaps. */
export interface Sequences {
  /** 0: none yet. */
  readonly high: number
  /** In order, not touching each other, all below `high`. */
  readonly gaps: readonly Gap[]
}

/** No sequence at all. */
export const none: Sequences = { high: 0, gaps: [] }

/** Whether `seq` is in the set. */
export function has ({ high, gaps }: Sequences, seq: number): boolean {
  return hasAll({ high, gaps }, seq, seq)
}

/** Whether every sequence from `from` to `to` is in the set. */
export function hasAll ({ high, gaps }: Sequences, from: number, to: number): boolean {
  if (to > high) return false
  const gap = gaps[gapFrom(gaps, from)]
  return gap === undefined || gap[0] > to
}

/** The set with `seq` added, which must not be in it yet. */
export function include ({ high, gaps }: Sequences, seq: number): Sequences {
  if (seq > high) return { high: seq, gaps: seq > high + 1 ? [...gaps, [high + 1, seq - 1]] : gaps }
  const i = gapFrom(gaps, seq)
  const gap = gaps[i]
  if (gap === undefined) return { high, gaps }
  const rest: Gap[] = [[gap[0], seq - 1], [seq + 1, gap[1]]]
  return { high, gaps: [...gaps.slice(0, i), ...rest.filter(([first, last]) => first <= last), ...gaps.slice(i + 1)] }
}

/** Which of the sequences from `from` to `to` are not in the set, as ranges in order. */
export function missing ({ high, gaps }: Sequences, from: number, to: number): Gap[] {
  const ranges: Gap[] = []
  for (let i = gapFrom(gaps, from); i < gaps.length && gaps[i]![0] <= to; i++) {
    ranges.push([Math.max(from, gaps[i]![0]), Math.min(to, gaps[i]![1])])
  }
  if (to > high) ranges.push([Math.max(from, high + 1), to])
  return ranges
}

/** Whether all of `some` is in `all`. */
export function isSubset (some: Sequences, all: Sequences): boolean {
  if (some.high > all.high) return false
  return all.gaps.every(([from, to]) => {
    const last = Math.min(to, some.high)
    const gap = some.gaps[gapFrom(some.gaps, from)]
    return from > last || (gap !== undefined && gap[0] <= from && gap[1] >= last)
  })
}

/** Index of the first gap that ends at `seq` or later. Gaps are in order, so it is found by halving. */
function gapFrom (gaps: readonly Gap[], seq: number): number {
  let [low, high] = [0, gaps.length]
  while (low < high) {
    const middle = (low + high) >>> 1
    if (gaps[middle]![1] < seq) low = middle + 1
    else high = middle
  }
  return low
}

/** Parses a set of sequences that came from outside; undefined if it is not one. */
export function parseSequences (value: unknown): Sequences | undefined {
  if (typeof value !== 'object' || value === null || !('high' in value) || !('gaps' in value)) return undefined
  const { high, gaps } = value
  if (typeof high !== 'number' || !Number.isSafeInteger(high) || high < 0 || !Array.isArray(gaps)) return undefined
  const pairs = gaps.filter((gap): gap is Gap =>
    Array.isArray(gap) && gap.length === 2 && gap.every(Number.isSafeInteger))
  const inOrder = pairs.every(([from, to], i) => from <= to && (i === 0 || pairs[i - 1]![1] < from))
  return pairs.length === gaps.length && inOrder ? { high, gaps: pairs } : undefined
}
