// CORS_ORIGINS: the other origins whose pages may count and read. A page needs no permission to send a form (there is
// no preflight), so without this check any page that is open in a browser could count here.
import { echo } from '../http/echo.ts'
import type { Hosts } from './hosts.ts'

const wildcard = '*.'
/** Stands in for the wildcard where a URL is parsed. */
const anyLabel = 'any-label.'

/**
 * One entry of CORS_ORIGINS: `https://example.org`, `https://*.example.org` (every name below it, not itself), or `*`.
 * Browsers send an Origin in one form only, so an entry in any other can never match.
 * @throws Error that suggests the right form
 */
export function parseOrigin (text: string): string {
  if (text === '*') return text
  const right = rightForm(text)
  if (right === text) return text
  if (text === 'null') {
    throw new Error('must be origins, and null is none: it stands for every page without an origin; ' +
      'only * allows those')
  }
  // Before an @ there is a user and a password.
  const shown = text.includes('@') ? '' : `, not ${echo(text)}`
  const suggestion = right === undefined ? '' : `: browsers send ${right}`
  const form = 'comma-separated origins such as https://example.org or https://*.example.org, or * for all'
  throw new Error(`must be ${form}${shown}${suggestion}`)
}

/** What a browser sends for the origin that is meant; undefined if that can't be known. */
function rightForm (text: string): string | undefined {
  const written = /^[a-z][a-z0-9+.-]*:\/\//i.test(text) ? text : `https://${text}`
  const url = written.replace(`://${wildcard}`, `://${anyLabel}`)
  if (!URL.canParse(url)) return undefined
  const { protocol, hostname, origin } = new URL(url)
  const isWeb = protocol === 'http:' || protocol === 'https:'
  if (!isWeb || hostname.includes('*') || hostname === anyLabel) return undefined
  return url === written ? origin : origin.replace(`://${anyLabel}`, `://${wildcard}`)
}

/** One or more labels of a host name. */
const labels = /^[a-z0-9_-]+(?:\.[a-z0-9_-]+)*$/

/** The origins whose pages one process allows. */
export class Origins {
  readonly #exact: ReadonlySet<string>
  readonly #patterns: ReadonlyArray<{ readonly scheme: string, readonly suffix: string }>
  readonly #hosts: Hosts
  /** Whether pages of every origin may count and read. */
  readonly any: boolean

  constructor (corsOrigins: readonly string[], hosts: Hosts) {
    this.#hosts = hosts
    this.any = corsOrigins.includes('*')
    const isPattern = (entry: string): boolean => entry.includes(`://${wildcard}`)
    this.#exact = new Set(corsOrigins.filter((entry) => !isPattern(entry)))
    this.#patterns = corsOrigins.filter(isPattern).map((entry) => {
      const [scheme = '', suffix = ''] = entry.split(`://${wildcard}`)
      return { scheme: `${scheme}://`, suffix: `.${suffix}` }
    })
  }

  /** Whether CORS_ORIGINS allows pages of this origin. */
  isListed (origin: string): boolean {
    return this.any || this.#exact.has(origin) || this.#patterns.some(({ scheme, suffix }) =>
      origin.startsWith(scheme) && origin.endsWith(suffix) && labels.test(origin.slice(scheme.length, -suffix.length)))
  }

  /**
   * Whether a page of this origin may count.
   * @param host the request's Host header. A page of that host may count, and so may a page of a name in HOSTS_ALLOWED,
   * as a proxy may have changed the header
   */
  mayCount (origin: string, host: string | undefined): boolean {
    if (this.isListed(origin)) return true
    const url = URL.canParse(origin) ? new URL(origin) : undefined
    if (url === undefined || url.origin !== origin || !/^https?:$/.test(url.protocol)) return false
    if (url.port === '' && this.#hosts.isListed(url.hostname.replace(/\.$/, ''))) return true
    // Parsed together with the scheme, as some proxies add the scheme's usual port.
    const own = `${url.protocol}//${host ?? ''}`
    return /^[^\s/?#@\\]+$/.test(host ?? '') && URL.canParse(own) && new URL(own).host === url.host
  }
}
