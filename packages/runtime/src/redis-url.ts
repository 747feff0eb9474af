// REDIS_URL, read strictly: what a URL parser would quietly take for a host, a database or an option is refused here,
// because most often it is the rest of a password that was not percent-encoded. No message repeats any of it.

/** Where a Redis is, and as whom to connect to it. */
export interface RedisAddress {
  /** Undefined: the Unix socket `path`. */
  readonly host: string | undefined
  readonly port: number
  readonly path: string | undefined
  readonly tls: boolean
  readonly username: string | undefined
  readonly password: string | undefined
  readonly db: number
  /** 4 or 6: only such addresses of the host; 0: any. */
  readonly family: number
  /** The URL without user and password, for messages. */
  readonly shown: string
}

const standardPort = 6379

/** The most databases that a Redis can be told to have. */
const dbMax = 2 ** 31 - 1

const form = 'redis://[user:password@]host[:port][/db], rediss:// for TLS, or redis:///path for a Unix socket'

const encode = 'in a user or password, percent-encode everything but letters and digits ' +
  '(/ is %2F, @ is %40, # is %23, % is %25)'

/** Reads REDIS_URL. @throws Error whose message completes "REDIS_URL …" and repeats nothing of the URL */
export function parseRedisUrl (text: string): RedisAddress {
  const [, scheme, authority = '', rest = ''] = /^(rediss?):\/\/([^/?#]*)([^]*)$/i.exec(text) ?? []
  if (scheme === undefined) throw new Error('must be a URL that starts with redis:// or rediss://')
  if (/[\s\p{Cc}\\]/u.test(text)) {
    throw new Error('must have no spaces, line ends or backslashes; percent-encode them in a user or password')
  }
  const tls = scheme.toLowerCase() === 'rediss'
  const at = authority.lastIndexOf('@')
  const { username, password } = parseUser(at === -1 ? undefined : authority.slice(0, at))
  const host = authority.slice(at + 1)
  const { path, family, db = 0 } = parseRest(rest, host === '')
  const login = { username, password }
  if (path !== undefined) {
    if (tls) throw new Error('must start with redis:// for a Unix socket, which has no TLS')
    const shown = `redis://${path}${db === 0 ? '' : `?db=${db}`}`
    return { host: undefined, port: 0, path, tls, ...login, db, family, shown }
  }
  if (host === '') throw new Error(`must name a host: ${form}`)
  const { hostname, port } = parseHost(host)
  const shown = `${scheme.toLowerCase()}://${host.toLowerCase()}${db === 0 ? '' : `/${db}`}`
  return { host: hostname, port, path: undefined, tls, ...login, db, family, shown }
}

function parseUser (text: string | undefined): { username: string | undefined, password: string | undefined } {
  if (text === undefined) return { username: undefined, password: undefined }
  const colon = text.indexOf(':')
  if (colon === -1) {
    throw new Error(`must have a colon before the password, also without a user: redis://:password@host; ${encode}`)
  }
  try {
    const [username, password] = [decodeURIComponent(text.slice(0, colon)), decodeURIComponent(text.slice(colon + 1))]
    return { username: username === '' ? undefined : username, password: password === '' ? undefined : password }
  } catch {
    throw new Error(`must be percent-encoded: ${encode}`)
  }
}

/** Name or address and port. */
function parseHost (text: string): { hostname: string, port: number } {
  const url = URL.canParse(`redis://${text}`) ? new URL(`redis://${text}`) : undefined
  if (url === undefined || !/^[\w.-]+$|^\[[\da-f:.]+\]$/i.test(url.hostname) || url.port === '0') {
    throw new Error(`must have a host name or address, and a port from 1 to 65535 if any: ${form}; ${encode}`)
  }
  return { hostname: url.hostname.replace(/^\[|\]$/g, ''), port: url.port === '' ? standardPort : Number(url.port) }
}

interface Rest {
  readonly path: string | undefined
  readonly db: number | undefined
  readonly family: number
}

/** What follows the host: the database, or without a host a socket's path; then perhaps ?db= and ?family=. */
function parseRest (text: string, hostless: boolean): Rest {
  const refused = (): Error => new Error(
    `must be ${form}; what comes after the host is neither a database's number nor ?db= or ?family=; ${encode}`)
  // The @ after a password: that had a / in it.
  if (text.includes('@')) throw refused()
  const [, path = '', query] = /^([^?#]*)(?:\?([^#]*))?$/.exec(text) ?? [undefined, '/#']
  const socket = hostless && path.length > 1 && !/^\/\d+$/.test(path)
  if (!socket && !/^(\/\d*)?$/.test(path)) throw refused()
  const options = new URLSearchParams(query)
  for (const [name, value] of options) {
    const known = name === 'db' || name === 'family'
    if (!known || options.getAll(name).length > 1 || !/^\d{1,10}$/.test(value)) throw refused()
  }
  const family = Number(options.get('family') ?? '0')
  const inPath = !socket && path.length > 1
  const number = options.get('db') ?? (inPath ? path.slice(1) : undefined)
  const db = number === undefined ? undefined : Number(number)
  if (![0, 4, 6].includes(family) || (db !== undefined && db > dbMax) || (inPath && options.has('db'))) throw refused()
  try {
    return { path: socket ? decodeURIComponent(path) : undefined, db, family }
  } catch {
    throw refused()
  }
}
