// What one attempt at a run does for plugins: what was added, what became of their entries, and what they are told
// after the commit.
import type { EntryOutcome, Json } from '@gearbox/protocol/plugin-entry.ts'
import type { AppliedSums } from '@gearbox/runtime/plugin.ts'
import type { StoredResult } from '../results.ts'
import type { ConsumerPlugins, RunChanges } from './consumer-plugins.ts'

/** What became of an entry, with its JSON. */
export interface EntryOutcomeText {
  readonly outcome: EntryOutcome
  readonly text: string
  /** Why the plugin failed, if it did. */
  readonly failure?: string
}

/** An entry of a plugin, as metrics and log see it. */
export interface HandledEntry {
  readonly plugin: string
  /** Whether the plugin is loaded: any other name can be anything. */
  readonly isLoaded: boolean
  readonly outcome: 'applied' | 'refused' | 'failed'
  readonly producer: string
  readonly seq: number
  readonly entry: number
  /** Why the plugin failed. */
  readonly failure: string | undefined
}

/** The bookkeeping of one attempt at a run, as far as it is about plugins. */
export class PluginTally {
  readonly #plugins: ConsumerPlugins
  readonly #sums: AppliedSums[] = []
  readonly #corrected: string[] = []
  /** By plugin, the results of entries that were applied now. */
  readonly #newResults = new Map<string, Json[]>()
  /** Outcomes of the run's entries, also of those that were handled before. */
  readonly results: StoredResult[] = []
  /** Entries that were handled now. */
  readonly entries: HandledEntry[] = []

  constructor (plugins: ConsumerPlugins) {
    this.#plugins = plugins
  }

  /** What was added. */
  get sums (): readonly AppliedSums[] {
    return this.#sums
  }

  /** What plugins that follow commits are told; undefined if there is none. */
  get changes (): RunChanges | undefined {
    if (!this.#plugins.followCommits) return undefined
    return { sums: this.#sums, corrected: this.#corrected, results: this.#newResults }
  }

  /** Notes what was added. To be called only if a plugin follows it. */
  addSums (sums: readonly AppliedSums[]): void {
    for (const added of sums) if (added.json !== '{}') this.#sums.push(added)
  }

  /** Notes that an entry was applied now. @param corrected the key whose total it has corrected */
  addChange (plugin: string, result: Json, corrected: string | undefined): void {
    if (!this.#plugins.followCommits) return
    if (corrected !== undefined) this.#corrected.push(corrected)
    const results = this.#newResults.get(plugin)
    if (results === undefined) this.#newResults.set(plugin, [result])
    else results.push(result)
  }

  /** Notes what became of an entry. @param entry its number in its batch */
  addOutcome (
    producer: string, seq: number, entry: number, plugin: string, { outcome, text, failure }: EntryOutcomeText
  ): void {
    this.results.push({ producer, seq, entry, outcome, bytes: text.length })
    const isLoaded = this.#plugins.has(plugin)
    const kind = 'result' in outcome ? 'applied' : failure === undefined && isLoaded ? 'refused' : 'failed'
    this.entries.push({ plugin, isLoaded, outcome: kind, producer, seq, entry, failure })
  }
}
