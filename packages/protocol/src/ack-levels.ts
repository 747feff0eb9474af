// Ack levels: what a client asks for with `?ack=`, and what its reply waits for.

/** How safe a count is when its reply comes: in a worker's memory, in the queue, or committed in the database. */
export const ackLevels = ['memory', 'queued', 'stored'] as const

/** One of the three levels. */
export type AckLevel = typeof ackLevels[number]
