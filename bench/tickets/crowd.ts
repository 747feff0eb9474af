// A crowd: as many connections as tickets, thousands of them at once, each for one request, made by ab (apache2-utils).
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { NotMeasuredError, type Host, type Server } from '../host.ts'
import { openFilesMax } from '../machine.ts'
import { run } from './run.ts'

/** How many come, and how many at once. */
export interface CrowdSize {
  readonly requests: number
  readonly atOnce: number
}

/** What came of one. */
export interface Crowd {
  readonly seconds: number
  /** Requests that got an answer that is no 2xx. */
  readonly refused: number
  /** Requests that got none, or not all of it. */
  readonly broken: number
}

/** Files that ab has open besides its connections. */
const otherFiles = 100

/** A connection that waits longer than this for an answer counts as failed. */
const timeoutSeconds = 60

/** @throws NotMeasuredError where this machine can't make such a crowd */
export async function gather ({ cores }: Host, { port }: Server, path: string, {
  requests,
  atOnce,
}: CrowdSize): Promise<Crowd> {
  if (findProgram('ab') === undefined) {
    throw new NotMeasuredError('ab is not installed: sudo apt-get install apache2-utils')
  }
  if (openFilesMax() < atOnce + otherFiles) {
    throw new NotMeasuredError(`a process may open only ${openFilesMax()} files here (ulimit -n)`)
  }
  // -l: bodies differ in length; -r: a connection that fails is counted and does not end it all.
  const output = await run('ab', ['-q', '-l', '-r', '-s', String(timeoutSeconds), '-n', String(requests), '-c',
    String(atOnce), '-m', 'POST', '-H', 'Content-Length: 0', `http://127.0.0.1:${port}${path}`], cores.load)
  const read = (name: string): number | undefined => {
    const [, value] = new RegExp(`^${name}: +([\\d.]+)`, 'm').exec(output) ?? []
    return value === undefined ? undefined : Number(value)
  }
  const [complete, seconds] = ['Complete requests', 'Time taken for tests'].map(read)
  if (complete !== requests || seconds === undefined) throw new Error(`ab did not finish:\n${output}`)
  // ab counts a connection that broke once for what happened and once more as an exception.
  const [connect = 0, receive = 0, exceptions = 0] =
    (/\(Connect: (\d+), Receive: (\d+), Length: \d+, Exceptions: (\d+)\)/.exec(output) ?? []).slice(1).map(Number)
  return {
    seconds,
    refused: read('Non-2xx responses') ?? 0,
    broken: Math.max(connect + receive, exceptions, Math.ceil((read('Failed requests') ?? 0) / 2)),
  }
}
