// What can happen next in a state. A step says what it is only when it is asked: most are taken without being printed.
import type { Faults, State } from './state.ts'

export interface Step {
  /** `who: what`, in the words of the sources. */
  readonly name: () => string
  /** Whether it needs something to go wrong: such a step is never needed to come to rest. */
  readonly fault: boolean
  readonly take: () => State
}

export type Add = (name: () => string, take: () => State) => void

/** One fault of a kind fewer; undefined if none is left. */
export function spend (state: State, kind: keyof Faults): State | undefined {
  return state.faults[kind] === 0
    ? undefined
    : { ...state, faults: { ...state.faults, [kind]: state.faults[kind] - 1 } }
}
