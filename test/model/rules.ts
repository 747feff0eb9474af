// The rules that make counting exact, each with the ways of breaking it that the model can show to be wrong.
// The first alternative of each is the real one.

export interface Rules {
  /** take.lua reads a run and leaves it in the list. */
  readonly take: 'reads' | 'pops'
  /** acknowledge.lua pops while the head is the next handled element. */
  readonly acknowledge: 'pops if handled' | 'trims n'
  /** A push without a definite answer is sent again: the same bytes. */
  readonly retry: 'same bytes' | 'new sequence' | 'merged with what came since'
  /** Outbox: what is pushed stays in the window until it is stored. */
  readonly window: 'until stored' | 'none'
  /** Window.dropStored: drops exactly what is stored. */
  readonly drop: 'exactly' | 'up to the highest'
  /** push.lua compares the generation; if not, a poll may still notice that it changed, or nothing does. */
  readonly generation: 'compared' | 'polled' | 'ignored'
  /** readServer: run_id and replication id are parts of the incarnation. */
  readonly runId: 'read with replication id' | 'read' | 'ignored'
  /** A poll reads run_id and replication id too, not only the generation. */
  readonly polled: 'incarnation' | 'generation'
  /** Window.dropStored: what is missing below the highest reported sequence is pushed again. */
  readonly gaps: 'refilled' | 'ignored'
  /** Window.noteLength: what an empty queue has not reported is pushed again. */
  readonly tails: 'all that is not reported' | 'only above the highest' | 'ignored'
  /** What was pushed again is pushed once more if the queue is empty for long, and it is still not reported. */
  readonly again: 'when the queue is empty' | 'never'
  /** Outbox.unaccounted: what goes into the unsent file. */
  readonly stop: 'what is not accounted for' | 'what was not pushed'
  /** Store.apply: the highest sequence of a producer and the gaps below it. */
  readonly appliedBefore: 'highest and gaps' | 'highest'
  /** Store.apply: what was applied before is read inside the transaction. */
  readonly readApplied: 'in the transaction' | 'at the take'
  /** A consumer checks its epoch in the database and in the queue. */
  readonly epoch: 'checked' | 'ignored'
  /** Consumer.run begins with a report of what the one before it may not have reported. */
  readonly start: 'reports' | 'reports nothing'
  /** checkBinding: which of the two is read first. */
  readonly binding: 'queue first' | 'database first'
  /** Where outcomes of entries are: written in the transaction that applies them, and kept until a worker has them. */
  readonly outcomes: 'kept until received' | 'kept until reported' | 'kept in memory'
  /** A worker asks for outcomes of stored batches that it lacks. */
  readonly missing: 'asked for' | 'not asked for'
  /** Whether the entry of a batch that was applied before is applied again, for its outcome. */
  readonly duplicates: 'not asked again' | 'asked again'
}

export const realRules: Rules = {
  take: 'reads',
  acknowledge: 'pops if handled',
  retry: 'same bytes',
  window: 'until stored',
  drop: 'exactly',
  generation: 'compared',
  runId: 'read with replication id',
  polled: 'incarnation',
  gaps: 'refilled',
  tails: 'all that is not reported',
  again: 'when the queue is empty',
  stop: 'what is not accounted for',
  appliedBefore: 'highest and gaps',
  readApplied: 'in the transaction',
  epoch: 'checked',
  start: 'reports',
  binding: 'queue first',
  outcomes: 'kept until received',
  missing: 'asked for',
  duplicates: 'not asked again',
}
