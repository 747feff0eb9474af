// The environment, read once. Every variable is a row here, with its default, its unit and its meaning;
// everything else gets the finished Config and never looks at process.env.
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { ackLevels } from '@gearbox/protocol/ack-levels.ts'
import { parseApiKey } from './access/api-keys.ts'
import { parseHost } from './access/hosts.ts'
import { parseOrigin } from './access/origins.ts'
import { parseTrustProxy } from './access/trust-proxy.ts'
import { parseTransport } from './log/transport.ts'
import { builtInPlugins, parsePlugins } from './plugin/names.ts'
import { parseRedisUrl } from './redis-url.ts'
import {
  describeSettings, parseSettings, refuseProblems, variableName, type Read, type ValuesOf,
} from './settings/schema.ts'
import { integer, list, oneOf, optional, path, printable, quote } from './settings/setting.ts'

const secondMs = 1000
const hourMs = 3600 * secondMs
const mebibyte = 1024 * 1024

/** What PUBLIC can list. */
export const publicParts = ['badges', 'live', 'tickets'] as const

/** A part of the service whose routes can answer without an API key. */
export type PublicPart = typeof publicParts[number]

/** A bound only against slips of the keyboard. */
const memoryBytes = [1024, 2 ** 40] as const

const flushInterval = integer({ fallback: 1, range: [1, 60 * secondMs], about: '' })

