// The faults and their schedule. Everything random is drawn when a fault is planned, so that a seed names its schedule.
import { setTimeout as delay } from 'node:timers/promises'
import { until } from '@gearbox/test-kit/until.ts'
import { canSetClocks } from '@gearbox/test-kit/wrong-clock.ts'
import type { Random } from '@gearbox/test-kit/random.ts'
import { commands, type Queue, type System } from './system.ts'

/** What a fault befalls; two at a time never befall the same, nor anything together with all. */
type Target = 'redis' | 'network' | 'worker' | 'consumer' | 'database' | 'log' | 'all'

interface Fault {
  readonly name: string
  readonly targets: readonly Target[]
  readonly queues: readonly Queue[]
  /** Redis forgets what it had: made good only where windows still have it. */
  readonly losesData?: true
  /** Only where a process can be given another clock. */
  readonly setsClock?: true
  /** Only where windows are so small that they are trimmed. */
  readonly trims?: true
  readonly plan: (random: Random) => Plan
}

interface Plan {
  readonly details?: string
  /** Resolves when the fault has ended. */
  readonly run: (system: System) => Promise<void>
}

export interface PlannedFault {
  readonly text: string
  readonly run: (system: System) => Promise<void>
}

/** Faults that begin one soon after the other, and the pause before them. */
export interface Step {
  readonly pauseMs: number
  readonly offsetMs: number
  readonly faults: readonly PlannedFault[]
}

const both: readonly Queue[] = ['redis', 'embedded']
const redisOnly: readonly Queue[] = ['redis']

/** A command that is to break may not come by while something else is broken too. */
const breakTimeoutMs = 3000

function forMs (random: Random, least: number, most: number, run: (system: System, ms: number) => Promise<void>): Plan {
  const ms = random.int(least, most)
  return { details: `${ms} ms`, run: async (system) => { await run(system, ms) } }
}

function always (run: (system: System) => Promise<void>): () => Plan {
  return () => ({ run })
}

function breakCommand (random: Random, order: (system: System, mark: string) => void): Plan {
  const { name, mark } = commands[random.int(0, commands.length - 1)]!
  return {
    details: name,
    run: async (system) => {
      order(system, mark)
      await until('a connection to break', () => system.proxy.done, breakTimeoutMs).catch(() => {})
    },
  }
}

/** With the consumer standing still from a while before, there is much that can be lost. */
function planBacklog (random: Random): {
  readonly details: string
  readonly run: (system: System, fault: () => Promise<void>) => Promise<void>
} {
  if (random.chance(0.3)) return { details: '', run: async (_system, fault) => { await fault() } }
  const ms = random.int(100, 800)
  return {
    details: `, the consumer standing still from ${ms} ms before`,
    run: async (system, fault) => {
      const thaw = system.freeze(await system.consumer())
      await delay(ms)
      await fault().finally(thaw)
    },
  }
}

const batches = 'gearbox:{0}:batches'

interface Removal {
  readonly name: string
  readonly run: (system: System) => Promise<void>
}

/** Ways of taking batches out of the list: from its head, its tail, or all. */
const removals: readonly [Removal, ...Removal[]] = [
  { name: 'RPOP', run: async ({ admin }) => { await admin.rpop(batches) } },
  {
    name: 'LTRIM of the first half',
    run: async ({ admin }) => { await admin.ltrim(batches, Math.ceil(await admin.llen(batches) / 2), -1) },
  },
  {
    name: 'LTRIM of the last half',
    run: async ({ admin }) => { await admin.ltrim(batches, 0, Math.ceil(await admin.llen(batches) / 2) - 1) },
  },
  { name: 'DEL', run: async ({ admin }) => { await admin.del(batches) } },
]

/** All that was sent until now and has to count is in the database, and no file waits to be pushed. */
async function allStored (system: System): Promise<void> {
  const now = performance.now()
  await until('all to be stored, whatever the list lost',
    () => system.ledger.owed(now).length === 0 && system.unsentFiles().length === 0, 25_000)
}

