// The environment: what it makes of the configuration, and what it says where something is wrong.
import { join, resolve } from 'node:path'
import { availableParallelism } from 'node:os'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { describeConfig, loadConfig, type Config } from '../src/config.ts'
import { FatalError } from '../src/errors.ts'
import { exitCode } from '../src/process/exit-codes.ts'
import { builtInPlugins } from '../src/plugin/names.ts'

function problemsOf (env: NodeJS.ProcessEnv, required: Record<string, string> = {}): FatalError {
  try {
    loadConfig(env, required)
  } catch (error) {
    if (error instanceof FatalError) return error
    throw error
  }
  throw new Error('there were none')
}

const defaults: Config = {
  host: '127.0.0.1',
  port: 3333,
  redisUrl: undefined,
  queueName: 'gearbox',
  databasePath: resolve('data/numbers.db'),
  unsentDir: resolve('data/unsent'),
  flushIntervalMs: 'auto',
  commitIntervalMs: 20,
  ack: 'queued',
  ackTimeoutMs: 5000,
  webWorkers: Math.max(1, availableParallelism() - 1),
  pendingKeysMax: 1_000_000,
  pendingBytesMax: 268_435_456,
  pendingRequestsMax: 100_000,
  unstoredBytesMax: 67_108_864,
  bodyBytesMax: 65_536,
  bodyPairsMax: 1000,
  connectionsMax: 15_000,
  fastLane: 'on',
  headersTimeoutMs: 5000,
  requestTimeoutMs: 10_000,
  keepAliveTimeoutMs: 72_000,
  drainMs: 0,
  idempotencyHours: 24,
  idempotencyRowsMax: 10_000_000,
  rejectedRowsMax: 100_000,
  rejectedBytesMax: 67_108_864,
  basePath: '',
  apiKeys: [],
  hostsAllowed: [],
  corsOrigins: [],
  public: [],
  trustProxy: false,
  totalsMaxAgeS: 0,
  metricsPort: undefined,
  logLevel: 'info',
  logTransport: undefined,
  statsIntervalMs: 10_000,
  plugins: builtInPlugins,
}

const variables = [
  'HOST', 'PORT', 'REDIS_URL', 'QUEUE_NAME', 'DATABASE_PATH', 'UNSENT_DIR', 'FLUSH_INTERVAL_MS', 'COMMIT_INTERVAL_MS',
  'ACK', 'ACK_TIMEOUT_MS', 'WEB_WORKERS',
  'PENDING_KEYS_MAX', 'PENDING_BYTES_MAX', 'PENDING_REQUESTS_MAX', 'UNSTORED_BYTES_MAX', 'BODY_BYTES_MAX',
  'BODY_PAIRS_MAX', 'CONNECTIONS_MAX', 'FAST_LANE', 'BASE_PATH', 'HEADERS_TIMEOUT_MS', 'REQUEST_TIMEOUT_MS',
  'KEEP_ALIVE_TIMEOUT_MS', 'DRAIN_MS',
  'IDEMPOTENCY_HOURS', 'IDEMPOTENCY_ROWS_MAX', 'REJECTED_ROWS_MAX', 'REJECTED_BYTES_MAX', 'API_KEYS', 'HOSTS_ALLOWED',
  'CORS_ORIGINS', 'PUBLIC', 'TRUST_PROXY', 'TOTALS_MAX_AGE_S',
  'METRICS_PORT', 'LOG_LEVEL', 'LOG_TRANSPORT', 'STATS_INTERVAL_MS', 'PLUGINS',
]

