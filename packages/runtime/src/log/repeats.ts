// Sums up log lines that repeat: a client, a peer or a broken disk can cause them as often as it likes.

/** Lines of one kind that are logged per interval, at most; what follows is counted. */
const linesPerIntervalMax = 5

/** What was left out is summed up in one line after this long. */
export const repeatsIntervalMs = 10_000

/** Kinds that are distinguished per interval, at most; all others are one kind. */
const kindsMax = 100

/** What may differ between two lines of one kind: numbers, ids, and whatever is quoted. */
const variable = /"(?:[^"\\]|\\.)*"?|[0-9a-f]{8}-[0-9a-f-]{27}|[0-9]+/gi

/** Characters of a message that make its kind: longer messages begin with what is the same. */
const kindLengthMax = 200

interface Kind {
  lines: number
  leftOut: number
  /** Logs the line that sums up. */
  sumUp: (leftOut: number) => void
}

/**
 * Decides for each line whether it is logged or counted. A kind is a level, and what does not vary in the message.
 */
export class Repeats {
  readonly #kinds = new Map<string, Kind>()
  #timer: NodeJS.Timeout | undefined

  /**
   * @param sumUp called at the end of the interval if lines of this kind were left out, with how many
   * @returns whether this line is to be logged
   */
  accept (level: number, message: string, sumUp: (leftOut: number) => void): boolean {
    this.#timer ??= setTimeout(() => this.sumUp(), repeatsIntervalMs).unref()
    const name = `${level} ${message.slice(0, kindLengthMax).replace(variable, '#')}`
    const known = this.#kinds.has(name) || this.#kinds.size < kindsMax ? name : ''
    const kind = this.#kinds.get(known) ?? { lines: 0, leftOut: 0, sumUp }
    this.#kinds.set(known, kind)
    kind.sumUp = sumUp
    if (kind.lines++ < linesPerIntervalMax) return true
    kind.leftOut++
    return false
  }

  /** Logs what was left out so far, and begins the next interval. */
  sumUp (): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    const kinds = [...this.#kinds.values()]
    this.#kinds.clear()
    for (const { leftOut, sumUp } of kinds) if (leftOut > 0) sumUp(leftOut)
  }
}
