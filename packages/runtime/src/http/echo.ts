// What a client sent, as a message may show it: quoted, escaped and cut.
import { isUtf8 } from 'node:buffer'

/** Longest piece of a client's input that a message shows. */
const echoCharactersMax = 64

/** As many of several inputs as may be shown together, at least one; and how many more there are. */
export function echoAll (texts: readonly string[]): { named: string, more: number } {
  const shown: string[] = []
  let characters = 0
  for (const text of texts) {
    const next = echo(text)
    characters += lengthOf(next)
    if (shown.length > 0 && characters > echoCharactersMax) break
    shown.push(next)
  }
  return { named: shown.join(', '), more: texts.length - shown.length }
}

/**
 * Input as it may be shown: quoted, escaped, and cut.
 * @param charactersMax most that is shown of it, escapes and all
 */
export function echo (text: string, charactersMax = echoCharactersMax): string {
  let [shown, cut, length] = ['', '', 0]
  for (const character of text) {
    const visible = shown === '' && /\p{M}/u.test(character) ? toEscape(character) : toVisible(character)
    length += visible === character ? 1 : visible.length
    if (length > charactersMax) return `"${cut}…"`
    shown += visible
    if (length < charactersMax) cut = shown
  }
  return `"${shown}"`
}

/** A name and its value as they may be shown together: if both are long, half of the room is for each. */
export function echoPair (name: string, value: string): { name: string, value: string } {
  const room = (shown: string): number => echoCharactersMax - lengthOf(shown)
  const shownName = echo(name, Math.max(echoCharactersMax / 2, room(echo(value))))
  return { name: shownName, value: echo(value, room(shownName)) }
}

/** Characters of an echo within its quotes. */
function lengthOf (shown: string): number {
  return Array.from(shown).length - 2
}

/**
 * Bytes as text for `echo`. Those that are not UTF-8 become lone surrogates, U+DC80 to U+DCFF, which no UTF-8 decodes
 * to; `echo` shows them as \xff.
 */
export function textOf (bytes: Buffer): string {
  if (isUtf8(bytes)) return bytes.toString()
  let text = ''
  for (let at = 0; at < bytes.length && text.length <= 2 * echoCharactersMax;) {
    const length = [1, 2, 3, 4].find((length) => at + length <= bytes.length && isUtf8(bytes.subarray(at, at + length)))
    text += length === undefined ? String.fromCharCode(0xdc00 + bytes[at]!) : bytes.toString('utf8', at, at + length)
    at += length ?? 1
  }
  return text
}

/** Control and format characters, blanks other than the space, and others that are invisible or change direction. */
const invisible = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}]/u

function toVisible (character: string): string {
  if (character === ' ' || (!invisible.test(character) && character !== '"' && character !== '\\')) return character
  const json = JSON.stringify(character).slice(1, -1)
  return /^\\[^u]/.test(json) ? json : toEscape(character)
}

function toEscape (character: string): string {
  const code = character.codePointAt(0)!
  if (code >= 0xdc80 && code <= 0xdcff) return `\\x${(code - 0xdc00).toString(16)}`
  return code > 0xffff ? `\\u{${code.toString(16)}}` : `\\u${code.toString(16).padStart(4, '0')}`
}
