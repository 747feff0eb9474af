// The log of tickets in Gearbox's database: which numbers were given.
import Database from 'better-sqlite3'

/**
 * Reads how many numbers of a line were given.
 * @throws Error unless they are 1 to so many, each once
 */
export function checkedLog (databasePath: string, name: string): number {
  const db = new Database(databasePath, { readonly: true, timeout: 5000 })
  try {
    const runs = db.prepare<[string], { first: number, count: number }>(
      'SELECT first, count FROM tickets_runs WHERE name = ? ORDER BY first').iterate(name)
    let issued = 0
    for (const { first, count } of runs) {
      if (first !== issued + 1) throw new Error(`the log of ${name} has ${first} after ${issued}`)
      issued += count
    }
    return issued
  } finally {
    db.close()
  }
}
