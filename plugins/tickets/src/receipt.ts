// Receipts: what shows that a number is one's own. They are derived and kept nowhere: from the secret in the database
// comes a key per entry, which travels to the worker with the entry's result, and from that a receipt per request.
// Somebody who reads one result on its way can make the receipts of that entry, and no others.
import { hash, randomBytes, timingSafeEqual } from 'node:crypto'

/**
 * 132 bits: out of reach for guessing, and short enough for an address. The other half of the hash stays unknown, so
 * that nobody can go on hashing from one that they have: then a hash that begins with the key is as good as an HMAC,
 * which takes six times as long.
 */
const macCharacters = 22

/** A new secret. */
export function newSecret (): string {
  return randomBytes(32).toString('base64url')
}

/** What identifies an entry. */
export interface EntryId {
  readonly producer: string
  readonly seq: number
  readonly entry: number
}

/** The key of an entry's receipts. @param secret the one in the database */
export function receiptKey (secret: string, { producer, seq, entry }: EntryId): string {
  return mac(secret, `${producer}.${seq}.${entry}`)
}

/** The receipt for the numbers from `first` on; it says itself for which, if they are more than one. */
export function receiptOf (key: string, first: number, count: number): string {
  const code = mac(key, `${first}.${count}`)
  return count === 1 ? code : `${first}.${first + count - 1}.${code}`
}

/** Whether a receipt, as somebody sent it, is for a number. @param key the key of the entry that issued the number */
export function isReceiptFor (receipt: string, key: string, number: number): boolean {
  const [, from, to] = /^(\d{1,16})\.(\d{1,16})\.[\w-]+$/.exec(receipt) ?? []
  const [first, last] = from === undefined ? [number, number] : [Number(from), Number(to)]
  return first <= number && number <= last && isEqual(receipt, receiptOf(key, first, last - first + 1))
}

/** A keyed hash of a text, as text. @param key of at least 128 bits; all of one kind have the same length */
export function mac (key: string, text: string): string {
  return hash('sha256', `${key}.${text}`, 'base64url').slice(0, macCharacters)
}

/** Whether two texts are the same, in a time that shows nothing of where they differ. */
export function isEqual (one: string, other: string): boolean {
  const [left, right] = [Buffer.from(one), Buffer.from(other)]
  return left.length === right.length && timingSafeEqual(left, right)
}
