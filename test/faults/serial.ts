// A plugin that gives numbers, as a stranger would write it, and clients that ask for them: each number once, without a
// gap, and each to whom it belongs.
import { writeFileSync } from 'node:fs'
import { Agent } from 'node:http'
import { join } from 'node:path'
import { send } from '@gearbox/test-kit/client.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'
import { query } from './fixtures.ts'

/**
 * Its source. POST /serial?who=NAME gives NAME the next number. A name that begins with "poison" ends the transaction
 * by a trigger, and one with "large" writes more than is kept in memory.
 */
const source = `
import { definePlugin } from '@gearbox/runtime/plugin.ts'

const largeBytes = 16 * 1024 * 1024

export default definePlugin({
  name: 'serial',
  consumer: {
    migrations: [\`
      CREATE TABLE serial_numbers(number INTEGER PRIMARY KEY, who TEXT NOT NULL) STRICT;
      CREATE TABLE serial_large(bytes BLOB) STRICT;
      CREATE TRIGGER serial_poison BEFORE INSERT ON serial_numbers WHEN new.who LIKE 'poison%'
        BEGIN SELECT RAISE(ROLLBACK, 'poison'); END\`],
    apply: ({ data }, { database }) => {
      const who = String(data)
      const last = database.get('SELECT max(number) AS number FROM serial_numbers').number ?? 0
      database.run('INSERT INTO serial_numbers(number, who) VALUES (?, ?)', last + 1, who)
      if (who.startsWith('large')) database.run('INSERT INTO serial_large VALUES (zeroblob(?))', largeBytes)
      return { number: last + 1, who }
    },
  },
  web: (app, context) => {
    const querystring = { type: 'object', properties: { who: { type: 'string' } }, additionalProperties: false }
    app.post('/serial', { config: { needs: 'count' }, schema: { querystring } }, async (request, reply) => {
      const submitted = await context.submit(request.query.who, { ...context.idempotency(request), scope: 'serial' })
      return submitted.state === 'stored' ? reply.code(201).send(submitted.result) : reply.code(202).send({})
    })
  },
})`

/** Writes the plugin to a file outside of the checkout. @returns its path */
export function writeSerial (): string {
  const path = join(temporaryDir(), 'serial.ts')
  writeFileSync(path, source)
  return path
}

/** What a client got: 201 has the number, 202 is not known yet, undefined: the connection was lost. */
export interface Answer {
  readonly status: number | undefined
  readonly number?: number
  readonly code?: string
}

/** Asks for a number. */
export async function askFor (url: string, who: string, key?: string, agent: Agent | false = false): Promise<Answer> {
  const headers = { 'content-length': '0', ...(key === undefined ? {} : { 'idempotency-key': key }) }
  try {
    const { status, text } = await send(`${url}/serial?who=${encodeURIComponent(who)}`, {
      method: 'POST', headers, agent,
    })
    const { number, who: whose, code } = JSON.parse(text)
    if (status === 201 && whose !== who) throw new Error(`${who} got the number of ${whose}: ${number}`)
    return { status, number, code }
  } catch (error) {
    if (error instanceof Error && 'code' in error) return { status: undefined }
    throw error
  }
}

/**
 * Clients that ask one after the other until they are told to stop. Half of them use an Idempotency-Key and repeat
 * what they have asked until they are answered, and sometimes once more.
 */
export class SerialLoad {
  /** By name, all answers of its requests. */
  readonly answers = new Map<string, Answer[]>()
  readonly #running: Promise<unknown>
  readonly clients: number
  #answered = 0
  /** Clients that wait for an answer. */
  waiting = 0
  #stopped = false

  constructor (url: string, clients = 8, name = 'client') {
    this.clients = clients
    this.#running = Promise.all(Array.from({ length: clients }, async (_, client) => {
      const agent = new Agent({ keepAlive: true, maxSockets: 1 })
      for (let i = 0; !this.#stopped; i++) {
        await this.#ask(url, `${name}-${client}.${i}`, client % 2 === 1, i, agent)
      }
      agent.destroy()
    }))
  }

  /** Resolves once so many more numbers were given. */
  async more (numbers: number): Promise<void> {
    const before = this.#answered
    await until(`${numbers} more numbers under load`, () => this.#answered >= before + numbers, 30_000)
  }

  async stop (): Promise<void> {
    this.#stopped = true
    await this.#running
  }

  /** Holds what the clients got against the database, once nothing is on its way. @returns what is wrong */
  problems (path: string): string[] {
    const rows = query(path, 'SELECT number, who FROM serial_numbers ORDER BY number') as Row[]
    const holders = new Map<string, number[]>()
    for (const { number, who } of rows) holders.set(who, [...holders.get(who) ?? [], number])
    const gaps = rows.flatMap(({ number }, i) => number === i + 1 ? [] : [`number ${number} is in place ${i + 1}`])
    const unknown = [...holders.keys()].filter((who) => !this.answers.has(who)).map((who) => `nobody is ${who}`)
    return [...gaps.slice(0, 3), ...unknown, ...[...this.answers].flatMap(([who, answers]) =>
      problemsOf(who, answers, holders.get(who) ?? []))]
  }

  async #ask (url: string, who: string, hasKey: boolean, i: number, agent: Agent): Promise<void> {
    const answers: Answer[] = []
    this.answers.set(who, answers)
    let again = hasKey && i % 3 === 0
    for (;;) {
      this.waiting++
      const answer = await askFor(url, who, hasKey ? who : undefined, agent)
      this.waiting--
      answers.push(answer)
      if (answer.status === 201) {
        this.#answered++
        if (!again) return
        again = false
      } else {
        // Whoever is refused asks again, but not in every event-loop iteration.
        await new Promise((resolve) => setTimeout(resolve, 5))
        // What has no key can't be repeated. What has one is repeated until it is known, or refused for good.
        const isFinal = answer.status !== undefined && ![202, 503].includes(answer.status)
        // After the end nobody may be there to answer.
        if (!hasKey || isFinal || (this.#stopped && answer.status === undefined)) return
      }
    }
  }
}

interface Row {
  readonly number: number
  readonly who: string
}

function problemsOf (who: string, answers: readonly Answer[], numbers: readonly number[]): string[] {
  const got = answers.flatMap(({ status, number }) => status === 201 ? [number] : [])
  const isRefused = answers.every(({ status }) => status === 503)
  return [
    ...(numbers.length > 1 ? [`${who} has ${numbers}`] : []),
    ...(numbers.length === 1 && isRefused ? [`${who} was refused and has ${numbers}`] : []),
    // 202 says that it is on its way.
    ...(numbers.length === 0 && answers.some(({ status }) => status === 202) ? [`${who} was accepted`] : []),
    ...got.filter((number) => number !== numbers[0]).map((number) => `${who} got ${number} and has ${numbers}`),
    ...answers.filter(({ status }) => ![201, 202, 503, undefined].includes(status))
      .map(({ status, code }) => `${who} got a ${status} ${code}`),
  ]
}
