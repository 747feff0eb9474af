// What is wrong with a connection to Redis, as one line that says what to do about it. The messages of Redis, ioredis
// and the network are long, are meant for other readers, and can repeat what was sent: even a password.
import { QueueUnavailableError } from '../queue.ts'
import { scriptCommands } from './scripts.ts'

/** Characters of an unknown message that are shown. */
const shownMax = 100

const wrongLogin = 'the user or password in REDIS_URL is wrong, or that user is off; ' +
  'percent-encode everything but letters and digits in both'
const cluster = 'it is a node of a Redis Cluster, which Gearbox does not use; name a Redis without cluster mode'

/** By the code that begins Redis's error, or that is in the error of a script. */
const byCode: Readonly<Record<string, string>> = {
  NOAUTH: 'it wants a password; put it into REDIS_URL: redis://:PASSWORD@HOST',
  WRONGPASS: wrongLogin,
  READONLY: 'it is a replica, which takes no batches; REDIS_URL must name the primary',
  MASTERDOWN: 'it is a replica that has lost its primary; REDIS_URL must name the primary',
  LOADING: 'it is still loading its data; it can be used when it has',
  MISCONF: 'it can not write to its own disk (MISCONF); make room there, and see its log',
  OOM: 'its memory is full (maxmemory); it takes batches again when the consumer has stored some, or with more memory',
  NOREPLICAS: 'it has fewer replicas than its min-replicas-to-write',
  BUSY: "somebody's script keeps it busy; SCRIPT KILL ends that",
  DENIED: 'it is in protected mode: without a password it serves only its own machine; ' +
    'give it one (requirepass) and put it into REDIS_URL',
  NOPROTO: 'it speaks an older protocol; Redis 6.0 or newer is needed',
  MOVED: cluster,
  ASK: cluster,
  TRYAGAIN: cluster,
  CROSSSLOT: cluster,
  CLUSTERDOWN: cluster,
}

/** By what Redis says under its general code ERR. */
const byText: ReadonlyArray<readonly [pattern: RegExp, reason: string]> = [
  [/DB index is out of range/,
    'it has no database of the number in REDIS_URL (its setting "databases" says how many there are)'],
  [/max number of clients/, 'it has as many clients as it may (maxclients)'],
  [/invalid password|invalid username-password/, wrongLogin],
  [/without any password|no password is set/, 'it has no password, and REDIS_URL has one'],
  [/wrong number of arguments for 'auth'/, 'it knows no users; Redis 6.0 or newer is needed'],
]

/** By the code of an error of Node's sockets and TLS. */
const bySystemCode: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'nothing listens there (ECONNREFUSED): start Redis, or correct host and port in REDIS_URL',
  ENOENT: 'there is no such socket (ENOENT): start Redis, or name its "unixsocket" in REDIS_URL',
  EACCES: 'this user may not use it (EACCES): see the "unixsocketperm" of Redis',
  ENOTFOUND: 'there is no host of that name (ENOTFOUND): correct REDIS_URL',
  EAI_AGAIN: 'the name of the host can not be looked up now (EAI_AGAIN)',
  ETIMEDOUT: 'it can not be reached in time (ETIMEDOUT): check the address, and the firewalls on the way',
  EHOSTUNREACH: 'there is no way to that host (EHOSTUNREACH)',
  ENETUNREACH: 'there is no way to that network (ENETUNREACH)',
}

/** Said where no more is known. */
const closed = 'the connection was closed'
const notConnected = 'not connected'

/** The reason to show for a connection: the new one, unless that is only a consequence of the one before. */
export function betterReason (before: string | undefined, now: string): string {
  return now === closed || now === notConnected ? before ?? now : now
}

const notRedis = 'what answers there is not Redis: correct the port, or use rediss:// if it wants TLS'
const hangsUp = 'it closes connections at once: use rediss:// if the port wants TLS, or raise its maxclients'
const noTls = 'no TLS is spoken there: use redis://, or its port with TLS'
const certificate = (code: string): string =>
  `its certificate is not accepted (${code}); NODE_EXTRA_CA_CERTS names a file with your own authority, ` +
  'and REDIS_URL must have the name of the certificate'

/** Where the rights are documented. */
const rights = 'docs/redis.md lists the rights that Gearbox needs'

/** The command that ioredis adds to an error of Redis. */
interface FailedCommand { readonly name: string, readonly args: readonly unknown[] }

/** A connection at the moment of its error. */
export interface ConnectionState {
  /** Whether the connection uses TLS. */
  readonly tls: boolean
  /** Whether it was usable before. One that never was is more likely to be to the wrong port than cut. */
  readonly ready: boolean
}

