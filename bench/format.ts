// Figures and tables as the results write them, and what counts as reached.
import type { Figures } from './rounds.ts'
import { spread, type Spread } from './statistics.ts'

/** A core that was busy for less than this share was not what held up a row. */
export const fullShare = 0.9

/** A spread in another unit. */
export function scaled ({ median, min, max }: Spread, factor: number): Spread {
  return { median: median * factor, min: min * factor, max: max * factor }
}

/** A median with what is around it in brackets. */
export function shown ({ median, min, max }: Spread, unit = ''): string {
  return min === max ? `${number(median)}${unit}` : `${number(median)}${unit} (${number(min)}–${number(max)})`
}

/** Three digits, or all before the point. */
export function number (value: number): string {
  return value.toLocaleString('en', value >= 100 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 3 })
}

/** A Markdown table; the first column is text, the others are figures. */
export function table (head: readonly string[], lines: ReadonlyArray<readonly string[]>): string {
  return [head, head.map((_, i) => i === 0 ? '---' : '---:'),
    ...lines].map((cells) => `| ${cells.join(' | ')} |`).join('\n')
}

/** One line of "What to reach". */
export interface Reach {
  readonly figure: string
  readonly reach: string
  readonly measured: string
  readonly reached: boolean | undefined
}

/** What a figure is to reach, compared with what was measured: the median counts. */
export function reach (figure: string, sign: '≥' | '≤', limit: number, unit: string, measured: Spread | number |
  undefined): Reach {
  const value = typeof measured === 'number' ? measured : measured?.median
  return {
    figure,
    reach: `${sign} ${limit}${unit}`,
    measured: measured === undefined
      ? 'not measured'
      : typeof measured === 'number'
        ? `${number(measured)}${unit}`
        : shown(measured, unit),
    reached: value === undefined ? undefined : sign === '≥' ? value >= limit : value <= limit,
  }
}

/** How busy a server was, and what held it up where it was not its own core. */
export function cpuShown (rounds: readonly Figures[]): string {
  const { median: share } = spread(rounds.map(({ cpuShare }) => cpuShare))
  const { median: load } = spread(rounds.map(({ loadShare }) => loadShare))
  return `${(share * 100).toFixed(0)} %${share >= fullShare ? '' : load >= fullShare ? ' *load-bound*' : ' *waits*'}`
}
