// The environment, read once. Every variable stands here with its default, its unit and its meaning;
// everything else gets the finished Config and never looks at process.env.
import { availableParallelism } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { parseApiKey, type ApiKey } from './access/api-keys.ts'
import { FatalError } from './errors.ts'
import { parseHost } from './access/hosts.ts'
import { parseOrigin } from './access/origins.ts'
import { exitCode } from './process/exit-codes.ts'
import { parseRedisUrl } from './redis-url.ts'

interface Setting<T> {
  /** What stands in for an unset variable, written as a user would; undefined: nothing does. */
  readonly fallback: string | undefined
  /** How --help shows the default, where the text itself says too little. */
  readonly shown?: string
  readonly about: string
  /** @throws Error whose message completes "NAME …" */
  readonly parse: (text: string) => T
}

const secondsMs = 1000
const hourMs = 3600 * secondsMs

function integer (fallback: number, min: number, max: number, about: string, shown?: string): Setting<number> {
  const parse = (text: string): number => {
    const value = Number(text)
    if (!/^[0-9]+$/.test(text) || value < min || value > max) {
      throw new Error(`must be a whole number from ${min} to ${max}, not ${quote(text)}`)
    }
    return value
  }
  return { fallback: String(fallback), about, parse, ...(shown === undefined ? {} : { shown }) }
}

function oneOf<T extends string> (fallback: T, words: readonly T[], about: string): Setting<T> {
  const parse = (text: string): T => {
    const word = words.find((candidate) => candidate === text)
    if (word === undefined) throw new Error(`must be one of ${words.join(', ')}, not ${quote(text)}`)
    return word
  }
  return { fallback, about: `${about} (${words.join(', ')})`, parse }
}

function optional<T> (setting: Setting<T>, shown = 'unset'): Setting<T | undefined> {
  return { ...setting, fallback: undefined, shown }
}

function path (fallback: string, about: string): Setting<string> {
  return { fallback, about, parse: (text) => resolve(text) }
}

function list<T> (about: string, item: (text: string) => T): Setting<readonly T[]> {
  const parse = (text: string): readonly T[] => text.split(',').map((part) => item(part.trim()))
  return { fallback: undefined, shown: 'unset', about, parse }
}

/** A path without its final slash; "/" is none. */
function parseBasePath (text: string): string {
  const path = text.replace(/\/$/, '')
  if (path === '' || /^(?=.{1,128}$)(?:\/(?!\.\.?(?:\/|$))[A-Za-z0-9._~-]+)+$/.test(path)) return path
  throw new Error(`must be a path such as /gearbox, of at most 128 letters, digits and ._~-, not ${quote(text)}`)
}

function quote (text: string): string {
  return JSON.stringify(text.length > 64 ? `${text.slice(0, 64)}…` : text)
}

export const ackLevels = ['memory', 'queued', 'stored'] as const
export type AckLevel = typeof ackLevels[number]

