// The log of a line as NDJSON: read page by page, and only as fast as the client takes it.
import { Readable } from 'node:stream'
import { setImmediate } from 'node:timers/promises'
import type { Reads } from '../absent.ts'
import { holdersBetween, type Run } from '../lines.ts'

/** Numbers that are read and written at once: some 60 KB of text, and 2 ms. */
const pageNumbers = 1000

/**
 * All numbers of a name behind `after`, a line each. A read that fails ends it in the middle, so that the client sees
 * an incomplete reply.
 */
export function streamLog (db: Reads, name: string, after: number): Readable {
  return Readable.from(pages(db, name, after), { objectMode: false })
}

async function * pages (db: Reads, name: string, after: number): AsyncGenerator<string> {
  for (let from = after; ;) {
    const page = readPage(db, name, from)
    if (page === undefined) return
    yield page.text
    from = page.last
    await setImmediate()
  }
}

/** The next numbers behind one; undefined if there are none. */
function readPage (db: Reads, name: string, after: number): { text: string, last: number } | undefined {
  const runs = db.all<Run>(`
    SELECT first, count, at FROM tickets_runs WHERE name = ? AND first >= coalesce(
      (SELECT first FROM tickets_runs WHERE name = ? AND first <= ? ORDER BY first DESC LIMIT 1), 0)
    ORDER BY first LIMIT ${pageNumbers}`, name, name, after + 1)
  const numbers: Array<{ number: number, at: string }> = []
  for (const { first, count, at } of runs) {
    const time = new Date(at).toISOString()
    const start = Math.max(first, after + 1)
    for (let number = start; number < first + count && numbers.length < pageNumbers; number++) {
      numbers.push({ number, at: time })
    }
  }
  const [from, last] = [numbers[0]?.number, numbers.at(-1)?.number]
  if (from === undefined || last === undefined) return undefined
  const held = holdersBetween(db, name, from, last)
  let next = 0
  const lines = numbers.map(({ number, at }) => {
    while (next < held.length && held[next]!.number + held[next]!.count <= number) next++
    const holder = held[next] !== undefined && held[next]!.number <= number ? held[next]!.holder : undefined
    return `${JSON.stringify({ number, at, holder })}\n`
  })
  return { text: lines.join(''), last }
}
