// HOSTS_ALLOWED: the names under which this service answers. The owner of a web page can point the page's own name to
// this machine's address (DNS rebinding). To a browser the page then is the same site as this service, and may count
// and read. Only the Host shows it: over plain HTTP browsers send nothing else that would. No page can choose an
// address, localhost or a name of this machine, so those are fine.
import { readFileSync } from 'node:fs'
import { isIPv4, isIPv6 } from 'node:net'
import { hostname } from 'node:os'
import { echo } from '../http/echo.ts'
import { RequestError } from '../http/errors.ts'

/** The parts of a request that name the host it is for. */
export interface Addressed {
  /** The request's target: a path, or a whole URL, which then wins over the Host header. */
  readonly url?: string | undefined
  readonly host: string | undefined
}

/**
 * One entry of HOSTS_ALLOWED: a name, or `*`.
 * @returns the entry as browsers send it
 * @throws Error that suggests the right form
 */
export function parseHost (text: string): string {
  if (text === '*') return text
  const address = isIPv6(text) ? `[${text}]` : text
  const url = /^[a-z][a-z0-9+.-]*:\/\//i.test(address) ? address : `http://${address}`
  const name = URL.canParse(url) ? nameOf(new URL(url).hostname) : undefined
  if (name === undefined) {
    const form = 'comma-separated host names such as counter.example.org, or * for any'
    throw new Error(`must be ${form}, not ${echo(text)}`)
  }
  if (/[/?#@\\]|:\d*$/.test(address)) {
    throw new Error(`must be names without scheme, port or path: ${name}, not ${echo(text)}`)
  }
  return name
}

/** The settings that say which hosts are allowed. */
export interface HostSettings {
  readonly host: string
  readonly hostsAllowed: readonly string[]
  readonly apiKeys: readonly unknown[]
}

/** The names under which one process answers. */
export class Hosts {
  readonly #any: boolean
  readonly #names: ReadonlySet<string>
  readonly #listed: ReadonlySet<string>

  /** With API keys every host is allowed: a page that reaches this service under its own name has none of them. */
  constructor (
    { host, hostsAllowed, apiKeys }: HostSettings,
    names: readonly string[] = machineNames(hostname(), readHostsFile())
  ) {
    this.#any = apiKeys.length > 0 || hostsAllowed.includes('*')
    this.#listed = new Set(hostsAllowed)
    this.#names = new Set(['localhost', host.toLowerCase(), ...names, ...hostsAllowed])
  }

  /** Whether requests with this Host header, which may have a port, are answered. */
  allows (host: string): boolean {
    if (this.#any) return true
    const name = nameOf(host)
    return name !== undefined && (!name.includes('.') || isAddress(name) || this.#names.has(name))
  }

  /** Whether HOSTS_ALLOWED lists this name; `*` lists none. */
  isListed (name: string): boolean {
    return this.#listed.has(name)
  }

  /** A 421; undefined if the request is for this service. One without a Host (HTTP/1.0) comes from no browser. */
  refusal ({ url = '/', host }: Addressed): RequestError | undefined {
    const [, authority] = /^[a-z][a-z0-9+.-]*:\/\/([^/?#]*)/i.exec(url) ?? []
    const wrong = [authority, host].find((name) => name !== undefined && !this.allows(name))
    if (wrong === undefined) return undefined
    return new RequestError('GBX_UNKNOWN_HOST', `${echo(wrong)} is no host of this service. If it is to be one, ` +
      'list it in HOSTS_ALLOWED (a proxy in front passes on the name that its clients use)')
  }
}

/**
 * A Host header's name, in lower case, without port and final dot; undefined where it is not exactly that. IPv6 keeps
 * its brackets.
 */
function nameOf (host: string): string | undefined {
  const [, name] = /^(\[[0-9a-f:.]+\]|[a-z0-9._-]*[a-z0-9_-])\.?(?::\d*)?$/.exec(host.toLowerCase()) ?? []
  return name
}

/**
 * Browsers write every form of an IPv4 address (127.1, 0x7f.1) with four numbers before they send it; other clients may
 * not.
 */
function isAddress (name: string): boolean {
  if (name.startsWith('[')) return isIPv6(name.slice(1, -1))
  if (isIPv4(name)) return true
  const url = `http://${name}`
  return /(?:^|\.)\d[0-9a-fx]*$/.test(name) && URL.canParse(url) && isIPv4(new URL(url).hostname)
}

/**
 * A machine's names: its host name, and the full one in its hosts file. No resolver is asked: its owner could answer
 * with any name.
 * @param hostsFile lines of an address and its names, as in /etc/hosts
 */
export function machineNames (hostname: string, hostsFile: string): string[] {
  const own = hostname.toLowerCase()
  const short = own.split('.', 1)[0]!
  const lines = hostsFile.toLowerCase().split('\n').map((line) => line.replace(/#.*/, '').trim().split(/\s+/).slice(1))
  const ours = lines.filter((names) => names.includes(own) || names.includes(short)).flat()
  return [own, ...ours.filter((name) => name.startsWith(`${short}.`))]
}

function readHostsFile (): string {
  try {
    return readFileSync('/etc/hosts', 'utf8')
  } catch {
    return ''
  }
}
