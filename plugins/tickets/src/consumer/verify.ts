// What tickets add to `npm run verify`: that the log of every name is all numbers up to the last one, each once.
import type { PluginDatabase, PluginFinding } from '@gearbox/runtime/plugin.ts'
import { hasTables } from '../tables.ts'

/** Problems that are named. */
const shownMax = 10

/** Runs and gaps of each name in order, where one does not begin right behind the one before it. */
const breaksSql = `
  WITH pieces AS (
    SELECT name, first, first + count - 1 AS last FROM tickets_runs
    UNION ALL SELECT name, first, last FROM tickets_gaps WHERE name <> ''
  ), ordered AS (
    SELECT name, first, coalesce(lag(last) OVER (PARTITION BY name ORDER BY first), 0) AS before FROM pieces
  )
  SELECT name, first, before FROM ordered WHERE first <> before + 1 LIMIT ${shownMax}`

/** Lines that say something else than their log. */
const issuedSql = `
  WITH pieces AS (
    SELECT name, first + count - 1 AS last FROM tickets_runs
    UNION ALL SELECT name, last FROM tickets_gaps WHERE name <> ''
  ), ends AS (SELECT name, max(last) AS last FROM pieces GROUP BY name)
  SELECT name, issued, coalesce(last, 0) AS last FROM tickets_lines LEFT JOIN ends USING (name)
  WHERE issued <> coalesce(last, 0) OR serving > issued
  UNION ALL SELECT name, NULL, last FROM ends WHERE name NOT IN (SELECT name FROM tickets_lines)
  LIMIT ${shownMax}`

/** Checks every name. @returns a line per problem, or one that says that there are none */
export function verify (database: PluginDatabase): PluginFinding[] {
  if (!hasTables(database)) return []
  const wrong = [
    ...database.all<{ name: string, first: number, before: number }>(breaksSql).map(({ name, first, before }) =>
      `tickets ${JSON.stringify(name)}: behind number ${before} the log goes on with ${first}`),
    ...database.all<{ name: string, issued: number | null, last: number }>(issuedSql).map(({ name, issued, last }) =>
      `tickets ${JSON.stringify(name)}: the line says ${issued ?? 'nothing'}, the log ends with ${last}`),
  ]
  if (wrong.length > 0) return wrong.map((text) => ({ text, right: false }))
  const { names, numbers } = database.get<{ names: number, numbers: number | null }>(
    'SELECT count(DISTINCT name) AS names, sum(count) AS numbers FROM tickets_runs') ?? { names: 0, numbers: 0 }
  if (names === 0) return []
  return [{ text: `tickets: ${numbers ?? 0} numbers of ${names} names, each in the log once`, right: true }]
}
