// What a Gearbox process says to its supervisor when it ends. systemd's units and the parent of `npm start` act on
// these numbers.

/** Exit codes, from sysexits.h where it has a fitting one. */
export const exitCode = {
  /** Anything that a person has to look at: a port in use, a database that can't be written. */
  failed: 1,
  /** EX_USAGE: an option or a command that does not exist. */
  usage: 64,
  /**
   * EX_UNAVAILABLE: this database and this queue don't belong together, or another consumer has superseded this one.
   * Starting again would not help.
   */
  refused: 69,
  /** EX_TEMPFAIL: sums were left that could be neither queued nor written to a file. */
  unsent: 75,
  /** EX_CONFIG: the environment has problems, all of them named. */
  config: 78,
} as const
