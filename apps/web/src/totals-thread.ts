// Makes pages ordered by total, which scan the table, beside the event loop that serves increments.
import { parentPort, workerData } from 'node:worker_threads'
import { listByTotal, openForReading, type Page, type Total } from './totals.ts'

parentPort?.on('message', ({ id, page }: { id: number, page: Page }) => {
  let totals: Total[] | undefined
  try {
    const db = openForReading(String(workerData))
    try {
      totals = listByTotal(db, page)
    } finally {
      db.close()
    }
  } catch {
    totals = undefined
  }
  parentPort?.postMessage({ id, totals })
})
