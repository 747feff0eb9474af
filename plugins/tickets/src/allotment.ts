// Which of the requests in an entry get numbers. The consumer walks them to know what it issued; the worker walks them
// again to know what to answer, as a result has no room for each of them.

/**
 * Numbers in a row for requests in their order. A request gets all that it wants or nothing; one that is refused takes
 * nothing from those behind it.
 */
export class Allotment {
  #next: number
  #left: number

  /** @param first the number that is issued next @param left how many may be issued */
  constructor (first: number, left: number) {
    this.#next = first
    this.#left = left
  }

  /** How many may still be issued. */
  get left (): number {
    return this.#left
  }

  /** The number that is issued next. */
  get next (): number {
    return this.#next
  }

  /** @returns the first of `count` numbers; undefined if that many are not left */
  take (count: number): number | undefined {
    if (count > this.#left) return undefined
    const first = this.#next
    this.#next += count
    this.#left -= count
    return first
  }
}
