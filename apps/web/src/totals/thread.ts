// The worker thread of sorted-pages.ts: makes pages by total next to the event loop that serves increments. Each page
// has its own connection, so a database that was replaced is noticed at once.
import { parentPort, workerData } from 'node:worker_threads'
import { Reader, type Page, type Total } from './reader.ts'

parentPort?.on('message', ({ id, page }: { id: number, page: Page }) => {
  parentPort?.postMessage({ id, totals: read(page) })
})

/** Undefined if there is no readable database. */
function read (page: Page): Total[] | undefined {
  let reader: Reader | undefined
  try {
    reader = new Reader(String(workerData))
    return reader.listByTotal(page)
  } catch {
    return undefined
  } finally {
    reader?.close()
  }
}
