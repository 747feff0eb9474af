// Which of the forms that a reply can have a client likes best, by its Accept header.

/**
 * Chooses a media type.
 * @param header `Accept`, if it was sent
 * @param offered the types that the reply can have; the first is sent to whoever has no preference
 */
export function preferred<T extends string> (header: string | undefined, offered: readonly [T, ...T[]]): T {
  if (header === undefined) return offered[0]
  const ranges = header.toLowerCase().split(',', rangesMax).map(parseRange)
  let [best, bestQuality] = [offered[0], qualityOf(offered[0], ranges)]
  for (const type of offered.slice(1)) {
    const quality = qualityOf(type, ranges)
    if (quality > bestQuality) [best, bestQuality] = [type, quality]
  }
  return best
}

/** Browsers send some ten; a header can have thousands. */
const rangesMax = 32

interface Range {
  readonly range: string
  readonly quality: number
}

function parseRange (text: string): Range {
  const [range = '', ...parameters] = text.split(';').map((part) => part.trim())
  const weight = parameters.find((parameter) => parameter.startsWith('q='))
  const quality = weight === undefined ? 1 : Number(weight.slice(2))
  return { range, quality: quality >= 0 && quality <= 1 ? quality : 0 }
}

/** By the most specific range that covers the type. */
function qualityOf (type: string, ranges: readonly Range[]): number {
  for (const range of [type, `${type.split('/', 1)[0]}/*`, '*/*']) {
    const found = ranges.find((candidate) => candidate.range === range)
    if (found !== undefined) return found.quality
  }
  return 0
}
