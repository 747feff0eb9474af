// `npm run chaos`: counts on the real product while faults befall it, as a seed says, and checks that every total is exact.
import { parseArgs } from 'node:util'
import { randomInt } from 'node:crypto'
import { runChaos } from './run.ts'
import type { Queue } from './system.ts'

const usage = `Counts on the real product while faults befall it, and checks that every total is exact.

usage: npm run chaos -- [--seed N] [--minutes M] [--queue redis|embedded|both]

  --seed     names the schedule of faults (default: a new one, which is printed)
  --minutes  how long, may be a fraction (default: 1); with both queues each gets half of it
  --queue    default: both
`

async function main (): Promise<number> {
  const { values } = parseArgs({ options: { help: { type: 'boolean', short: 'h' }, seed: { type: 'string' }, minutes: { type: 'string', default: '1' }, queue: { type: 'string', default: 'both' } } })
  const seed = Number(values.seed ?? randomInt(2 ** 31))
  const minutes = Number(values.minutes)
  const queues = (['redis', 'embedded'] as const satisfies readonly Queue[]).filter((queue) => values.queue === queue || values.queue === 'both')
  if (values.help === true || !Number.isSafeInteger(seed) || !(minutes > 0) || queues.length === 0) {
    process.stdout.write(usage)
    return values.help === true ? 0 : 1
  }
  let failed = false
  for (const queue of queues) {
    const { summary, problems } = await runChaos({ seed, queue, durationMs: minutes * 60_000 / queues.length })
    if (problems.length > 0) process.stdout.write(`${problems.join('\n')}\n`)
    process.stdout.write(`${problems.length > 0 ? 'FAILED ' : ''}${summary}\n`)
    failed ||= problems.length > 0
  }
  return failed ? 1 : 0
}

process.exitCode = await main()
