// Keeps plugins to their own tables: asks SQLite what a statement would write, before it is executed for the first
// time. Reads are free.
import type Database from 'better-sqlite3'
import type { SqlValue } from '@gearbox/runtime/plugin.ts'

/** A line of SQLite's program for a statement, of those columns that say what is written. */
interface Instruction {
  readonly addr: number
  readonly opcode: string
  readonly p1: number
  readonly p2: number
  readonly p3: number
}

/** Where SQLite counts AUTOINCREMENT: written along with a plugin's own table. */
const sequenceTable = 'sqlite_sequence'

/** Tables of Gearbox. Triggers on a plugin's own tables must not write them either. */
const coreTables = new Set(['corrections', 'meta', 'numbers', 'once', 'producers', 'rejected', 'reports', 'results'])

/** What the tables of a plugin begin with. */
export function tablePrefixOf (plugin: string): string {
  return `${plugin.replaceAll('-', '_')}_`
}

/**
 * Checks that a statement writes nothing but tables of its plugin. What triggers of the database's owner do to tables
 * of their own is not the plugin's.
 * @param values its parameters
 * @throws TypeError that names the table
 */
export function checkWrites (
  db: Database.Database, statement: Database.Statement<SqlValue[]>, values: readonly SqlValue[], prefix: string
): void {
  if (statement.readonly) return
  const { direct, byTriggers, isVirtual } = writesOf(db, statement.source, values)
  const isOwn = (table: string): boolean => table.toLowerCase().startsWith(prefix)
  const foreign = [...direct].find((table) => !isOwn(table) && table !== sequenceTable) ??
    [...byTriggers].find((table) => coreTables.has(table.toLowerCase()))
  if (foreign !== undefined) {
    throw new TypeError(`it writes the table "${foreign}", which is not its own: those begin with ${prefix}`)
  }
  if (!isVirtual && ![...direct, ...byTriggers].some(isOwn)) {
    throw new TypeError(`it writes no table of its own: those begin with ${prefix}`)
  }
}

interface Writes {
  readonly direct: ReadonlySet<string>
  readonly byTriggers: ReadonlySet<string>
  /** Whether it writes a virtual table. None of Gearbox's is one. */
  readonly isVirtual: boolean
}

/** SQLite's own program says what is written, whatever the statement looks like. */
function writesOf (db: Database.Database, sql: string, values: readonly SqlValue[]): Writes {
  const program = db.prepare<SqlValue[], Instruction>(`EXPLAIN ${sql}`).safeIntegers(false).all(...values)
  const tables = new Map(db.prepare<[], { root: number, name: string }>(
    'SELECT rootpage AS root, tbl_name AS name FROM sqlite_schema WHERE rootpage > 0').safeIntegers(false).all()
    .map(({ root, name }) => [root, name]))
  const direct = new Set<string>()
  const byTriggers = new Set<string>()
  let inTrigger = false
  let isVirtual = false
  for (const [i, { addr, opcode, p1, p2, p3 }] of program.entries()) {
    // The programs of triggers follow that of the statement; each begins at 0.
    if (i > 0 && addr === 0) inTrigger = true
    if (opcode === 'VUpdate') isVirtual = true
    const [root, database] = opcode === 'OpenWrite' ? [p2, p3] : opcode === 'Clear' ? [p1, p2] : []
    if (root === undefined) continue
    const name = database === 0 ? tables.get(root) : undefined
    const written = inTrigger ? byTriggers : direct
    written.add(name ?? 'sqlite_schema')
  }
  return { direct, byTriggers, isVirtual }
}