const faults: readonly Fault[] = [
  {
    name: 'kill -9 of a worker',
    targets: ['worker'],
    queues: both,
    plan: (random) => {
      const which = random.int(0, 9)
      return {
        details: `number ${which}`,
        run: async (system) => { await system.killWorker(await system.worker(which)) },
      }
    },
  },
  {
    name: 'SIGTERM of a worker',
    targets: ['worker'],
    queues: both,
    plan: (random) => {
      const which = random.int(0, 9)
      return {
        details: `number ${which}`,
        run: async (system) => { await system.stopWorker(await system.worker(which)) },
      }
    },
  },
  {
    name: 'a worker stands still',
    targets: ['worker'],
    queues: both,
    plan: (random) =>
      forMs(random, 500, 4000, async (system, ms) => { await system.freezeFor(await system.worker(0), ms) }),
  },
  {
    name: 'kill -9 of the consumer',
    targets: ['consumer'],
    queues: both,
    plan: always(async (system) => { await system.killConsumer() }),
  },
  {
    name: 'kill -9 of the consumer while another process holds the database',
    targets: ['consumer', 'database'],
    queues: both,
    plan: (random) => forMs(random, 300, 2000, async (system, ms) => {
      await Promise.all([system.holdDatabase(ms), delay(ms / 2).then(async () => { await system.killConsumer() })])
    }),
  },
  {
    name: 'the consumer stands still',
    targets: ['consumer'],
    queues: both,
    plan: (random) =>
      forMs(random, 500, 4000, async (system, ms) => { await system.freezeFor(await system.consumer(), ms) }),
  },
  {
    name: 'the consumer stands still until windows are trimmed',
    targets: ['consumer'],
    queues: redisOnly,
    trims: true,
    plan: always(async (system) => {
      const before = await system.trimmed()
      const thaw = system.freeze(await system.consumer())
      await until('windows to be trimmed', async () => await system.trimmed() > before).finally(thaw)
    }),
  },
  {
    name: 'another worker on the port, with a wrong clock',
    // Figures are asked for at that port, and would be the other worker's.
    targets: ['worker', 'consumer'],
    queues: redisOnly,
    setsClock: true,
    plan: (random) => {
      const hours = random.pick([30 * 24, 30 * 24, -30 * 24, 1, -1])
      const [ms, frozenMs] = [random.int(1500, 4000), random.int(0, 2500)]
      return {
        details: `${hours} h ahead, for ${ms} ms, the consumer standing still for ${frozenMs} ms of them`,
        run: async (system) => {
          await Promise.all([system.runOtherWorker(hours, ms),
            delay(ms / 3).then(async () => { await system.freezeFor(await system.consumer(), frozenMs) })])
        },
      }
    },
  },
  {
    name: 'a newer consumer takes over',
    targets: ['consumer'],
    queues: redisOnly,
    plan: always(async (system) => { await system.startOtherConsumer() }),
  },
  {
    name: 'another process holds the database',
    targets: ['database'],
    queues: both,
    plan: (random) => forMs(random, 300, 3000, async (system, ms) => { await system.holdDatabase(ms) }),
  },
  {
    name: 'nobody reads the log, and its pipe is full',
    targets: ['log'],
    queues: both,
    plan: (random) => forMs(random, 1000, 4000, async (system, ms) => { await system.neglectLog('full', ms) }),
  },
  {
    name: 'the reader of the log leaves, and another comes',
    targets: ['log'],
    queues: both,
    plan: (random) => forMs(random, 500, 3000, async (system, ms) => { await system.neglectLog('broken', ms) }),
  },
  {
    name: "the database's file is moved away and put back",
    // A consumer that is started by hand meanwhile would refuse to do without it.
    targets: ['database', 'consumer'],
    queues: both,
    plan: (random) => {
      const whole = random.chance(0.5)
      const ms = random.int(300, 4000)
      return {
        details: `${ms} ms, ${whole ? 'with' : 'without'} its -wal`,
        run: async (system) => { await system.moveDatabase(ms, whole) },
      }
    },
  },
  {
    name: "kill -9 of the consumer while the database's file is moved away",
    targets: ['database', 'consumer'],
    queues: ['embedded'],
    plan: (random) => forMs(random, 800, 4000, async (system, ms) => {
      await Promise.all([system.moveDatabase(ms, true),
        delay(ms / 2).then(async () => { await system.killConsumer() })])
    }),
  },
  {
    name: 'kill -9 of Redis, restarted after',
    targets: ['redis'],
    queues: redisOnly,
    plan: (random) => forMs(random, 0, 3000, async (system, ms) => { await system.restartRedis(ms, false) }),
  },
  {
    name: 'kill -9 of Redis, restarted with nothing after',
    targets: ['redis', 'consumer'],
    queues: redisOnly,
    losesData: true,
    plan: (random) => {
      const backlog = planBacklog(random)
      const ms = random.int(0, 2000)
      return {
        details: `${ms} ms${backlog.details}`,
        run: async (system) => { await backlog.run(system, async () => { await system.restartRedis(ms, true) }) },
      }
    },
  },
  {
    name: 'Redis rolled back to an older copy',
    targets: ['redis', 'consumer'],
    queues: redisOnly,
    losesData: true,
    plan: (random) => {
      const backlog = planBacklog(random)
      const [ageMs, downMs] = [random.int(100, 1500), random.int(0, 1000)]
      return {
        details: `of ${ageMs} ms before${backlog.details}`,
        run: async (system) => { await backlog.run(system, async () => { await system.rollBackRedis(ageMs, downMs) }) },
      }
    },
  },
  {
    name: 'Redis stands still',
    targets: ['redis'],
    queues: redisOnly,
    plan: (random) => forMs(random, 500, 5000, async (system, ms) => { await system.freezeFor(system.redis.pid, ms) }),
  },
  {
    name: 'FLUSHALL',
    targets: ['redis', 'consumer'],
    queues: redisOnly,
    losesData: true,
    plan: (random) => {
      const backlog = planBacklog(random)
      const times = random.int(1, 3)
      const pauses = Array.from({ length: times }, () => random.int(0, 400))
      return {
        details: `${times} times${backlog.details}`,
        run: async (system) => {
          await backlog.run(system, async () => {
            for (const ms of pauses) {
              await system.flushRedis()
              await delay(ms)
            }
          })
        },
      }
    },
  },
  {
    name: 'Redis becomes the replica of an older copy, and a primary again',
    targets: ['redis', 'consumer'],
    queues: redisOnly,
    losesData: true,
    plan: (random) => {
      const backlog = planBacklog(random)
      const ageMs = random.int(100, 1000)
      return {
        details: `of ${ageMs} ms before${backlog.details}`,
        run: async (system) => { await backlog.run(system, async () => { await system.swapRedis(ageMs) }) },
      }
    },
  },
  {
    name: 'somebody takes batches out of the list',
    // No worker may be killed meanwhile, and nothing else be an excuse: all of it has to come back.
    targets: ['redis', 'network', 'consumer', 'worker', 'database'],
    queues: redisOnly,
    losesData: true,
    plan: (random) => {
      const [backlogMs, which, stopped] = [random.int(200, 1200), random.int(0, 9), random.chance(0.4)]
      const removal = random.pick(removals)
      return {
        details: `${removal.name}, the consumer standing still from ${backlogMs} ms ` +
          `before${stopped ? `; then SIGTERM of worker ${which}` : ''}`,
        run: async (system) => {
          await allStored(system)
          const thaw = system.freeze(await system.consumer())
          await delay(backlogMs)
          await removal.run(system).finally(thaw)
          if (stopped) await system.stopWorker(await system.worker(which))
          await allStored(system)
        },
      }
    },
  },
  {
    name: 'SIGTERM of a worker while the queue is away: it leaves a file, and the next one pushes that',
    targets: ['redis', 'network', 'consumer', 'worker'],
    queues: both,
    plan: (random) => {
      const which = random.int(0, 9)
      return {
        details: `number ${which}`,
        run: async (system) => {
          const worker = await system.worker(which)
          const stop = async (): Promise<void> => { await system.stopWorker(worker) }
          if (system.queue === 'redis') await system.withoutRedis(stop)
          else await stop().finally(system.freeze(await system.consumer()))
          await until('unsent files to be pushed and stored', () => system.unsentFiles().length === 0)
        },
      }
    },
  },
  {
    name: 'CLIENT KILL',
    targets: ['redis'],
    queues: redisOnly,
    plan: always(async ({ admin }) => {
      await admin.call('CLIENT', 'KILL', 'TYPE', 'normal')
      await admin.call('CLIENT', 'KILL', 'TYPE', 'pubsub')
    }),
  },
  {
    name: 'SCRIPT FLUSH',
    targets: ['redis'],
    queues: redisOnly,
    plan: always(async ({ admin }) => { await admin.script('FLUSH') }),
  },
  {
    name: 'all connections cut',
    targets: ['network'],
    queues: redisOnly,
    plan: always(async ({ proxy }) => proxy.cutAll()),
  },
  {
    name: 'connections refused',
    targets: ['network'],
    queues: redisOnly,
    plan: (random) => forMs(random, 200, 3500, async ({ proxy }, ms) => {
      proxy.refuse()
      await delay(ms)
      proxy.heal()
    }),
  },
  {
    name: 'black hole',
    targets: ['network'],
    queues: redisOnly,
    plan: (random) => forMs(random, 200, 4000, async ({ proxy }, ms) => {
      proxy.blackHole()
      await delay(ms)
      proxy.heal()
    }),
  },
  {
    name: 'held back and released late',
    targets: ['network'],
    queues: redisOnly,
    plan: (random) => forMs(random, 1000, 4000, async ({ proxy }, ms) => {
      proxy.holdBack()
      await delay(ms)
      proxy.release()
    }),
  },
  {
    name: 'a reply lost',
    targets: ['network'],
    queues: redisOnly,
    plan: (random) => breakCommand(random, ({ proxy }, mark) => proxy.loseReplyTo(mark)),
  },
  {
    name: 'cut in a command',
    targets: ['network'],
    queues: redisOnly,
    plan: (random) => breakCommand(random, ({ proxy }, mark) => proxy.cutIn(mark)),
  },
  {
    name: 'SIGTERM of all, and started again',
    targets: ['all'],
    queues: both,
    plan: always(async (system) => {
      await system.stopProduct()
      await system.startProduct()
    }),
  },
  {
    name: 'kill -9 of the parent, and started again',
    targets: ['all'],
    queues: both,
    plan: always(async (system) => {
      await system.killParent()
      await system.startProduct()
    }),
  },
  {
    name: 'kill -9 of all, and started again',
    targets: ['all'],
    queues: both,
    plan: always(async (system) => {
      await system.killProduct()
      await system.startProduct()
    }),
  },
]