describe('an environment', () => {
  test('without any variable has a default for everything', () => {
    expect(loadConfig({})).toEqual(defaults)
  })

  test('with nothing but empty variables is one without any', () => {
    expect(loadConfig(Object.fromEntries(variables.map((name) => [name, ''])))).toEqual(defaults)
  })

  test('with variables of other programs is none of our business', () => {
    expect(loadConfig({ PATH: '/bin', PORT_: 'x', port: 'x', GEARBOX_PORT: 'x' })).toEqual(defaults)
  })

  test('sets everything', () => {
    expect(loadConfig({
      HOST: '::1',
      PORT: '0',
      REDIS_URL: 'rediss://user:secret@redis.example:6380/2',
      QUEUE_NAME: 'my-queue_1.x',
      DATABASE_PATH: '/var/lib/n.db',
      UNSENT_DIR: '/var/spool/unsent',
      FLUSH_INTERVAL_MS: '1000',
      COMMIT_INTERVAL_MS: '0',
      ACK: 'stored',
      ACK_TIMEOUT_MS: '30000',
      WEB_WORKERS: '4',
      PENDING_KEYS_MAX: '1',
      PENDING_BYTES_MAX: '1024',
      PENDING_REQUESTS_MAX: '2',
      UNSTORED_BYTES_MAX: '1024',
      BODY_BYTES_MAX: '3',
      BODY_PAIRS_MAX: '4',
      CONNECTIONS_MAX: '5',
      FAST_LANE: 'off',
      HEADERS_TIMEOUT_MS: '6',
      REQUEST_TIMEOUT_MS: '7',
      KEEP_ALIVE_TIMEOUT_MS: '8',
      DRAIN_MS: '9000',
      IDEMPOTENCY_HOURS: '9',
      IDEMPOTENCY_ROWS_MAX: '10',
      REJECTED_ROWS_MAX: '11',
      REJECTED_BYTES_MAX: '2048',
      BASE_PATH: '/a/b-c_d.e~f',
      API_KEYS: 'one, two/+=,count:three,read:a:b,admin:four,counts:five',
      HOSTS_ALLOWED: 'Counter.Example., bücher.example',
      CORS_ORIGINS: 'https://a.example,http://localhost:8080, https://*.b.example:8443, *',
      PUBLIC: 'live, tickets',
      TRUST_PROXY: '10.0.0.0/8, ::1, loopback',
      TOTALS_MAX_AGE_S: '12',
      METRICS_PORT: '9100',
      LOG_LEVEL: 'silent',
      LOG_TRANSPORT: import.meta.filename,
      STATS_INTERVAL_MS: '100',
      PLUGINS: 'tickets, ./mine.ts,@me/plugin',
    })).toEqual({
      host: '::1',
      port: 0,
      redisUrl: 'rediss://user:secret@redis.example:6380/2',
      queueName: 'my-queue_1.x',
      databasePath: '/var/lib/n.db',
      unsentDir: '/var/spool/unsent',
      flushIntervalMs: 1000,
      commitIntervalMs: 0,
      ack: 'stored',
      ackTimeoutMs: 30_000,
      webWorkers: 4,
      pendingKeysMax: 1,
      pendingBytesMax: 1024,
      pendingRequestsMax: 2,
      unstoredBytesMax: 1024,
      bodyBytesMax: 3,
      bodyPairsMax: 4,
      connectionsMax: 5,
      fastLane: 'off',
      headersTimeoutMs: 6,
      requestTimeoutMs: 7,
      keepAliveTimeoutMs: 8,
      drainMs: 9000,
      idempotencyHours: 9,
      idempotencyRowsMax: 10,
      rejectedRowsMax: 11,
      rejectedBytesMax: 2048,
      basePath: '/a/b-c_d.e~f',
      apiKeys: [
        { key: 'one', scopes: ['count', 'read'] },
        { key: 'two/+=', scopes: ['count', 'read'] },
        { key: 'three', scopes: ['count'] },
        { key: 'a:b', scopes: ['read'] },
        { key: 'four', scopes: ['admin'] },
        { key: 'counts:five', scopes: ['count', 'read'] },
      ],
      hostsAllowed: ['counter.example', 'xn--bcher-kva.example'],
      corsOrigins: ['https://a.example', 'http://localhost:8080', 'https://*.b.example:8443', '*'],
      public: ['live', 'tickets'],
      trustProxy: ['10.0.0.0/8', '::1', 'loopback'],
      totalsMaxAgeS: 12,
      metricsPort: 9100,
      logLevel: 'silent',
      logTransport: import.meta.filename,
      statsIntervalMs: 100,
      plugins: ['tickets', './mine.ts', '@me/plugin'],
    })
  })

  test('has a BASE_PATH without its final slash', () => {
    expect(loadConfig({ BASE_PATH: '/gearbox/' }).basePath).toBe('/gearbox')
    expect(loadConfig({ BASE_PATH: '/' }).basePath).toBe('')
  })

  test('has paths that are relative to the working directory, and unsent batches next to the database', () => {
    expect(loadConfig({ DATABASE_PATH: 'x/y.db' }))
      .toMatchObject({ databasePath: resolve('x/y.db'), unsentDir: join(resolve('x'), 'unsent') })
    expect(loadConfig({ UNSENT_DIR: 'z' }).unsentDir).toBe(resolve('z'))
  })
})

