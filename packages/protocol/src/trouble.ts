// Why nothing can be stored at present, as the consumer reports it to web workers.

/** Why a consumer that runs can't store anything at present. */
export interface StoreTrouble {
  readonly reason: string
  /** The database's file was moved, removed or replaced: it does not come back by itself. */
  readonly moved: boolean
}

/** Parses what a consumer reported; undefined if it can store again. @throws SyntaxError if it is not JSON */
export function parseTrouble (text: string): StoreTrouble | undefined {
  if (text === '') return undefined
  const value: unknown = JSON.parse(text)
  if (typeof value !== 'object' || value === null || !('reason' in value) || !('moved' in value)) return undefined
  return { reason: String(value.reason), moved: value.moved === true }
}
