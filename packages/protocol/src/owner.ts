// Which database a queue belongs to, and which consumer of it is the newest: the queue keeps `uuid:epoch`, and so does the database.

/** Which database a queue belongs to: `uuid:epoch`, its owner. */
export interface Owner {
  readonly uuid: string
  readonly epoch: number
}

/** Another consumer owns the queue now. */
export class SupersededError extends Error {
  readonly code = 'GBX_SUPERSEDED'
  override name = 'SupersededError'
}

/** An owner as a queue keeps it. */
export function ownerText ({ uuid, epoch }: Owner): string {
  return `${uuid}:${epoch}`
}

/** The database's UUID of an owner's text; undefined if it is no owner of ours. */
export function databaseOf (text: string): string | undefined {
  return /^([0-9a-f-]{36}):\d{1,15}$/.exec(text)?.[1]
}

/** @throws SupersededError if the text is no owner of ours */
export function parseOwner (text: string): Owner {
  const match = /^([0-9a-f-]{36}):(\d{1,15})$/.exec(text)
  if (match === null) throw new SupersededError(`the queue's owner ${JSON.stringify(text.slice(0, 64))} is not uuid:epoch`)
  return { uuid: match[1]!, epoch: Number(match[2]) }
}
