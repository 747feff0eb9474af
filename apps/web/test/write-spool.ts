// A process that may write only small files, and leaves more than that unsent. Prints whether it said so.
import { element, producerA } from '@gearbox/test-kit/batches.ts'
import { writeSpool } from '../src/deliver/spool.ts'

const key = 'k'.repeat(200)
const left = Array.from({ length: 2000 }, (_, i) => element({ seq: i + 1, sums: { [key]: 1 } }))
const outcome = await writeSpool(process.argv[2] ?? '', producerA,
  { queue: 'none', generation: undefined, database: undefined }, left).then(() => 'written', () => 'failed')
process.stdout.write(outcome)
