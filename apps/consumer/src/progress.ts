// Of one producer, the rejections that are in every report of its progress: a report has to be complete in itself, as
// any of them may be lost.
import type { Rejection, Progress } from '@gearbox/protocol/progress.ts'
import { omittedOf, reportedMax, reportedMs, type Report } from './store/reports.ts'

interface Current {
  report: Report
  /** performance.now ms */
  readonly until: number
}

export class CurrentReports {
  /** By sequence, oldest first. */
  readonly #reports = new Map<number, Current>()
  #rejections = 0

  get isEmpty (): boolean {
    return this.#reports.size === 0
  }

  /**
   * Takes in what was rejected of a batch, in the place of what was known of it. Of too many the oldest are no longer
   * listed.
   */
  add (report: Report): void {
    this.#delete(report.seq)
    this.#reports.set(report.seq, { report, until: performance.now() + reportedMs })
    this.#rejections += report.rejections.length
    for (const current of this.#reports.values()) {
      const excess = this.#rejections - reportedMax
      if (excess <= 0) break
      const { seq, rejections, omitted } = current.report
      if (rejections.length === 0) continue
      const others = omittedOf(rejections.slice(0, excess))
      current.report = { seq, rejections: rejections.slice(excess), omitted: omitted === 'filed' ? omitted : others }
      this.#rejections -= Math.min(excess, rejections.length)
    }
  }

  /** Lets go what nobody can wait for any more. */
  expire (now: number): void {
    for (const [seq, { until }] of this.#reports) {
      if (until > now) break
      this.#delete(seq)
    }
  }

  /** As it is reported. */
  get stored (): Pick<Progress, 'rejected' | 'omittedRejections' | 'omittedFiled'> {
    const rejected: Rejection[] = []
    const omittedRejections: number[] = []
    const omittedFiled: number[] = []
    for (const { report: { seq, rejections, omitted } } of this.#reports.values()) {
      for (const rejection of rejections) rejected.push(rejection)
      if (omitted === undefined) continue
      omittedRejections.push(seq)
      if (omitted === 'filed') omittedFiled.push(seq)
    }
    return { rejected, omittedRejections, ...(omittedFiled.length === 0 ? {} : { omittedFiled }) }
  }

  #delete (seq: number): void {
    this.#rejections -= this.#reports.get(seq)?.report.rejections.length ?? 0
    this.#reports.delete(seq)
  }
}
