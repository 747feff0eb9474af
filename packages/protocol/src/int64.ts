// Sums: exact integers, whatever their size, and the 64 bits that the database and one batch can hold.

/** The largest sum of one batch, and the largest total. */
export const int64Max = 2n ** 63n - 1n

/** The smallest of both. */
export const int64Min = -(2n ** 63n)

/** A sum or a delta: a number while that is exact (up to 2^53), a bigint beyond. */
export type Sum = number | bigint

/** a + b, exact. */
export function add (a: Sum, b: Sum): Sum {
  if (typeof a === 'number' && typeof b === 'number') {
    const sum = a + b
    if (Number.isSafeInteger(sum)) return sum
  }
  return narrow(BigInt(a) + BigInt(b))
}

/** The same integer as a number where that is exact. */
export function narrow (value: bigint): Sum {
  return value >= BigInt(Number.MIN_SAFE_INTEGER) && value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value
}

/** The 64-bit integer that a text is in decimal digits, perhaps with a minus; undefined if it is none. */
export function parseInt64 (text: string): bigint | undefined {
  if (!/^-?[0-9]{1,40}$/.test(text)) return undefined
  const value = BigInt(text)
  return value > int64Max || value < int64Min ? undefined : value
}