/** Single faults come first, so that what breaks under one is not blamed on two. */
const singleSteps = 5

/**
 * An endless schedule, the same for the same seed.
 * @param trimmed windows are so small that they are trimmed: then Redis alone keeps what was queued, and may lose
 * nothing
 */
export function * schedule (random: Random, queue: Queue, trimmed: boolean): Generator<Step> {
  const applicable = faults.filter(({ queues, losesData = false, trims = false, setsClock = false }) =>
    queues.includes(queue) && (trimmed ? !losesData : !trims) && (canSetClocks || !setsClock))
  let rest: Fault[] = []
  for (let step = 0; ; step++) {
    // Every kind comes once before any comes again.
    if (rest.length === 0) rest = random.shuffle(applicable)
    const [first, second] = rest
    if (first === undefined) return
    const together = step >= singleSteps && random.chance(0.45) && second !== undefined &&
      ![...first.targets, ...second.targets].includes('all') &&
        !first.targets.some((target) => second.targets.includes(target))
    const chosen = rest.splice(0, together ? 2 : 1)
    yield {
      pauseMs: random.int(200, 1200),
      offsetMs: random.int(0, 800),
      faults: chosen.map(({ name, plan }) => {
        const { details, run } = plan(random.fork())
        return { text: details === undefined ? name : `${name} (${details})`, run }
      }),
    }
  }
}
