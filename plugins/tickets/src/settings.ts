// The plugin's settings, and what its two parts are given with them.
import { integer, type ConsumerContext, type WebContext } from '@gearbox/runtime/plugin.ts'

/** Rows of the table of settings. */
export const settings = {
  ticketsHoldS: integer({
    fallback: 0,
    range: [0, 31_536_000],
    about: 'seconds that a called number is kept without a request for it (0: for ever)',
  }),
} as const

/** The settings, parsed. */
export interface Settings {
  /** 0: for ever. */
  readonly ticketsHoldS: number
}

/** What the web part works with. */
export type Web = WebContext<Settings>

/** What every entry is applied with. */
export type Context = Pick<ConsumerContext<Settings>, 'database' | 'now' | 'settings'>
