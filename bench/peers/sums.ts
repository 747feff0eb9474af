// What every peer in JavaScript does with a body: parse the pairs, add them up. Plainly written and fast, but with none
// of the checks that Gearbox makes: a ceiling must not be held down by its parser.

export const totals = new Map<string, number>()

/** Calls `add` for each pair of a form's body. */
export function eachPair (body: string, add: (key: string, value: number) => void): void {
  for (const pair of body.split('&')) {
    const equals = pair.indexOf('=')
    add(decode(pair.slice(0, equals)), Number(pair.slice(equals + 1)))
  }
}

function decode (text: string): string {
  return text.includes('%') || text.includes('+') ? decodeURIComponent(text.replaceAll('+', ' ')) : text
}

/** Adds a form's body to the totals. */
export function sum (body: string): void {
  eachPair(body, (key, value) => { totals.set(key, (totals.get(key) ?? 0) + value) })
}

/** All increments counted, as text: what `GET /total` answers. */
export function total (): string {
  return String([...totals.values()].reduce((all, value) => all + value, 0))
}

/** The port to listen on, from the command line. */
export const port = Number(process.argv[2])