const settings = {
  host: { fallback: '127.0.0.1', about: 'address the web workers listen on', parse: (text: string) => text },
  port: integer(3333, 0, 65535, 'port the web workers listen on (0: any free one)'),
  redisUrl: optional({
    fallback: undefined,
    about: 'redis://[user:password@]host[:port][/db], rediss:// for TLS, redis:///path for a socket; unset: the embedded queue',
    parse: (text: string) => {
      parseRedisUrl(text)
      return text
    },
  }),
  queueName: {
    fallback: 'gearbox',
    about: 'first part of every key in Redis',
    parse: (text: string) => {
      if (!/^[A-Za-z0-9._-]{1,64}$/.test(text)) throw new Error(`must be 1 to 64 letters, digits, dots, dashes or underscores, not ${quote(text)}`)
      return text
    },
  },
  databasePath: path('./data/numbers.db', 'the SQLite database'),
  unsentDir: optional(path('', 'where a stopping worker leaves batches that it could not push'), 'unsent/ beside the database'),
  flushIntervalMs: {
    fallback: 'auto',
    about: 'ms between flushes; auto: as soon as the one before is acknowledged',
    parse: (text: string): number | 'auto' => text === 'auto' ? 'auto' : integer(0, 1, 60 * secondsMs, '').parse(text),
  },
  commitIntervalMs: integer(20, 0, 60 * secondsMs, 'ms from one commit to the next, at least'),
  ack: oneOf('queued', ackLevels, 'ack level of a request that names none'),
  ackTimeoutMs: integer(5000, 1, 30 * secondsMs, 'ms a reply waits for its ack level before it becomes a 202'),
  // An upper bound only against slips of the keyboard: a process a core is the most that serves anything.
  webWorkers: integer(Math.max(1, availableParallelism() - 1), 1, 256, 'web processes under npm start', 'cores - 1, at least 1'),
  pendingKeysMax: integer(1_000_000, 1, 100_000_000, 'distinct keys waiting in one worker'),
  pendingBytesMax: integer(268_435_456, 1024, 2 ** 40, 'bytes of keys and unsummed requests waiting in one worker'),
  pendingRequestsMax: integer(100_000, 1, 10_000_000, 'replies held in one worker'),
  unstoredBytesMax: integer(67_108_864, 1024, 2 ** 40, 'bytes of pushed batches one worker keeps until they are stored'),
  bodyBytesMax: integer(65_536, 1, 2 ** 26, 'bytes of one request body'),
  bodyPairsMax: integer(1000, 1, 1_000_000, 'pairs in one request body'),
  connectionsMax: integer(15_000, 1, 1_000_000, 'connections to one worker'),
  fastLane: oneOf('on', ['on', 'off'], 'whether plain increments bypass Node\'s HTTP parser'),
  basePath: optional({
    fallback: undefined,
    about: 'path before all others (/gearbox: POST /gearbox/increment), for a proxy that passes on a part of a site',
    parse: parseBasePath,
  }),
  headersTimeoutMs: integer(5000, 1, hourMs, 'ms a client may take for its headers'),
  requestTimeoutMs: integer(10_000, 1, hourMs, 'ms a client may take for a whole request'),
  keepAliveTimeoutMs: integer(72_000, 1, hourMs, 'ms an idle connection stays open'),
  drainMs: integer(0, 0, hourMs, 'ms that /readyz is 503 before a stop begins, while all else goes on'),
  idempotencyHours: integer(24, 1, 24 * 365, 'hours within which an Idempotency-Key counts once'),
  idempotencyRowsMax: integer(10_000_000, 1, 1_000_000_000, 'Idempotency-Keys remembered at most'),
  rejectedRowsMax: integer(100_000, 1, 100_000_000, 'rows of promised entries that could not be applied (npm run rejected)'),
  rejectedBytesMax: integer(67_108_864, 1024, 2 ** 40, 'bytes of the same'),
  apiKeys: list(
    'comma-separated keys; set: requests need Authorization: Bearer; count:KEY, read:KEY, admin:KEY say what for',
    parseApiKey
  ),
  hostsAllowed: list('comma-separated names under which this answers (*: any) where API_KEYS is unset', parseHost),
  corsOrigins: list(
    'comma-separated origins whose pages may count and read (https://example.org, https://*.example.org, *)',
    parseOrigin
  ),
  metricsPort: optional(integer(0, 0, 65535, 'port with /metrics of this process alone; under npm start of all of them')),
  logLevel: oneOf('info', ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'], 'least level that is logged'),
  statsIntervalMs: integer(10_000, 100, 24 * hourMs, 'ms between two lines of figures in the log'),
} as const satisfies Record<string, Setting<unknown>>

type Values = { readonly [K in keyof typeof settings]: (typeof settings)[K] extends Setting<infer T> ? T : never }

/** Every setting, parsed and within its bounds. Times are milliseconds, sizes bytes, paths absolute. */
export type Config = Omit<Values, 'unsentDir' | 'basePath' | 'apiKeys' | 'hostsAllowed' | 'corsOrigins'> & {
  readonly unsentDir: string
  /** Without a final slash; '' is none. */
  readonly basePath: string
  readonly apiKeys: readonly ApiKey[]
  readonly hostsAllowed: readonly string[]
  readonly corsOrigins: readonly string[]
}

/** `flushIntervalMs` → `FLUSH_INTERVAL_MS` */
function variableName (name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter}`).toUpperCase()
}

/**
 * Reads the environment. An empty variable counts as unset.
 * @param required names that must be set, with the reason
 * @throws FatalError (exit code 78) that names every problem at once
 */
export function loadConfig (env: NodeJS.ProcessEnv, required: { readonly [name: string]: string } = {}): Config {
  const problems: string[] = []
  const values: Record<string, unknown> = {}
  for (const [name, setting] of Object.entries<Setting<unknown>>(settings)) {
    const variable = variableName(name)
    const text = env[variable] === '' ? undefined : env[variable]
    if (text === undefined && required[variable] !== undefined) problems.push(`${variable} must be set: ${required[variable]}`)
    const written = text ?? setting.fallback
    try {
      values[name] = written === undefined ? undefined : setting.parse(written)
    } catch (error) {
      problems.push(`${variable} ${error instanceof Error ? error.message : String(error)}`)
    }
  }
  if (Number(values.headersTimeoutMs) > Number(values.requestTimeoutMs)) {
    problems.push(`HEADERS_TIMEOUT_MS (${String(values.headersTimeoutMs)}) must not be above REQUEST_TIMEOUT_MS (${String(values.requestTimeoutMs)}): headers are a part of the request`)
  }
  if (problems.length > 0) {
    throw new FatalError(`${problems.length === 1 ? 'a problem' : `${problems.length} problems`} in the environment (all variables: npm start -- --help)\n  ${problems.join('\n  ')}`, exitCode.config)
  }
  const parsed = values as Values
  return {
    ...parsed,
    unsentDir: parsed.unsentDir ?? join(dirname(parsed.databasePath), 'unsent'),
    basePath: parsed.basePath ?? '',
    apiKeys: parsed.apiKeys ?? [],
    hostsAllowed: parsed.hostsAllowed ?? [],
    corsOrigins: parsed.corsOrigins ?? [],
  }
}

/** The names of all variables, in their order. */
export const variables: readonly string[] = Object.keys(settings).map(variableName)

/** The names of all settings, in their order. */
export const allSettings = Object.keys(settings) as ReadonlyArray<keyof Config>

/** The table of variables for --help. @param listed the settings that it shows; their order is that of all settings */
export function describeConfig (listed: ReadonlyArray<keyof Config> = allSettings): string {
  const rows = Object.entries<Setting<unknown>>(settings)
    .filter(([name]) => listed.some((one) => one === name))
    .map(([name, setting]) => [variableName(name), setting.shown ?? setting.fallback ?? 'unset', setting.about] as const)
  const width = (column: 0 | 1): number => Math.max(...rows.map((row) => row[column].length))
  const [names, defaults] = [width(0), width(1)]
  return rows.map(([name, fallback, about]) => `  ${name.padEnd(names)}  ${fallback.padEnd(defaults)}  ${about}`).join('\n')
}