describe('a problem', () => {
  test('ends the program with exit code 78', () => {
    expect(problemsOf({ PORT: 'x' }).exitCode).toBe(78)
    expect(exitCode.config).toBe(78)
  })

  test.each<[name: string, ...values: string[]]>([
    ['PORT', '-1', '65536', '3.5', '1e3', '0x10', ' 3333', '3333 ', '+3333', '３３３３', 'http', '\n3333',
      '99999999999999999999', 'NaN', 'Infinity'],
    ['REDIS_URL', 'localhost:6379', 'http://localhost', 'redis', '://', 'redis//x', 'redis:localhost:6379',
      'redis:/localhost'],
    ['QUEUE_NAME', 'a b', 'a:b', '{a}', 'é', 'x'.repeat(65)],
    ['FLUSH_INTERVAL_MS', '0', '-1', 'AUTO', 'never', '60001', '1.5'],
    ['COMMIT_INTERVAL_MS', '-1', '60001'],
    ['ACK', 'Queued', 'sure', '__proto__', '1'],
    ['ACK_TIMEOUT_MS', '0', '30001'],
    ['WEB_WORKERS', '0', '-1', 'all'],
    ['PENDING_KEYS_MAX', '0'], ['PENDING_BYTES_MAX', '0'], ['PENDING_REQUESTS_MAX', '0'], ['UNSTORED_BYTES_MAX', '0'],
    ['BODY_BYTES_MAX', '0', '64K'], ['BODY_PAIRS_MAX', '0'], ['CONNECTIONS_MAX', '0'], ['FAST_LANE', 'yes'],
    ['HEADERS_TIMEOUT_MS', '0', '5s'], ['REQUEST_TIMEOUT_MS', '0'], ['KEEP_ALIVE_TIMEOUT_MS', '0'], ['DRAIN_MS', '-1',
      '3600001'], ['IDEMPOTENCY_HOURS', '0', '0.5'], ['IDEMPOTENCY_ROWS_MAX', '0'], ['REJECTED_ROWS_MAX', '0'],
    ['REJECTED_BYTES_MAX', '1023'],
    ['API_KEYS', ',', 'a,', ',a', 'a,,b', 'a b', 'é', ' ', 'count:', 'read:,a', 'admin:é'],
    ['HOSTS_ALLOWED', ',', 'a,', 'a b', '*.example.org', 'example.org:3333', 'example.org:', 'https://example.org',
      'example.org/', 'u@example.org', '[::1]:80'],
    ['BASE_PATH', 'gearbox', '/a//b', '/a b', '/a?b', '/a#b', '/%61', '/é', '/..', '/a/./b', '/a/..', '//', '/:key',
      '/*', 'http://example.org/a', `/${'x'.repeat(128)}`],
    ['CORS_ORIGINS', 'null', 'example.org', 'https://example.org/', 'https://example.org/x', 'https://a.example,',
      'HTTPS://EXAMPLE.ORG', 'https://user@a.example',
      'https://example.org:443', 'http://example.org:80', 'https://bücher.example', 'http://127.1', 'ftp://example.org',
      'wss://example.org', '*.example.org', 'https://*', 'https://*.', 'https://a.*.example.org',
      'https://*example.org', 'https://*.*.example.org', 'https://*.example.org/', 'https://*.127.0.0.1',
      'https://example.org?', 'https://example.org:'],
    ['PUBLIC', 'totals', 'live,', '*'],
    ['TRUST_PROXY', 'yes', '0', '101', '10.0.0.0/33', '::1/129', 'proxy.example.org', ',', '10.0.0.1,', '10.0.0/8'],
    ['TOTALS_MAX_AGE_S', '-1', '86401'],
    ['METRICS_PORT', 'x', '65536'], ['LOG_LEVEL', 'INFO', 'verbose', 'true'], ['STATS_INTERVAL_MS', '0', '-1'],
    ['LOG_TRANSPORT', './gone.ts', '/gone', 'no-such-transport', ' '],
    ['PLUGINS', ',', 'a,', 'a,,b', 'a,none', 'none,none'],
  ])('in %s is named', (name, ...values) => {
    for (const value of values) {
      const { message } = problemsOf({ [name]: value })
      expect(message).toContain(`\n  ${name} must be`)
      expect(message).toMatch(/^a problem in the environment/)
    }
  })

  test('in PLUGINS is a name that is there twice', () => {
    expect(problemsOf({ PLUGINS: 'a, b,a' }).message).toContain('\n  PLUGINS names "a" twice')
  })

  test('in one variable is named beside those in all others', () => {
    const env = { PORT: 'x', ACK: 'y', LOG_LEVEL: 'z', FLUSH_INTERVAL_MS: 'soon', API_KEYS: ',', REDIS_URL: 'nowhere' }
    const { message } = problemsOf(env)
    expect(message).toMatch(/^6 problems in the environment \(all variables: npm start -- --help\)\n/)
    for (const name of Object.keys(env)) expect(message).toMatch(new RegExp(`^  ${name} must be`, 'm'))
    expect(message.split('\n')).toHaveLength(7)
  })

  test('is a required variable that is unset or empty', () => {
    const required = { REDIS_URL: 'a consumer of its own takes from Redis' }
    for (const env of [{}, { REDIS_URL: '' }]) {
      expect(problemsOf({ ...env, PORT: 'x' }, required).message)
        .toMatch(/^2 problems.*REDIS_URL must be set: a consumer of its own takes from Redis/s)
    }
    expect(loadConfig({ REDIS_URL: 'redis://localhost' }, required).redisUrl).toBe('redis://localhost')
  })

  test.each([
    ['CORS_ORIGINS', 'https://example.org/', 'https://example.org'],
    ['CORS_ORIGINS', 'example.org', 'https://example.org'],
    ['CORS_ORIGINS', 'HTTPS://EXAMPLE.ORG', 'https://example.org'],
    ['CORS_ORIGINS', 'https://example.org:443', 'https://example.org'],
    ['CORS_ORIGINS', 'https://bücher.example', 'https://xn--bcher-kva.example'],
    ['CORS_ORIGINS', '*.example.org', 'https://*.example.org'],
    ['CORS_ORIGINS', 'https://*.Example.org/x', 'https://*.example.org'],
    ['HOSTS_ALLOWED', 'https://counter.example:8443/', 'counter.example'],
    ['HOSTS_ALLOWED', 'counter.example:80', 'counter.example'],
  ])('with %s=%s comes with the right form', (name, value, right) => {
    expect(problemsOf({ [name]: value }).message)
      .toMatch(new RegExp(`: (?:browsers send )?${right.replaceAll(/[.*]/g, '\\$&')}(?:,|$)`))
    expect(() => loadConfig({ [name]: right })).not.toThrow()
  })

  test('tells no secret', () => {
    const secret = 's3cret'
    for (const env of [
      { REDIS_URL: `http://user:${secret}@redis.example` }, { REDIS_URL: `redis://user:${secret}@redis example:port` },
      { REDIS_URL: `user:${secret}@redis.example:6379` },
      { API_KEYS: `${secret},` }, { API_KEYS: `${secret} ${secret}` }, { API_KEYS: `fine,${secret}é` },
      { API_KEYS: `count:${secret}é` }, { CORS_ORIGINS: `https://user:${secret}@a.example` },
      { API_KEYS: `${secret},`, REDIS_URL: secret, PORT: 'x' },
    ]) {
      const error = problemsOf(env)
      expect(String(error.stack)).not.toContain(secret)
      expect(JSON.stringify({ ...error, cause: error.cause })).not.toContain(secret)
    }
  })

  test('shows at most 64 characters of a value', () => {
    expect(problemsOf({ PORT: 'x'.repeat(10_000) }).message).toMatch(/not "x{64}…"/)
    expect(problemsOf({ QUEUE_NAME: `${'x'.repeat(63)}\n${'y'.repeat(100)}` }).message.split('\n')).toHaveLength(2)
  })
})

