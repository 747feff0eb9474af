// Makes random targets for Vegeta, and expected.json next to them: what every key sums to when each target is sent
// once. Both are written as they are made, so that a million targets need no more memory than a thousand.
import { randomUUID } from 'node:crypto'
import { closeSync, mkdirSync, openSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { ackLevels } from '@gearbox/protocol/ack-levels.ts'
import { FatalError } from '@gearbox/runtime/errors.ts'
import { runMain } from '@gearbox/runtime/process/run-main.ts'
import { Random, Zipf } from './random.ts'

const valueMax = 10_000

/** At 36 bytes a key, and 16 for its weight and sum, these take some 100 MB. */
const keysMax = 1_000_000

/** What the service takes in one body unless BODY_PAIRS_MAX says otherwise. */
const pairsMax = 1000

const usage =
  `Makes N random POST /increment targets for Vegeta, with keys that are UUIDs and values from -${valueMax} to
${valueMax}.

usage: npm run targets -- N HOST[:PORT][BASE_PATH] [options]      (port 3333 unless named)

  --out FILE           where to (default: .tmp/vegeta/targets.json, or .txt with --format http); expected.json,
                       the sum of every key when each target is sent once, goes next to it
  --format json|http   json (default): one file, a target a line, its body in it; for vegeta attack -format=json
                       http: Vegeta's classic format; each body is its own file in FILE.bodies/
  --pairs COUNT        pairs a body (default: 1, as key=…&value=…; more are …=…&…=…)
  --keys COUNT         so many distinct keys, drawn after Zipf's law (default: every pair has its own key)
  --zipf EXPONENT      of Zipf's law (default: 1; 0: every key is as likely)
  --ack LEVEL          ${ackLevels.join(', ')}: asked for with each request (default: the server's)
  --idempotency-keys   gives each target an Idempotency-Key, so that it counts once however often it is sent
  --seed TEXT          the same seed and options make the same targets again (default: a random one, which is printed)
`

/** A file written in large pieces. */
class Output {
  readonly #file: number
  #text = ''

  constructor (path: string) {
    this.#file = openSync(path, 'w')
  }

  write (text: string): void {
    this.#text += text
    if (this.#text.length > 64 * 1024) this.#flush()
  }

  close (): void {
    this.#flush()
    closeSync(this.#file)
  }

  #flush (): void {
    writeFileSync(this.#file, this.#text)
    this.#text = ''
  }
}

/** The sums by key, as one JSON object in the making. */
class ExpectedSums {
  readonly #output: Output
  #separator = '{\n'

  constructor (path: string) {
    this.#output = new Output(path)
  }

  write (key: string, sum: number): void {
    this.#output.write(`${this.#separator}"${key}": ${sum}`)
    this.#separator = ',\n'
  }

  close (): void {
    this.#output.write('\n}\n')
    this.#output.close()
  }
}

/** Where the pairs' keys come from and their sums go to. */
interface Keys {
  /** A key, whose sum is to grow by `value`. */
  next: (value: number) => string
  close: () => void
}

/** A key of its own for every pair: 122 random bits never come twice, so each value is its key's sum. */
function distinctKeys (random: Random, expected: ExpectedSums): Keys {
  return {
    next: (value) => {
      const key = random.uuid()
      expected.write(key, value)
      return key
    },
    close: () => expected.close(),
  }
}

function sharedKeys (count: number, exponent: number, random: Random, expected: ExpectedSums): Keys {
  const names = Array.from({ length: count }, () => random.uuid())
  const zipf = new Zipf(count, exponent)
  // Exact: even 10^8 targets of 1000 pairs stay below 2^53.
  const sums = new Float64Array(count).fill(NaN)
  return {
    next: (value) => {
      const rank = zipf.draw(random)
      const before = sums[rank]!
      sums[rank] = Number.isNaN(before) ? value : before + value
      return names[rank]!
    },
    close: () => {
      sums.forEach((sum, rank) => { if (!Number.isNaN(sum)) expected.write(names[rank]!, sum) })
      expected.close()
    },
  }
}

async function main (): Promise<number> {
  const { values, positionals } = parse()
  if (values.help === true) {
    process.stdout.write(usage)
    return 0
  }
  const [countText, host] = positionals
  if (countText === undefined || host === undefined || positionals.length > 2) {
    throw new FatalError(`N and HOST[:PORT] are needed\n\n${usage}`)
  }
  const count = wholeNumber('N', countText, 1, 100_000_000)
  const pairs = wholeNumber('--pairs', values.pairs, 1, pairsMax)
  const keyCount = values.keys === undefined ? undefined : wholeNumber('--keys', values.keys, 1, keysMax)
  const exponent = Number(values.zipf ?? '1')
  if (!(exponent >= 0 && exponent <= 100) || values.zipf?.trim() === '') {
    throw new FatalError(`--zipf must be a number from 0 to 100, not ${JSON.stringify(values.zipf)}`)
  }
  if (values.zipf !== undefined && keyCount === undefined) {
    throw new FatalError('--zipf needs --keys: the number of keys that are drawn from')
  }
  if (values.format !== 'json' && values.format !== 'http') {
    throw new FatalError(`--format must be json or http, not ${JSON.stringify(values.format)}`)
  }
  if (values.ack !== undefined && !ackLevels.some((level) => level === values.ack)) {
    throw new FatalError(`--ack must be one of ${ackLevels.join(', ')}, not ${JSON.stringify(values.ack)}`)
  }
  const seed = values.seed ?? randomUUID()
  const url = `${baseUrl(host)}/increment${values.ack === undefined ? '' : `?ack=${values.ack}`}`
  const path = resolve(values.out ?? join(import.meta.dirname, '../.tmp/vegeta',
    values.format === 'json' ? 'targets.json' : 'targets.txt'))
  const expectedPath = join(dirname(path), 'expected.json')
  const bodies = `${path}.bodies`
  mkdirSync(values.format === 'http' ? bodies : dirname(path), { recursive: true })

  const random = new Random(seed)
  const expected = new ExpectedSums(expectedPath)
  const keys = keyCount === undefined
    ? distinctKeys(random, expected)
    : sharedKeys(keyCount, exponent, random,
      expected)
  const targets = new Output(path)
  for (let number = 0; number < count; number++) {
    const body = makeBody(pairs, keys, random)
    const idempotencyKey = values['idempotency-keys'] === true ? random.uuid() : undefined
    // The fragment stays with Vegeta: it is never sent, and it is all that tells in a result which target was hit. A
    // result's sequence number does not: workers draw it and their target one after the other, and so in different
    // orders.
    const target = { url: `${url}#${number}`, body, idempotencyKey }
    if (values.format === 'json') targets.write(jsonTarget(target))
    else targets.write(httpTarget(target, join(bodies, String(number))))
  }
  targets.close()
  keys.close()
  process.stdout.write(`${count} targets: ${path}\ntheir sums:  ${expectedPath}\nseed:        ${seed}\n`)
  return 0
}

function parse () {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        help: { type: 'boolean', short: 'h' },
        out: { type: 'string' },
        format: { type: 'string', default: 'json' },
        pairs: { type: 'string', default: '1' },
        keys: { type: 'string' },
        zipf: { type: 'string' },
        ack: { type: 'string' },
        'idempotency-keys': { type: 'boolean' },
        seed: { type: 'string' },
      },
    })
  } catch (error) {
    throw new FatalError(`${error instanceof Error ? error.message : String(error)}\n\n${usage}`)
  }
}

