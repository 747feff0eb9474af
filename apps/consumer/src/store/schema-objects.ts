// What is in a database's schema: its tables, indexes, views and triggers, and how a message names them.
import type Database from 'better-sqlite3'

/** A table, index, view or trigger. */
export interface SchemaObject {
  readonly type: string
  readonly name: string
  /** The table that it belongs to, or its own name. */
  readonly table: string
  readonly sql: string | null
}

/** Objects that a message names before it says how many more there are. */
export const namedMax = 3

/** All objects but SQLite's own, each after those that it is made of. */
export function readObjects (db: Database.Database): SchemaObject[] {
  return db.prepare<[], SchemaObject>(`
    SELECT type, name, tbl_name AS 'table', sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
    ORDER BY CASE type WHEN 'table' THEN 1 WHEN 'index' THEN 2 WHEN 'view' THEN 3 ELSE 4 END, rowid`).all()
}

/** Whether an object has that name, given in lower case. */
export function isNamed (object: SchemaObject, name: string): boolean {
  return object.name.toLowerCase() === name
}

/** Objects as a message lists them. */
export function listObjects (objects: readonly SchemaObject[]): string {
  const named = objects.slice(0, namedMax).map(describeObject).join(', ')
  return objects.length > namedMax ? `${named} and ${objects.length - namedMax} more` : named
}

/** An object as a message names it: its type and its name. */
export function describeObject ({ type, name }: SchemaObject): string {
  return `${type} ${shownName(name)}`
}

/** A name as a message shows it, at most 64 characters of it. */
export function shownName (name: string): string {
  return JSON.stringify(name.length > 64 ? `${name.slice(0, 63)}…` : name)
}

/** A name as an SQL identifier. */
export function quotedName (name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
