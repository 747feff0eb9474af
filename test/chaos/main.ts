// `npm run chaos`: counts on the real product while faults befall it, as a seed says, and checks that every total is
// exact.
import { constants } from 'node:os'
import { parseArgs } from 'node:util'
import { randomInt } from 'node:crypto'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { graceMs, runChaos } from './run.ts'
import type { Queue } from './system.ts'

const usage = `Counts on the real product while faults befall it, and checks that every total is exact.

usage: npm run chaos -- [--seed N] [--minutes M] [--queue redis|embedded|both]

  --seed     names the schedule of faults (default: a new one, which is printed)
  --minutes  how long, may be a fraction (default: 1); with both queues each gets half of it. It ends at the
             latest ${graceMs / 1000} s after that
  --queue    default: both

Exit code 0: every total is exact; 1: it is not, or something else went wrong, and the output says what.
`

async function main (): Promise<number> {
  const { values } = parseArgs({
    options: {
      help: { type: 'boolean', short: 'h' },
      seed: { type: 'string' },
      minutes: { type: 'string', default: '1' },
      queue: { type: 'string', default: 'both' },
    }
  })
  const seed = Number(values.seed ?? randomInt(2 ** 31))
  const minutes = Number(values.minutes)
  const queues = (['redis',
    'embedded'] as const satisfies readonly Queue[]).filter((queue) =>
    values.queue === queue || values.queue === 'both')
  if (values.help === true || !Number.isSafeInteger(seed) || !(minutes > 0) || queues.length === 0) {
    process.stdout.write(usage)
    return values.help === true ? 0 : 1
  }
  for (const program of ['ps', ...queues.includes('redis') ? ['redis-server'] : []]) {
    if (findProgram(program) === undefined) {
      const instead = program === 'redis-server' ? ' (without it: --queue embedded)' : ''
      throw new Error(`${program} is not installed${instead}`)
    }
  }
  const interrupted = new AbortController()
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => interrupted.abort(name))
  // From the start of this process on.
  const endAt = minutes * 60_000
  for (const [i, queue] of queues.entries()) {
    try {
      const { summary, problems } = await runChaos({
        seed,
        queue,
        durationMs: Math.max(0, (endAt - performance.now()) / (queues.length - i)),
        signal: interrupted.signal,
      })
      process.stdout.write(`${[...problems, `${problems.length > 0 ? 'FAILED ' : ''}${summary}`].join('\n')}\n`)
      // What is left of its time may be too short for another.
      if (problems.length > 0) return 1
    } catch (error) {
      const name = interrupted.signal.aborted ? String(interrupted.signal.reason) : undefined
      if (name === 'SIGINT' || name === 'SIGTERM') {
        process.stderr.write(`chaos: ended by ${name}; nothing is left of it\n`)
        return 128 + constants.signals[name]
      }
      throw new Error(`seed ${seed}, ${queue}: ${error instanceof Error ? error.message : String(error)}`,
        { cause: error })
    }
  }
  return 0
}

// What a run left waiting in the background does not keep the process.
process.exit(await main().catch((error: unknown) => {
  process.stderr.write(`chaos: ${error instanceof Error ? error.message : String(error)}\n`)
  return 1
}))
