// What is tested of the edge, once more with FAST_LANE=off: every request passes Node's parser.
import { afterAll } from 'vitest'

process.env.FAST_LANE = 'off'
afterAll(() => { delete process.env.FAST_LANE })

await import('./edge.test.ts')
await import('./increment.test.ts')
