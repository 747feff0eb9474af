// Receipts: what shows that a number is one's own. They are derived and kept nowhere: from the secret in the database
// comes a key per entry, which travels to the worker with the entry's result, and from that a receipt per request.
// Somebody who reads one result on its way can make the receipts of that entry, and no others.
import { createHmac, randomBytes, timingSafeEqual } from 'node:crypto'

/** 128 bits: out of reach for guessing, and short enough for an address. */
const macBytes = 16

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

/** A keyed hash of a text, as text. */
export function mac (key: string, text: string): string {
  return createHmac('sha256', key).update(text).digest().subarray(0, macBytes).toString('base64url')
}

/** Whether two texts are the same, in a time that shows nothing of where they differ. */
export function isEqual (one: string, other: string): boolean {
  const [left, right] = [Buffer.from(one), Buffer.from(other)]
  return left.length === right.length && timingSafeEqual(left, right)
}
