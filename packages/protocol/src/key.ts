// What a key may be, wherever one comes in as text. The parser of bodies checks the same on their bytes.

/** The longest key, in bytes of UTF-8. */
export const keyBytesMax = 256

/** What is wrong with a key, as the end of a sentence about it; undefined if it can be counted with. */
export function keyProblem (key: string): string | undefined {
  if (key === '') return 'is empty'
  if (!key.isWellFormed()) return 'is not UTF-8'
  const bytes = Buffer.from(key)
  if (bytes.length > keyBytesMax) return `has ${bytes.length} bytes; at most ${keyBytesMax} are allowed`
  return bytes.some((byte) => byte < 0x20 || byte === 0x7f) ? 'has a control character' : undefined
}
