// The longest single steps of a worker's own code with a million keys of 16 bytes: parse and add a request of a
// thousand pairs, encode a batch. A separate process; argv is the number of rounds.
import { randomUUID } from 'node:crypto'
import { encodeBatch } from '@gearbox/protocol/batch.ts'
import { Accumulator } from '@gearbox/web/accumulate/accumulator.ts'
import { parseForm } from '@gearbox/web/increment/form.ts'
import { printResult } from './child.ts'
import { keyOf } from './keys.ts'

export interface Steps {
  /** Milliseconds, the longest of each round; the first round is cold. */
  readonly add: number[]
  readonly encode: number[]
}

const keys = 1_000_000
const pairs = 1000

const steps: Steps = { add: [], encode: [] }
for (let round = 0; round < Number(process.argv[2]); round++) {
  const accumulator = new Accumulator()
  const bodies = Array.from({ length: keys / pairs }, (_, request) =>
    Buffer.from(Array.from({ length: pairs }, (_, pair) => `${keyOf(request * pairs + pair, keys)}=1`).join('&')))
  steps.add.push(longest(bodies,
    (body) => accumulator.add(parseForm(body, { pairsMax: pairs, pairsOnly: false }), Date.now())))
  const drain = accumulator.drain()
  const batches = function * (): Generator<number> {
    for (let seq = 1; drain.pendingKeys > 0; seq++) yield seq
  }
  const producer = randomUUID()
  steps.encode.push(longest(batches(),
    (seq) => { encodeBatch({ producer, seq, at: drain.oldestAt, ...drain.readCounts() }, drain) }))
}
printResult(steps)

function longest<T> (items: Iterable<T>, step: (item: T) => void): number {
  let most = 0
  for (const item of items) {
    const from = performance.now()
    step(item)
    most = Math.max(most, performance.now() - from)
  }
  return most
}
