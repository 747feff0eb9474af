// What workers ask and tell about the outcomes of their entries, until the consumer takes it. Requests arrive where
// anybody who reaches the queue can send them, so all of it is bounded; what is dropped is asked for again.
import { parseResultRequest, type ResultRequest } from '@gearbox/protocol/progress.ts'
import { resultSequencesMax } from './queue.ts'

/** Characters of one request at most: a number of 15 digits, and what is between two, for each sequence. */
const requestCharactersMax = 2 * resultSequencesMax * 16 + 256

/** Producers that requests are kept of at most: far more than there are workers. */
const producersMax = 1024

/** Sequences that are kept at most, of all producers: about 4 MB. */
const sequencesMax = 64 * 1024

interface Merged {
  readonly received: Set<number>
  readonly missing: Set<number>
}

/** The requests that came since the last `take`, merged per producer. */
export class ResultRequests {
  #byProducer = new Map<string, Merged>()
  #sequences = 0

  /** Adds a request as it was sent. @returns whether it was one */
  add (text: string): boolean {
    if (text.length > requestCharactersMax) return false
    const request = parseResultRequest(text)
    if (request === undefined) return false
    this.#add(request)
    return true
  }

  /** All that was added, each producer once; what it has received is not missing. */
  take (): ResultRequest[] {
    if (this.#byProducer.size === 0) return []
    const requests = Array.from(this.#byProducer, ([producer, { received, missing }]): ResultRequest =>
      ({ producer, received: [...received], missing: [...missing].filter((seq) => !received.has(seq)) }))
    this.#byProducer = new Map()
    this.#sequences = 0
    return requests
  }

  #add ({ producer, received, missing }: ResultRequest): void {
    let merged = this.#byProducer.get(producer)
    if (merged === undefined) {
      if (this.#byProducer.size === producersMax) return
      merged = { received: new Set(), missing: new Set() }
      this.#byProducer.set(producer, merged)
    }
    this.#addAll(merged.received, received)
    this.#addAll(merged.missing, missing)
  }

  #addAll (kept: Set<number>, sequences: readonly number[]): void {
    for (const seq of sequences) {
      if (this.#sequences === sequencesMax) return
      if (kept.has(seq)) continue
      kept.add(seq)
      this.#sequences++
    }
  }
}