test('whole numbers are taken within their bounds and refused beyond, whichever they are', () => {
  const bounds: ReadonlyArray<readonly [variable: string, name: keyof Config, min: number, max: number]> = [
    ['PORT', 'port', 0, 65_535], ['ACK_TIMEOUT_MS', 'ackTimeoutMs', 1, 30_000], ['COMMIT_INTERVAL_MS',
      'commitIntervalMs', 0, 60_000], ['METRICS_PORT', 'metricsPort', 0, 65_535],
  ]
  fc.assert(fc.property(fc.constantFrom(...bounds), fc.integer({ min: -10, max: 100_000 }),
    fc.nat({ max: 3 }), ([variable, name, min, max], value, zeros) => {
      const env = { [variable]: value < 0 ? String(value) : `${'0'.repeat(zeros)}${value}` }
      if (value < min || value > max) {
        expect(problemsOf(env).message)
          .toContain(`${variable} must be a whole number from ${min} to ${max}`)
      } else expect(loadConfig(env)[name]).toBe(value)
    }))
})

test('--help lists every variable with its default', () => {
  const lines = describeConfig().split('\n')
  expect(lines.map((line) => line.trim().split(/ {2,}/)[0])).toEqual(variables)
  for (const line of lines) expect(line).toMatch(/^ {2}[A-Z_]+ {2,}\S.* {2,}\S/)
  const shown = new Map(lines.map((line) => line.trim().split(/ {2,}/)).map(([name, fallback]) => [name, fallback]))
  expect(shown.get('PORT')).toBe('3333')
  expect(shown.get('FLUSH_INTERVAL_MS')).toBe('auto')
  expect(shown.get('REDIS_URL')).toBe('unset')
  expect(shown.get('WEB_WORKERS')).toMatch(/cores/)
  expect(shown.get('UNSENT_DIR')).toMatch(/next to the database/)
})
