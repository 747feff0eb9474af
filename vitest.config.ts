import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: [
      'test/**/*.test.ts', '{apps,packages,plugins}/*/test/**/*.test.ts', '{bench,vegeta}/test/**/*.test.ts',
    ],
    globalSetup: ['packages/test-kit/src/requirements.ts'],
    // Every file has processes and sockets of its own; more at once than this only slows each other down.
    maxWorkers: 2,
    testTimeout: 30_000,
    hookTimeout: 30_000,
    reporters: ['dot', ['json', { outputFile: '.tmp/test-results.json' }]],
  },
})
