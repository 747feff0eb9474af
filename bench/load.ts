// The load: wrk with one thread, closed-loop, pinned to its own core. What it sends comes from a Lua script
// written for each run.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { stride } from './keys.ts'
import { pinned } from './machine.ts'

export interface Load {
  readonly port: number
  readonly path: string
  readonly headers: Readonly<Record<string, string>>
  /** The body of every request; or one of `{key}=1` over so many keys, walked in an order that jumps about. */
  readonly body: string | { readonly keys: number, readonly from: number }
  readonly connections: number
  readonly seconds: number
  readonly core: number | undefined
  /** Where its script is written to. */
  readonly dir: string
}

export interface Loaded {
  /** Requests that were answered, whatever with. */
  readonly answered: number
  readonly seconds: number
  /** Milliseconds. */
  readonly p50: number
  readonly p99: number
  /** Why it does not count, in words; undefined if every answer was a 2xx and no connection failed. */
  readonly problem: string | undefined
}

/** A connection that waits longer than this for an answer counts as failed. */
const timeoutSeconds = 10

/** Where the walk over the keys goes on after `requests` more. */
export function keyAfter (from: number, requests: number, keys: number): number {
  return (from + stride * requests) % keys
}

/** Loads a server for some seconds. @throws Error if wrk fails */
export async function runLoad (load: Load): Promise<Loaded> {
  const script = join(load.dir, 'load.lua')
  writeFileSync(script, writeScript(load))
  const [command, ...args] = pinned(load.core,
    ['wrk', '-t1', `-c${load.connections}`, `-d${load.seconds}s`, `--timeout=${timeoutSeconds}s`, '-s', script,
      `http://127.0.0.1:${load.port}${load.path}`])
  const wrk = spawn(command, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const [output] = await Promise.all([text(wrk.stdout), once(wrk, 'exit')])
  const result = /^#(\{.*\})$/m.exec(output)?.[1]
  if (result === undefined) throw new Error(`wrk failed: ${output.trim()}`)
  const { answered, microseconds, p50, p99, failed, statuses } = JSON.parse(result) as Record<'answered' |
    'microseconds' | 'p50' | 'p99' | 'failed' | 'statuses', number>
  const problems = [statuses > 0 && `${statuses} answers were errors`,
    failed > 0 && `${failed} connections failed or got no answer in ${timeoutSeconds} s`,
    answered === 0 && 'nothing was answered'].filter((problem) => problem !== false)
  return {
    answered,
    seconds: microseconds / 1e6,
    p50: p50 / 1000,
    p99: p99 / 1000,
    problem: problems.length > 0 ? problems.join(', ') : undefined,
  }
}

function writeScript ({ port, path, headers, body }: Load): string {
  const entries = Object.entries(headers)
  const requests = typeof body === 'string'
    ? [`wrk.method, wrk.body = "POST", ${JSON.stringify(body)}`,
        ...entries.map(([name, value]) => `wrk.headers["${name}"] = "${value}"`)].join('\n')
    : `local head = "POST ${path} HTTP/1.1\\r\\nHost: 127.0.0.1:${port}\\r\\n" ..
  "${entries.map(([name, value]) => `${name}: ${value}\\r\\n`).join('')}Content-Length: 11\\r\\n\\r\\n"
local at = ${body.from}
function request()
  at = (at + ${stride}) % ${body.keys}
  return head .. string.format("key%06d=1", at)
end`
  return `${requests}
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('#{"answered":%d,"microseconds":%d,"p50":%d,"p99":%d,"failed":%d,"statuses":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.timeout, e.status))
end
`
}