function wholeNumber (name: string, text: string, min: number, max: number): number {
  const value = Number(text)
  if (!/^[0-9]+$/.test(text) || value < min || value > max) {
    throw new FatalError(`${name} must be a whole number from ${min} to ${max}, not ${JSON.stringify(text)}`)
  }
  return value
}

function baseUrl (text: string): string {
  const [, host = '', path = ''] = /^([^/?#@\s]+)((?:\/[A-Za-z0-9._~-]+)*)$/.exec(text) ?? []
  const url = `http://${/[^:]:[0-9]+$/.test(host) ? host : `${host}:3333`}`
  if (host === '' || !URL.canParse(url)) {
    throw new FatalError(`HOST[:PORT] must be a name or an address (IPv6 in brackets), not ${JSON.stringify(text)}`)
  }
  return url + path
}

function makeBody (pairs: number, keys: Keys, random: Random): string {
  const pair = (): [string, number] => {
    const value = random.integer(-valueMax, valueMax)
    return [keys.next(value), value]
  }
  if (pairs === 1) {
    const [key, value] = pair()
    return `key=${key}&value=${value}`
  }
  return Array.from({ length: pairs }, () => pair().join('=')).join('&')
}

interface NewTarget {
  readonly url: string
  readonly body: string
  readonly idempotencyKey: string | undefined
}

const contentType = 'application/x-www-form-urlencoded'

function jsonTarget ({ url, body, idempotencyKey }: NewTarget): string {
  const header = {
    'Content-Type': [contentType],
    ...(idempotencyKey === undefined ? {} : { 'Idempotency-Key': [idempotencyKey] }),
  }
  return `${JSON.stringify({ method: 'POST', url, header, body: Buffer.from(body).toString('base64') })}\n`
}

/** Writes the body's file, too. Its path is absolute: Vegeta would look for others where it is started. */
function httpTarget ({ url, body, idempotencyKey }: NewTarget, bodyPath: string): string {
  writeFileSync(bodyPath, body)
  return `POST ${url}\nContent-Type: ` +
    `${contentType}\n${idempotencyKey === undefined ? '' : `Idempotency-Key: ${idempotencyKey}\n`}@${bodyPath}\n\n`
}

await runMain(main)
