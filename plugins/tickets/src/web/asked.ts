// With TICKETS_HOLD_S: keeps places that were called for those who ask for them with their receipt.
import type { Web } from '../settings.ts'

/** Places that are remembered. Behind them the oldest may be written more often than it has to. */
const rememberedMax = 10_000

/** Who asked lately at this worker, so that a page which asks every second is not written every second. */
export class AskedPlaces {
  readonly #web: Web
  /** performance.now ms, by name and number */
  readonly #asked = new Map<string, number>()

  constructor (web: Web) {
    this.#web = web
  }

  /** Somebody with the receipt of a number that was called asked for it. */
  ask (name: string, number: number): void {
    const { ticketsHoldS } = this.#web.settings
    if (ticketsHoldS === 0) return
    const [place, now] = [`${number} ${name}`, performance.now()]
    const last = this.#asked.get(place)
    if (last !== undefined && now - last < ticketsHoldS * 1000 / 4) return
    this.#asked.delete(place)
    this.#asked.set(place, now)
    const [oldest] = this.#asked.keys()
    if (this.#asked.size > rememberedMax && oldest !== undefined) this.#asked.delete(oldest)
    // If it fails, the next question is soon enough.
    this.#web.submit({ asked: name, number }).catch(() => { this.#asked.delete(place) })
  }
}
