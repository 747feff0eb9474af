// Loaded into a web worker with `--import`: at each SIGUSR2 it writes the longest pause of the event loop since the one before, in ms,
// to the file that EVENT_LOOP_FILE names. In any other process it does nothing.
import { renameSync, writeFileSync } from 'node:fs'
import { monitorEventLoopDelay } from 'node:perf_hooks'

const file = process.env.EVENT_LOOP_FILE

if (file !== undefined && process.argv[1]?.endsWith('apps/web/src/main.ts') === true) {
  const delay = monitorEventLoopDelay({ resolution: 1 })
  delay.enable()
  process.on('SIGUSR2', () => {
    writeFileSync(`${file}.new`, String(delay.max / 1e6))
    renameSync(`${file}.new`, file)
    delay.reset()
  })
}
