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

/**
 * The median of independent measurements with its 95 % interval, whatever they are distributed like: the innermost two
 * of the sorted values between which the true median is at least that surely. Fewer than six are too few for one: then
 * it is the least and the most.
 * @throws RangeError without any
 */
export function interval (values: readonly number[]): Spread {
  const { median, min, max } = spread(values)
  const sorted = values.toSorted((a, b) => a - b)
  // How surely so many of all are below the median: a coin that is tossed for each.
  let [exactly, atMost, below] = [2 ** -values.length, 2 ** -values.length, 0]
  while (atMost <= 0.025) {
    below++
    exactly *= (values.length - below + 1) / below
    atMost += exactly
  }
  return below === 0 ? { median, min, max } : { median, min: sorted[below - 1]!, max: sorted.at(-below)! }
}

/** The ratio in each round. */
export function ratios (above: readonly number[], below: readonly number[]): number[] {
  return above.slice(0, below.length).map((value, round) => value / below[round]!)
}

/** The ratio in each round, then its spread: what slows the whole machine down for a round cancels out. */
export function ratio (above: readonly number[], below: readonly number[]): Spread {
  return spread(ratios(above, below))
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
