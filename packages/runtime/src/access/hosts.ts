// HOSTS_ALLOWED: the names under which this service answers. A web page can give a name of its own this machine's
// address (DNS rebinding); to a browser it then is the same site as this service, and may count and read. Only the Host
// shows it: over plain HTTP browsers send nothing else that tells. A page can't choose an address, localhost or a name
// of this machine, so those are fine.
import { readFileSync } from 'node:fs'
import { isIPv4, isIPv6 } from 'node:net'
import { hostname } from 'node:os'
import { echo } from '../http/echo.ts'
import { RequestError } from '../http/errors.ts'

/** What of a request says whom it is for. */
export interface Addressed {
  /** The request's target: a path, or a whole URL, which then wins over the Host header. */
  readonly url?: string | undefined
  readonly host: string | undefined
}

/**
 * One entry of HOSTS_ALLOWED: a name, or `*`. @returns it as browsers send it @throws Error that suggests the right
 * form
 */
export function parseHost (text: string): string {
  if (text === '*') return text
  const address = isIPv6(text) ? `[${text}]` : text
  const url = /^[a-z][a-z0-9+.-]*:\/\//i.test(address) ? address : `http://${address}`
  const name = URL.canParse(url) ? nameOf(new URL(url).hostname) : undefined
  if (name === undefined) throw new Error(`must be comma-separated host names such as counter.example.org, or * for any, not ${echo(text)}`)
  if (/[/?#@\\]|:\d*$/.test(address)) throw new Error(`must be names without scheme, port or path: ${name}, not ${echo(text)}`)
  return name
}

/** The names of one process's service. */
export class Hosts {
  readonly #any: boolean
  readonly #names: ReadonlySet<string>
  readonly #listed: ReadonlySet<string>

  /** With API keys any host will do: a page that reaches this service under a name of its own has none of them. */
  constructor (
    { host, hostsAllowed, apiKeys }: { readonly host: string, readonly hostsAllowed: readonly string[], readonly apiKeys: readonly unknown[] },
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

  /** Whether HOSTS_ALLOWED names it; `*` names nobody. */
  isListed (name: string): boolean {
    return this.#listed.has(name)
  }

  /** Why a request is refused; undefined: it is not. One without a Host (HTTP/1.0) comes from no browser. */
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
  return isIPv4(name) || (/(?:^|\.)\d[0-9a-fx]*$/.test(name) && URL.canParse(`http://${name}`) && isIPv4(new URL(`http://${name}`).hostname))
}

/**
 * A machine's names: its host name, and what its hosts file has as the full one. A resolver is not asked: whoever
 * answers for it could name anything.
 * @param hostsFile lines of an address and its names, as in /etc/hosts
 */
export function machineNames (hostname: string, hostsFile: string): string[] {
  const own = hostname.toLowerCase()
  const short = own.split('.', 1)[0]!
  const lines = hostsFile.toLowerCase().split('\n').map((line) => line.replace(/#.*/, '').trim().split(/\s+/).slice(1))
  const full = lines.filter((names) => names.includes(own) || names.includes(short)).flat().filter((name) => name.startsWith(`${short}.`))
  return [own, ...full]
}

function readHostsFile (): string {
  try {
    return readFileSync('/etc/hosts', 'utf8')
  } catch {
    return ''
  }
}
