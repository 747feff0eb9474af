// What a run has added, as plugins get it: JSON objects of sums, taken from the batches' own JSON where all of it was
// applied.
import { int64Max, int64Min } from '@gearbox/protocol/int64.ts'
import type { AppliedSums } from '@gearbox/runtime/plugin.ts'
import type { BatchReader } from '../batch-reader.ts'
import type { Entry } from '../statements.ts'

/** How a batch begins that a worker wrote. */
const sumsStart = /^\{"v":\d+,"producer":"[0-9a-f-]{36}","seq":\d+,"at":\d+,"requests":\d+,"increments":\d+,"sums":/
const sumsEnd = '},"once":['

/**
 * The sums of a batch that was applied whole, as JSON. Of a batch that a worker wrote they are cut out: what ends them
 * can't be in them, as their values are numbers and a quote in a key is escaped.
 */
export function sumsJson (json: string, reader: BatchReader): string {
  const start = sumsStart.exec(json)?.[0].length ?? 0
  const end = json.indexOf(sumsEnd, start)
  const cut = start === 0 || end === -1 ? '' : json.slice(start, end + 1)
  // What another program wrote can begin alike.
  return reader.isJson(cut) ? cut : reader.sumsJson(json)
}

/** Entries as JSON; several times where they are beyond 64 bits. @param at Unix ms */
export function sumsOf (entries: readonly Entry[], at: number): AppliedSums[] {
  const within = entries.filter(({ value }) => value <= int64Max && value >= int64Min)
  const all = within.length === 0 ? [] : [{ at, json: toJson(within) }]
  for (const { key, value } of entries) {
    for (let rest = value; within.length < entries.length && (rest > int64Max || rest < int64Min);) {
      const part = rest > 0n ? int64Max : int64Min
      rest -= part
      all.push({ at, json: toJson([{ key, value: part }]) })
      if (rest <= int64Max && rest >= int64Min) all.push({ at, json: toJson([{ key, value: rest }]) })
    }
  }
  return all
}

function toJson (entries: readonly Entry[]): string {
  return `{${entries.map(({ key, value }) => `${JSON.stringify(key)}:${value}`).join(',')}}`
}
