// The one error that both sides give: the consumer for an entry, the worker for one of its requests.

/** What `refuse` and `replyError` get for a request that wants more than is left. */
export function soldOut (left: number): [status: number, code: string, message: string, details: { left: number }] {
  const message = left === 0
    ? 'all numbers of this name are given out; nothing was issued'
    : `only ${left} are left, and nothing was issued; ask for fewer`
  return [409, 'GBX_SOLD_OUT', message, { left }]
}
