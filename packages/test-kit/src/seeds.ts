// One seed for all random tests of a run: new each time, or GEARBOX_TEST_SEED to repeat a failure.
// fast-check prints it, with the smallest counterexample, when a property fails.

/** The seed of this run. */
export const seed = Number(process.env.GEARBOX_TEST_SEED ?? Math.floor(Math.random() * 0x7fffffff))
