// The few figures that several measurements are summed up with.

export interface Spread {
  readonly median: number
  readonly min: number
  readonly max: number
}

/**
 * Median, least and most of measurements; of an even number the mean of the middle two.
 * @throws RangeError without any
 */
export function spread (values: readonly number[]): Spread {
  if (values.length === 0) throw new RangeError('nothing was measured')
  const sorted = values.toSorted((a, b) => a - b)
  const middle = (sorted.length - 1) / 2
  return {
    median: (sorted[Math.floor(middle)]! + sorted[Math.ceil(middle)]!) / 2,
    min: sorted[0]!,
    max: sorted.at(-1)!,
  }
}

/** The ratio in each round, then its spread: what slows the whole machine down for a round cancels out. */
export function ratio (above: readonly number[], below: readonly number[]): Spread {
  return spread(above.slice(0, below.length).map((value, round) => value / below[round]!))
}

/** The least value that at least `share` (0 to 1) of all are not above. @throws RangeError without any */
export function percentile (values: readonly number[], share: number): number {
  if (values.length === 0) throw new RangeError('nothing was measured')
  return values.toSorted((a, b) => a - b)[Math.max(0, Math.ceil(share * values.length) - 1)]!
}

/**
 * The order of a round: turned by a part of the whole each time, and backwards every other time, so that nobody always
 * follows the same one.
 */
export function orderOf<T> (rows: readonly T[], round: number, rounds: number): T[] {
  const first = Math.floor(rows.length * round / rounds)
  const turned = [...rows.slice(first), ...rows.slice(0, first)]
  return round % 2 === 0 ? turned : turned.reverse()
}
