// A short search for the best setting of a server that has one: each gets the load once, the quickest is started again
// and stays.
import type { Asks, Host, Server } from '../host.ts'
import { runLoad } from '../load.ts'

/** One setting. */
export interface Choice {
  readonly label: string
  readonly start: () => Promise<Server>
}

/** As in the rows themselves. */
const connections = 1024

/**
 * Starts a server as what answers the most requests per second, and notes what that was. Where the host does not
 * search, it is the first choice.
 * @throws whatever the first choice throws
 */
export async function findBest (host: Host, asks: Asks, choices: readonly Choice[]): Promise<Server> {
  const rates = new Map<Choice, number>()
  for (const choice of host.searchSeconds === 0 ? [] : choices) {
    const server = await choice.start()
    try {
      const { answered, seconds, problem } = await runLoad(
        { ...asks, port: server.port, connections, seconds: host.searchSeconds, core: host.cores.load, dir: host.dir })
      process.stderr.write(`${choice.label}: ${(answered / seconds).toFixed(0)}/s${
        problem === undefined ? '' : ` (${problem})`}\n`)
      if (problem === undefined) rates.set(choice, answered / seconds)
    } finally {
      await server.stop()
    }
  }
  const best = choices.toSorted((a, b) => (rates.get(b) ?? 0) - (rates.get(a) ?? 0))[0]
  if (best === undefined) throw new Error('there is nothing to choose from')
  return await startAs(best)
}

/** Keeps a server's getters, which look for its processes when they are asked. */
async function startAs ({ label, start }: Choice): Promise<Server> {
  return Object.defineProperty(await start(), 'note', { value: label, enumerable: true })
}
