// What tickets do when a database gets a new identity: it may be older than what it was, and then numbers that it does
// not know of were given to people. So every name goes on far above what is known.
import { FatalError, type PluginDatabase, type RebindPart } from '@gearbox/runtime/plugin.ts'
import { gapsOf } from '../absent.ts'
import { numberMax } from '../entry.ts'
import { hasTables } from '../tables.ts'
import { everyName, skip } from './line-rows.ts'

/** Numbers that a lost database may have issued behind those that are known. */
const unknownMax = 1_000_000

const option = 'tickets-from'

/** The option of `npm run rebind`, and what it does. */
export const rebind: RebindPart = {
  options: {
    [option]: {
      type: 'string',
      usage: 'N: tickets of every name go on above N (default: the highest known number + 1,000,000)',
    },
  },
  run: (database, values) => {
    if (!hasTables(database)) return []
    const highest = highestOf(database)
    const floor = readFloor(values[option], highest)
    raise(database, floor)
    const limited = database.get<{ count: number }>(
      'SELECT count(*) AS count FROM tickets_lines WHERE "limit" <= ?', floor)?.count ?? 0
    const lines = [
      `tickets: the highest number that is known is ${highest}; from now on every name goes on above ${floor} ` +
      '(--tickets-from), as those between may have been given out',
    ]
    if (limited > 0) lines.push(`tickets: ${limited} names with a lower limit are sold out until it is set again`)
    return lines
  },
}

/** @throws FatalError */
function readFloor (text: string | undefined, highest: number): number {
  const floor = text === undefined ? highest + unknownMax : Number(text)
  if (text !== undefined && !/^\d{1,16}$/.test(text)) {
    throw new FatalError(`--${option} must be a whole number, not ${JSON.stringify(text.slice(0, 64))}`)
  }
  // What is left above must be enough for all time.
  if (floor > numberMax / 2) throw new FatalError(`--${option} must be at most ${Math.floor(numberMax / 2)}`)
  if (floor < highest) {
    throw new FatalError(`--${option} must be at least ${highest}: that number is known to have been given out`)
  }
  return floor
}

/** The highest number that was issued or that may have been, over all names. */
function highestOf (database: PluginDatabase): number {
  const { highest } = database.get<{ highest: number | null }>(`
    SELECT max(number) AS highest FROM (
      SELECT issued AS number FROM tickets_lines UNION ALL SELECT last FROM tickets_gaps)`) ?? { highest: 0 }
  return highest ?? 0
}

function raise (database: PluginDatabase, floor: number): void {
  database.run(`
    INSERT INTO tickets_gaps(name, first, last) SELECT name, issued + 1, ? FROM tickets_lines WHERE issued < ?`,
  floor, floor)
  database.run('UPDATE tickets_lines SET issued = ? WHERE issued < ?', floor, floor)
  const [before] = gapsOf(database, everyName)
  if (before === undefined && floor > 0) skip(database, everyName, 1, floor)
  else database.run('UPDATE tickets_gaps SET last = ? WHERE name = ?', floor, everyName)
}
