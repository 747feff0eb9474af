// What /metrics of a running product says, as tests read it.

/**
 * One metric, summed over its labels.
 * @param url of `npm start`, or a worker's `metricsUrl`
 * @throws Error with the reply, if there are no metrics there
 */
export async function metric (url: string, name: string): Promise<number> {
  const response = await fetch(`${url}/metrics`, { headers: { connection: 'close' } })
  const text = await response.text()
  if (!response.ok) throw new Error(text)
  return Array.from(text.matchAll(new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, 'gm')),
    ([, value]) => Number(value)).reduce((sum, value) => sum + value, 0)
}
