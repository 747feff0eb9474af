// `npm run test:unit`: the workspaces' tests that need nothing besides npm and take seconds. `npm test` runs all.
import { defineConfig } from 'vitest/config'
import all from './vitest.config.ts'

/** Each starts programs of the system: Redis, a browser, a shell. */
const programs = [
  'apps/consumer/test/{binding,database-file,store}', 'apps/web/test/{docs,docs-page,spool}',
  'packages/queue/test/redis-queue', 'packages/runtime/test/log-output', 'plugins/tickets/test/{end-to-end,page}',
]

/** Each keeps a whole web worker, a queue or a database busy for seconds. */
const slow = [
  'apps/consumer/test/{consumer,key-counter,rejections}',
  'apps/web/test/{access,edge,fast-lane,fast-posts,flusher,increment,routing,standard-path,totals}',
  'packages/queue/test/embedded-queue', 'plugins/tickets/test/routes',
]

export default defineConfig({
  test: {
    ...all.test,
    include: ['{apps,packages,plugins}/*/test/**/*.test.ts', 'test/documents.test.ts'],
    exclude: [...programs, ...slow].map((path) => `${path}.test.ts`),
    globalSetup: [],
    reporters: ['dot'],
    isolate: false,
    // A test that starts one of those programs all the same fails: none is found.
    env: { PATH: '' },
  },
})
