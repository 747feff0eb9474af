// A process that may write only small files, and applies a run that needs more. Prints what SQLite said, then goes on
// with a run that fits, as a consumer does that tries until it works.
import { element } from '@gearbox/test-kit/batches.ts'
import { Store } from '../src/store/store.ts'

const store = new Store({ path: process.argv[2] ?? '', idempotencyHours: 1, idempotencyRowsMax: 10 })
const sums = Object.fromEntries(Array.from({ length: 20_000 }, (_, i) => [`key ${i}`, 1]))
try {
  store.apply([element({ seq: 2, sums })])
  process.stdout.write('applied')
} catch (error) {
  process.stdout.write(error instanceof Error && 'code' in error ? String(error.code) : String(error))
  store.reopen()
  store.apply([element({ seq: 2, sums: { a: 1 } })])
}
store.close()
