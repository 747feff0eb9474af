// Seeded randomness: what is planned from one seed is the same in every run.

/** A seeded source of random values: one seed gives the same values in every run. */
export class Random {
  #state: number

  constructor (seed: number) {
    this.#state = seed >>> 0
  }

  /** A separate source: what is drawn from it changes nothing for others. */
  fork (): Random {
    return new Random(Math.floor(this.next() * 2 ** 32))
  }

  /** From 0 to below 1 (mulberry32). */
  next (): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let mixed = this.#state
    mixed = Math.imul(mixed ^ (mixed >>> 15), mixed | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }

  /** A whole number from `least` to `most`, both included. */
  int (least: number, most: number): number {
    return least + Math.floor(this.next() * (most - least + 1))
  }

  chance (probability: number): boolean {
    return this.next() < probability
  }

  pick<T> (choices: readonly [T, ...T[]]): T {
    return choices[this.int(0, choices.length - 1)] ?? choices[0]
  }

  shuffle<T> (items: readonly T[]): T[] {
    return items.map((item) => ({ item, order: this.next() })).sort((one, other) => one.order - other.order)
      .map(({ item }) => item)
  }
}
