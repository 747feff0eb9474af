// The rooms of the house, and which way the arrows run: what is listed may import what is listed after it.
// Rooms in one inner list are neighbours, which do not import each other.

/**
 * Workspaces of the product. The root's is bin/. No code imports a plugin: PLUGINS says which are loaded; and a plugin
 * imports the seam alone.
 */
export const house = [
  '', ['apps/web', 'apps/consumer', 'plugins/*'], 'packages/queue', 'packages/runtime', 'packages/protocol',
]

/** What plugins may import of other workspaces. */
export const seam = /^packages\/(?:runtime\/src\/plugin\/plugin\.ts$|protocol\/)/

/** Within a workspace, each file and folder of its source. */
export const rooms = {
  'apps/web': [
    'main.ts', ['server.ts', 'metrics.ts', 'save-spool.ts'], ['fast-lane', 'plugins', 'submit', 'totals'], 'increment',
    'http', 'deliver', 'accumulate',
  ],
  'apps/consumer': [
    'main.ts', ['lifetime.ts', 'metrics.ts', 'opening.ts', 'stop-advice.ts'], ['commands', 'consumer.ts'],
    'housekeeping.ts',
    ['commit-log.ts', 'consumer-lock.ts', 'next-run.ts', 'ownership.ts', 'progress.ts', 'trouble.ts'],
    'pending-results.ts', 'store',
  ],
}
