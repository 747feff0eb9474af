// Whether numbers that a service gave out were given out in order: the history of a counter, as its clients saw it.

/** A request for one number or several in a row, and its answer. */
export interface NumberRequest {
  readonly first: number
  readonly count: number
  /** When it was sent and when its answer had come, by one clock. */
  readonly sent: number
  readonly answered: number
}

/** A request that has a smaller number than one that was answered before it was sent. */
export interface Overtaken {
  readonly request: NumberRequest
  readonly by: NumberRequest
}

/**
 * Finds requests that contradict a single counter (linearizability of fetch-and-add, in one pass): from the highest
 * number down, the least time of an answer so far must not be before a request's time of sending.
 */
export function findOvertaken (history: readonly NumberRequest[]): Overtaken[] {
  const found: Overtaken[] = []
  let earliest: NumberRequest | undefined
  for (const request of history.toSorted((one, other) => other.first - one.first)) {
    if (earliest !== undefined && earliest.answered < request.sent) found.push({ request, by: earliest })
    if (earliest === undefined || request.answered < earliest.answered) earliest = request
  }
  return found
}

/** Numbers that two requests have. */
export function findRepeated (history: readonly NumberRequest[]): number[] {
  const sorted = history.toSorted((one, other) => one.first - other.first)
  let next = 0
  return sorted.flatMap(({ first, count }) => {
    const repeated = first < next ? [first] : []
    next = Math.max(next, first + count)
    return repeated
  })
}
