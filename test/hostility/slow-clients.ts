// Measures what slow clients cost honest ones: `node test/hostility/slow-clients.ts` starts everything on this machine
// and alternates rounds without and with connections that send nothing, half a header or a byte a second, and come
// again whenever they are closed.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { parseArgs } from 'node:util'
import { startAll } from '@gearbox/test-kit/gearbox.ts'
import { addressOf, SlowClients, type Address } from './fixtures.ts'

const usage = `usage: node test/hostility/slow-clients.ts [options]

  --connections  slow ones (default 10000; each takes a file here and one in the worker)
  --clients      honest ones, each on its own connection, one request at a time (default 256: enough to keep a
                 worker busy while each waits for its commit)
  --rounds       of each kind (default 3)
  --seconds      a round (default 5)
`

const { values } = parseArgs({
  options: {
    help: { type: 'boolean', short: 'h' },
    connections: { type: 'string', default: '10000' },
    clients: { type: 'string', default: '256' },
    rounds: { type: 'string', default: '3' },
    seconds: { type: 'string', default: '5' },
    /** Of the process that it starts for the slow ones. */
    slow: { type: 'string' },
  },
})

interface Round {
  readonly perSecond: number
  readonly medianMs: number
  readonly p99Ms: number
  readonly failed: number
}

/** In separate processes, so that what they take is not taken from the honest clients' event loop. */
async function beSlow (url: string, count: number): Promise<void> {
  process.on('SIGTERM', () => process.exit())
  // Whoever started it may be gone without a word.
  process.once('disconnect', () => process.exit())
  const clients = await SlowClients.open(addressOf(url), count, true)
  process.stdout.write('open\n')
  process.on('message',
    () => process.stdout.write(`${clients.open} open, ${clients.closed} closed so far, the longest after ` +
      `${Math.round(clients.openMsMost)} ms\n`))
}

async function measure (address: Address, clients: number, seconds: number): Promise<Round> {
  const body = 'foo=1&bar=-2'
  const request =
    'POST /increment HTTP/1.1\r\nHost: honest\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: ' +
      `${body.length}\r\n\r\n${body}`
  const latencies: number[] = []
  let failed = 0
  const startedAt = performance.now()
  await Promise.all(Array.from({ length: clients }, async () => {
    const socket = connect({ ...address })
    let [received, sentAt, over] = ['', 0, false]
    const next = (): void => {
      over = performance.now() - startedAt > seconds * 1000
      if (over) {
        socket.destroy()
      } else {
        sentAt = performance.now()
        socket.write(request)
      }
    }
    socket.on('connect', next)
    socket.on('data', (chunk) => {
      received += String(chunk)
      if (!received.endsWith('\r\n\r\n')) return
      if (received.startsWith('HTTP/1.1 204')) latencies.push(performance.now() - sentAt)
      else failed++
      received = ''
      next()
    })
    socket.on('error', () => {})
    await new Promise((resolve) => socket.once('close', resolve))
    if (!over) failed++
  }))
  latencies.sort((a, b) => a - b)
  const at = (share: number): number => latencies[Math.floor(latencies.length * share)] ?? Number.NaN
  return { perSecond: latencies.length / seconds, medianMs: at(0.5), p99Ms: at(0.99), failed }
}

/** Rounds with slow clients begin when all of them are connected. */
async function measureWithSlow (url: string, connections: number, clients: number,
  seconds: number): Promise<Round & { readonly told: string }> {
  const child = spawn(process.execPath, [import.meta.filename, '--slow', url, '--connections', String(connections)],
    { stdio: ['ignore', 'pipe', 'inherit', 'ipc'] })
  if (child.stdout === null) throw new Error('no output')
  const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
  await lines.next()
  const round = await measure(addressOf(url), clients, seconds)
  child.send('tell')
  const told = await lines.next()
  child.kill('SIGTERM')
  await once(child, 'exit')
  return { ...round, told: String(told.value) }
}

function median (values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return sorted.length % 2 === 1 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

function show (name: string, { perSecond, medianMs, p99Ms, failed }: Round, rest = ''): void {
  process.stdout.write(`${name.padEnd(15)} ${perSecond.toFixed(0).padStart(7)} requests/s   median ` +
    `${medianMs.toFixed(1)} ms   p99 ${p99Ms.toFixed(1)} ms   ${failed} failed${rest}\n`)
}

function medians (rounds: readonly Round[]): Round {
  const of = (read: (round: Round) => number): number => median(rounds.map(read))
  return {
    perSecond: of((round) => round.perSecond),
    medianMs: of((round) => round.medianMs),
    p99Ms: of((round) => round.p99Ms),
    failed: rounds.reduce((sum, { failed }) => sum + failed, 0),
  }
}

async function main (): Promise<void> {
  const [connections, clients, rounds, seconds] = [values.connections, values.clients, values.rounds,
    values.seconds].map(Number) as [number, number, number, number]
  const dir = mkdtempSync(join(tmpdir(), 'gearbox-slow-'))
  const gearbox = await startAll({ DATABASE_PATH: join(dir, 'numbers.db'), WEB_WORKERS: '1' })
  try {
    await measure(addressOf(gearbox.url), clients, 2)
    const without: Round[] = []
    const withSlow: Round[] = []
    for (let i = 0; i < rounds; i++) {
      const plain = await measure(addressOf(gearbox.url), clients, seconds)
      show('without', plain)
      without.push(plain)
      const slowed = await measureWithSlow(gearbox.url, connections, clients, seconds)
      show(`with ${connections}`, slowed, `   (${slowed.told})`)
      withSlow.push(slowed)
    }
    const [plain, slowed] = [medians(without), medians(withSlow)]
    process.stdout.write('medians\n')
    show('without', plain)
    show(`with ${connections}`, slowed)
    process.stdout.write(`ratio of requests/s: ${(slowed.perSecond / plain.perSecond).toFixed(3)}\n`)
  } finally {
    await gearbox.end()
    rmSync(dir, { recursive: true, force: true })
  }
}

if (values.help === true) process.stdout.write(usage)
else if (values.slow !== undefined) await beSlow(values.slow, Number(values.connections))
else await main()
