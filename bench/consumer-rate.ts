// How many rows per second the consumer's own Store commits, on a real file, by distinct keys. A separate process: argv
// is a directory and the rounds.
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { runBytesMax, runElementsMax } from '@gearbox/queue/queue.ts'
import { Store } from '@gearbox/consumer/store/store.ts'
import { printResult } from './child.ts'
import { encodeKeys } from './keys.ts'

export interface ConsumerRate {
  readonly keys: number
  /** Rows of the first transaction; the others have about as many. */
  readonly rowsPerTransaction: number
  /** Rows a second while every key is new. */
  readonly inserted: number
  /** Rows a second in each round, while every key is there already. */
  readonly updated: readonly number[]
}

/** Rows that one round applies: about a second's. */
const rowsPerRound = 1_000_000

const [dir = '', rounds = '1'] = process.argv.slice(2)

const rates: ConsumerRate[] = [
  { keys: 1000, elementsMax: 1 },
  { keys: 1000, elementsMax: runElementsMax },
  { keys: 100_000, elementsMax: runElementsMax },
  { keys: 1_000_000, elementsMax: runElementsMax },
].map(({ keys, elementsMax }, i) => measure(join(dir, `consumer-${i}.db`), keys, elementsMax))
printResult(rates)

function measure (path: string, keys: number, elementsMax: number): ConsumerRate {
  const store = new Store({ path, idempotencyHours: 24, idempotencyRowsMax: 1000 })
  const producer = randomUUID()
  let seq = 1
  let rowsPerTransaction = 0

  /** Batches of all keys, `times` over, in the runs that a consumer would take. @returns rows per second */
  const applyAll = (times: number): number => {
    const elements: Buffer[] = []
    for (let time = 0; time < times; time++) {
      for (const batch of encodeKeys(keys, producer, seq)) {
        elements.push(batch.element)
        seq = batch.seq + 1
      }
    }
    let seconds = 0
    let transactions = 0
    for (let first = 0; first < elements.length; transactions++) {
      let [end, bytes] = [first, 0]
      while (end < elements.length && end - first < elementsMax &&
        (end === first || bytes + elements[end]!.length <= runBytesMax)) {
        bytes += elements[end++]!.length
      }
      const from = performance.now()
      store.apply(elements.slice(first, end))
      seconds += (performance.now() - from) / 1000
      first = end
    }
    rowsPerTransaction = Math.round(times * keys / transactions)
    return times * keys / seconds
  }

  const inserted = applyAll(1)
  const updated = Array.from({ length: Number(rounds) }, () => applyAll(Math.ceil(rowsPerRound / keys)))
  store.close()
  return { keys, rowsPerTransaction, inserted, updated }
}