/** The reason that a connection or command of ioredis failed, as one line without anything that could be a secret. */
export function explainRedisError (
  error: unknown, { tls, ready }: ConnectionState = { tls: false, ready: true }
): string {
  if (!(error instanceof Error)) return 'it failed'
  if (error instanceof QueueUnavailableError) return error.message
  if (!('code' in error) || typeof error.code !== 'string') return explainReply(error) ?? explainClient(error)
  const { code } = error
  if (ready && /^(ECONNRESET|EPIPE|ETIMEDOUT)$/.test(code)) return `the connection was lost (${code})`
  if (tls && /^(ETIMEDOUT|EPROTO|ECONNRESET|ERR_SSL_.*)$/.test(code)) return noTls
  if (/CERT|SELF_SIGNED|UNABLE_TO|^ERR_TLS/.test(code)) return certificate(code)
  if (code === 'ECONNRESET' || code === 'EPIPE') return hangsUp
  return Object.hasOwn(bySystemCode, code) ? bySystemCode[code]! : code
}

/** The reason of a connection that was closed without an error. */
export function explainClose ({ tls, ready }: ConnectionState): string {
  if (ready) return closed
  return tls ? noTls : hangsUp
}

/** What Redis itself answered; undefined where it is none of that. */
function explainReply (error: Error): string | undefined {
  const command = commandOf(error)
  if (command === undefined) return undefined
  const { message } = error
  if (/\bNOPERM\b|executing the script can't/.test(message)) return explainDenied(message, command)
  const code = /\b[A-Z]{3,}\b/.exec(message.replace(/^ERR /, ''))?.[0] ?? ''
  const known = Object.hasOwn(byCode, code) ? byCode[code] : byText.find(([pattern]) => pattern.test(message))?.[1]
  if (known !== undefined) return known
  // Whatever came with a login is not repeated, also where it is not understood.
  if (command.name === 'hello' || command.name === 'auth') return 'it refused the login'
  return /unknown command/i.test(message)
    ? `it does not know the command ${command.name.toUpperCase()}; ` +
      'Gearbox needs Redis 6.0 or newer, and its commands under their own names'
    : firstLine(message)
}

/** Its user lacks a right: which. */
function explainDenied (message: string, { name, args }: FailedCommand): string {
  if (/\bkeys?\b/.test(message)) return `its user may not use the keys ${namesOf(args)}; ${rights}`
  if (/\bchannels?\b/.test(message)) return `its user may not use the channels ${namesOf(args)}; ${rights}`
  const named = /run the '([^']+)' command/.exec(message)?.[1]?.replace('|', ' ')
  const inScript = name === 'eval' || name === 'evalsha' ? scriptCommands(String(args[0])) : []
  if (named === undefined && inScript.length > 0) {
    return `its user may not run all commands of a script (${inScript.join(', ')}); ${rights}`
  }
  return `its user may not run the command ${(named ?? name).toUpperCase()}; ${rights}`
}

/** `gearbox:*` for the keys and channels of queue gearbox; less exact if no argument names one of them. */
function namesOf (args: readonly unknown[]): string {
  for (const arg of args) {
    const [, queueName] = /^([A-Za-z0-9._-]{1,64}):\{\d+\}:/.exec(String(arg)) ?? []
    if (queueName !== undefined) return `${queueName}:*`
  }
  return 'of its queue'
}

/** ioredis's own errors: they explain its options, where a reader of the log wants to know what happened. */
function explainClient ({ name, message }: Error): string {
  if (/RESP type|[Pp]rotocol error/.test(message) || name === 'ParserError') return notRedis
  if (name === 'MaxRetriesPerRequestError' || name === 'AbortError') return 'the connection was lost'
  if (/^Connection is closed/.test(message)) return closed
  if (/^Stream isn't writeable/.test(message)) return notConnected
  if (/^Socket timeout|^Command timed out/.test(message)) return 'it does not answer in time'
  return firstLine(message)
}

function commandOf (error: Error): FailedCommand | undefined {
  if (!('command' in error) || typeof error.command !== 'object' || error.command === null) return undefined
  const { command } = error
  if (!('name' in command) || typeof command.name !== 'string') return undefined
  // A command that was never answered has it too.
  if (error.name !== 'ReplyError') return undefined
  return { name: command.name, args: 'args' in command && Array.isArray(command.args) ? command.args : [] }
}

function firstLine (text: string): string {
  const line = text.split(/[\r\n]/, 1)[0]!.replaceAll(/\p{Cc}/gu, ' ')
  return line.length > shownMax ? `${line.slice(0, shownMax)}…` : line
}
