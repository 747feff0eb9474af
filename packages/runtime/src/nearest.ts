// The known word that an unknown one was probably meant to be, for messages.

/** Characters of a word that are compared: the time grows with the product of both lengths, and ours have under 32. */
const comparedCharactersMax = 64

/** The known word that is nearest, in any case, and how many slips of the keyboard are between the two. */
export function findNearest (word: string, known: readonly string[]): { nearest: string, distance: number } {
  let [nearest, distance] = ['', Infinity]
  for (const candidate of known) {
    const steps = editDistance(word.slice(0, comparedCharactersMax).toLowerCase(), candidate.toLowerCase())
    if (steps < distance) [nearest, distance] = [candidate, steps]
  }
  return { nearest, distance }
}

/** The same, unless more than half of the word would be slips. */
export function findNear (word: string, known: readonly string[]): string | undefined {
  const { nearest, distance } = findNearest(word, known)
  return distance <= Math.max(word.length, nearest.length) / 2 ? nearest : undefined
}

/** How many letters to insert, delete, change or swap with their neighbour to turn one word into the other. */
function editDistance (one: string, other: string): number {
  let before: number[] = []
  let last = Array.from({ length: other.length + 1 }, (_, i) => i)
  for (let i = 1; i <= one.length; i++) {
    const row = [i]
    for (let j = 1; j <= other.length; j++) {
      const change = one[i - 1] === other[j - 1] ? 0 : 1
      row[j] = Math.min(last[j]! + 1, row[j - 1]! + 1, last[j - 1]! + change)
      const isSwap = i > 1 && j > 1 && one[i - 1] === other[j - 2] && one[i - 2] === other[j - 1]
      if (isSwap) row[j] = Math.min(row[j]!, before[j - 2]! + 1)
    }
    before = last
    last = row
  }
  return last[other.length]!
}
