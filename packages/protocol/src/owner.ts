// Which database a queue belongs to, and which consumer of it is the newest. Queue and database both keep it, as
// `uuid:epoch`.

/** Which database a queue belongs to: `uuid:epoch`, its owner. */
export interface Owner {
  /** Of the database. */
  readonly uuid: string
  /** Grows with every consumer that starts on the database. */
  readonly epoch: number
}

/** Another consumer owns the queue now. Whoever gets this must stop taking from it. */
export class SupersededError extends Error {
  readonly code = 'GBX_SUPERSEDED'
  override name = 'SupersededError'
}

/** An owner as a queue keeps it. */
export function ownerText ({ uuid, epoch }: Owner): string {
  return `${uuid}:${epoch}`
}

/** The database's UUID in an owner's text; undefined if the text is not an owner. */
export function databaseOf (text: string): string | undefined {
  return /^([0-9a-f-]{36}):\d{1,15}$/.exec(text)?.[1]
}

/** Reads an owner that a queue keeps. @throws SupersededError if the text is not uuid:epoch */
export function parseOwner (text: string): Owner {
  const match = /^([0-9a-f-]{36}):(\d{1,15})$/.exec(text)
  if (match !== null) return { uuid: match[1]!, epoch: Number(match[2]) }
  throw new SupersededError(`the queue's owner ${JSON.stringify(text.slice(0, 64))} is not uuid:epoch`)
}
