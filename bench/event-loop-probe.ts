// Loaded into a web worker with `--import`: at each SIGUSR2 it writes the longest pause of the event loop since the one
// before, and the most CPU time that one took, both in ms, to the file that EVENT_LOOP_FILE names. In any other process
// it does nothing.
import { renameSync, writeFileSync } from 'node:fs'

export interface Pause {
  readonly wallMs: number
  /** What is not its own CPU time, the machine gave to others: that is no less on an idle event loop. */
  readonly cpuMs: number
}

const file = process.env.EVENT_LOOP_FILE

if (file !== undefined && process.argv[1]?.endsWith('apps/web/src/main.ts') === true) {
  let longest: Pause = { wallMs: 0, cpuMs: 0 }
  let last = performance.now()
  let cpu = process.threadCpuUsage()
  // Between two ticks of a timer is one event-loop iteration, and a millisecond of waiting.
  const tick = (): void => {
    const now = performance.now()
    const { user, system } = process.threadCpuUsage(cpu)
    longest = { wallMs: Math.max(longest.wallMs, now - last), cpuMs: Math.max(longest.cpuMs, (user + system) / 1000) }
    last = now
    cpu = process.threadCpuUsage()
    setTimeout(tick, 1)
  }
  tick()
  process.on('SIGUSR2', () => {
    writeFileSync(`${file}.new`, JSON.stringify(longest))
    renameSync(`${file}.new`, file)
    longest = { wallMs: 0, cpuMs: 0 }
  })
}
