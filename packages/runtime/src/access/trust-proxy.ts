// TRUST_PROXY: whose X-Forwarded-… headers say where a request comes from. Anybody can send such a header, so by
// default nobody is believed.
import { isIP } from 'node:net'
import { quote } from '../settings/setting.ts'

/** Every sender, nobody, so many proxies in a row from this service on, or those at these addresses. */
export type TrustProxy = boolean | number | readonly string[]

/** Names of ranges that may stand for their addresses. */
const ranges = ['loopback', 'linklocal', 'uniquelocal']

/** More proxies in a row than anybody has. */
const hopsMax = 100

/** Reads TRUST_PROXY. @throws Error whose message completes "TRUST_PROXY …" */
export function parseTrustProxy (text: string): TrustProxy {
  if (text === 'true' || text === 'false') return text === 'true'
  if (/^\d{1,3}$/.test(text) && Number(text) >= 1 && Number(text) <= hopsMax) return Number(text)
  const addresses = text.split(',').map((address) => address.trim())
  const wrong = addresses.find((address) => !isRange(address))
  if (wrong === undefined) return addresses
  throw new Error(`must be true, false, a number of proxies from 1 to ${hopsMax}, or comma-separated addresses and ` +
    `ranges such as 10.0.0.0/8 or ${ranges[0]}, not ${quote(wrong)}`)
}

function isRange (text: string): boolean {
  if (ranges.includes(text)) return true
  const [, address = '', bits] = /^([^/]+)(?:\/(\d{1,3}))?$/.exec(text) ?? []
  const version = isIP(address)
  return version !== 0 && (bits === undefined || Number(bits) <= (version === 4 ? 32 : 128))
}
