// The numbers that a request to serve has called, from the compact result that the consumer gives.
import type { Served } from './entry.ts'

/**
 * Lists what was called.
 * @param listedMax as many numbers as are listed at most
 * @returns the numbers in order, and how many more were called
 */
export function calledNumbers (
  { from, called, steps }: Pick<Served, 'from' | 'called' | 'steps'>, listedMax: number
): { called: number[], more: number } {
  const numbers: number[] = []
  let cursor = from
  for (let i = 0; i + 1 < steps.length; i += 2) {
    cursor += steps[i] ?? 0
    const count = steps[i + 1] ?? 0
    for (let j = 1; j <= count && numbers.length < listedMax; j++) numbers.push(cursor + j)
    cursor += count
  }
  return { called: numbers, more: called - numbers.length }
}