/** The settings of everything but plugins, in the order of --help. */
export const coreSettings = {
  host: {
    fallback: '127.0.0.1',
    about: 'address the web workers listen on',
    printable: true,
    parse: (text: string) => text,
  },
  port: integer({ fallback: 3333, range: [0, 65_535], about: 'port the web workers listen on (0: any free one)' }),
  redisUrl: optional({
    fallback: undefined,
    about: 'redis://[user:password@]host[:port][/db], rediss:// for TLS, redis:///path for a socket; ' +
      'unset: the embedded queue',
    parse: parseUrl,
  }),
  queueName: {
    fallback: 'gearbox', about: 'first part of every key in Redis', printable: true, parse: parseQueueName,
  },
  databasePath: path('./data/numbers.db', 'the SQLite database'),
  unsentDir: optional(
    path('', 'where a stopping worker leaves batches that it could not push'), 'unsent/ next to the database'),
  flushIntervalMs: {
    fallback: 'auto',
    unit: 'ms',
    about: 'between flushes; auto: as soon as the one before is acknowledged',
    printable: true,
    parse: (text: string): number | 'auto' => text === 'auto' ? 'auto' : flushInterval.parse(text),
  },
  commitIntervalMs: integer({
    fallback: 20, range: [0, 60 * secondMs], unit: 'ms', about: 'from one commit to the next, at least',
  }),
  ack: oneOf('queued', ackLevels, 'ack level of a request that names none'),
  ackTimeoutMs: integer({
    fallback: 5000,
    range: [1, 30 * secondMs],
    unit: 'ms',
    about: 'a reply waits for its ack level before it becomes a 202',
  }),
  // At most 256, against slips of the keyboard: more processes than cores serve nothing.
  webWorkers: integer({
    fallback: Math.max(1, availableParallelism() - 1),
    range: [1, 256],
    shown: 'cores - 1, at least 1',
    about: 'web processes under npm start',
  }),
  pendingKeysMax: integer({
    fallback: 1_000_000, range: [1, 100_000_000], about: 'distinct keys waiting in one worker',
  }),
  pendingBytesMax: integer({
    fallback: 256 * mebibyte,
    range: memoryBytes,
    unit: 'bytes',
    about: 'of keys and unsummed requests waiting in one worker',
  }),
  pendingRequestsMax: integer({ fallback: 100_000, range: [1, 10_000_000], about: 'replies held in one worker' }),
  unstoredBytesMax: integer({
    fallback: 64 * mebibyte,
    range: memoryBytes,
    unit: 'bytes',
    about: 'of pushed batches one worker keeps until they are stored',
  }),
  bodyBytesMax: integer({
    fallback: 65_536, range: [1, 64 * mebibyte], unit: 'bytes', about: 'of one request body',
  }),
  bodyPairsMax: integer({ fallback: 1000, range: [1, 1_000_000], about: 'pairs in one request body' }),
  connectionsMax: integer({ fallback: 15_000, range: [1, 1_000_000], about: 'connections to one worker' }),
  fastLane: oneOf('on', ['on', 'off'], 'whether plain requests bypass Node\'s HTTP parser'),
  basePath: {
    fallback: '',
    shown: 'unset',
    about: 'path before all others (/gearbox: POST /gearbox/increment), for a proxy that passes on a part of a site',
    printable: true,
    parse: parseBasePath,
  },
  headersTimeoutMs: integer({
    fallback: 5000, range: [1, hourMs], unit: 'ms', about: 'a client may take for its headers',
  }),
  requestTimeoutMs: integer({
    fallback: 10_000, range: [1, hourMs], unit: 'ms', about: 'a client may take for a whole request',
  }),
  keepAliveTimeoutMs: integer({
    fallback: 72_000, range: [1, hourMs], unit: 'ms', about: 'an idle connection stays open',
  }),
  drainMs: integer({
    fallback: 0,
    range: [0, hourMs],
    unit: 'ms',
    about: 'that /readyz is 503 before a stop begins, while all else goes on',
  }),
  idempotencyHours: integer({
    fallback: 24, range: [1, 24 * 365], unit: 'hours', about: 'within which an Idempotency-Key counts once',
  }),
  idempotencyRowsMax: integer({
    fallback: 10_000_000, range: [1, 1_000_000_000], about: 'Idempotency-Keys remembered at most',
  }),
  rejectedRowsMax: integer({
    fallback: 100_000,
    range: [1, 100_000_000],
    about: 'rows of promised entries that could not be applied (npm run rejected)',
  }),
  rejectedBytesMax: integer({ fallback: 64 * mebibyte, range: memoryBytes, unit: 'bytes', about: 'of the same' }),
  apiKeys: list(
    'comma-separated keys; set: requests need Authorization: Bearer; count:KEY, read:KEY, admin:KEY say what for',
    parseApiKey),
  hostsAllowed: printable(list(
    'comma-separated names under which this answers (*: any) where API_KEYS is unset', parseHost)),
  corsOrigins: printable(list(
    'comma-separated origins whose pages may count and read (https://example.org, https://*.example.org, *)',
    parseOrigin)),
  public: printable(list(
    `comma-separated parts that answer without an API key (${publicParts.join(', ')})`,
    (text) => oneOf(publicParts[0], publicParts, '').parse(text))),
  trustProxy: {
    fallback: 'false',
    about: 'whose X-Forwarded-For plugins believe (true, false, a number of proxies, addresses and ranges)',
    printable: true,
    parse: parseTrustProxy,
  },
  totalsMaxAgeS: integer({
    fallback: 0, range: [0, 24 * 3600], unit: 's', about: 'that a cache may answer for totals without asking',
  }),
  metricsPort: optional(integer({
    fallback: 0,
    range: [0, 65_535],
    about: 'port with /metrics of this process alone; under npm start of all of them',
  })),
  logLevel: oneOf(
    'info', ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'], 'least level that is logged'),
  logTransport: optional({
    fallback: undefined,
    about: 'pino transport (package, or ./NAME.ts) that receives the log instead of standard output',
    printable: true,
    parse: parseTransport,
  }),
  statsIntervalMs: integer({
    fallback: 10_000, range: [100, 24 * hourMs], unit: 'ms', about: 'between two lines of metrics in the log',
  }),
  plugins: {
    fallback: builtInPlugins.length === 0 ? 'none' : builtInPlugins.join(','),
    // Another plugin in the list changes no document.
    shown: 'all that are built in',
    about: 'comma-separated plugins: names of built-in ones, paths (./mine.ts), packages; none',
    printable: true,
    parse: parsePlugins,
  },
} as const

type CoreValues = ValuesOf<typeof coreSettings>

/** Every setting, parsed and within its bounds. Times are milliseconds, sizes bytes, paths absolute. */
export type Config = Omit<CoreValues, 'unsentDir'> & { readonly unsentDir: string }

/** The names of all settings, in their order. */
export const allSettings = Object.keys(coreSettings) as ReadonlyArray<keyof Config>

/** The names of all variables, in their order. */
export const variables: readonly string[] = allSettings.map(variableName)

/**
 * Reads the environment. An empty variable counts as unset.
 * @param required variables that must be set, each with the reason
 * @throws FatalError (exit code 78) that names every problem at once
 */
export function loadConfig (env: NodeJS.ProcessEnv, required: Required = {}): Config {
  const { values, problems } = parseConfig(env, required)
  refuseProblems(problems)
  return finishConfig(values)
}

/** Variables that must be set, each with the reason. */
export type Required = { readonly [variable: string]: string }

/** The first step of `loadConfig`, for those who have more problems to name. */
export function parseConfig (env: NodeJS.ProcessEnv, required: Required): Read<CoreValues> {
  return parseSettings(coreSettings, env, { required, check: checkTimeouts })
}

/** Its last step. @param values what `parseConfig` returned without a problem */
export function finishConfig (values: Partial<CoreValues>): Config {
  const all = values as CoreValues
  return { ...all, unsentDir: all.unsentDir ?? join(dirname(all.databasePath), 'unsent') }
}

/** The table of variables for --help. @param listed the settings that it shows */
export function describeConfig (listed: ReadonlyArray<keyof Config> = allSettings): string {
  return describeSettings(coreSettings, listed)
}

function checkTimeouts ({ headersTimeoutMs = 0, requestTimeoutMs = Infinity }: Partial<CoreValues>): string[] {
  if (headersTimeoutMs <= requestTimeoutMs) return []
  return [`HEADERS_TIMEOUT_MS (${headersTimeoutMs}) must not be above REQUEST_TIMEOUT_MS (${requestTimeoutMs}): ` +
    'headers are a part of the request']
}

/** REDIS_URL as it is, once it is known to be one. */
function parseUrl (text: string): string {
  parseRedisUrl(text)
  return text
}

function parseQueueName (text: string): string {
  if (/^[A-Za-z0-9._-]{1,64}$/.test(text)) return text
  throw new Error(`must be 1 to 64 letters, digits, dots, dashes or underscores, not ${quote(text)}`)
}

/** A path without its final slash; "/" is none. */
function parseBasePath (text: string): string {
  const path = text.replace(/\/$/, '')
  if (path === '' || /^(?=.{1,128}$)(?:\/(?!\.\.?(?:\/|$))[A-Za-z0-9._~-]+)+$/.test(path)) return path
  throw new Error(`must be a path such as /gearbox, of at most 128 letters, digits and ._~-, not ${quote(text)}`)
}
