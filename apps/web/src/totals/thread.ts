// Makes pages ordered by total, which scan the table, next to the event loop that serves increments.
import { parentPort, workerData } from 'node:worker_threads'
import { Reader, type Page, type Total } from './reads.ts'

parentPort?.on('message', ({ id, page }: { id: number, page: Page }) => {
  let totals: Total[] | undefined
  try {
    const reader = new Reader(String(workerData))
    try {
      totals = reader.listByTotal(page)
    } finally {
      reader.close()
    }
  } catch {
    totals = undefined
  }
  parentPort?.postMessage({ id, totals })
})
