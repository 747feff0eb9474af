// `npm run verify`: for every worker that lives, what it accepted is stored, queued, in its window or pending; for
// those that are gone, queue and database must have no hole. verify/gather.ts reads, verify/judge.ts compares.
import type { Config } from '@gearbox/runtime/config.ts'
import { printLines } from '@gearbox/runtime/log/output.ts'
import type { LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { defineCommand } from '@gearbox/runtime/process/command.ts'
import { gather, type GatherConfig } from './verify/gather.ts'
import { judge, type Finding } from './verify/judge.ts'
import { verifyPlugins } from './verify/of-plugins.ts'

const usage = `Of workers that are gone, what waits in this machine's UNSENT_DIR is counted where it belongs to this
database.
Exit code 0: all of it adds up; 1: it does not, and the output says where.

usage: npm run verify [-- --url http://HOST:PORT[BASE_PATH] …]

  --url    where /metrics of the workers is (default: http://HOST:PORT[BASE_PATH], where npm start answers for all of
           them). Workers that were started one by one have it on the METRICS_PORT of each: name all of them,
           --url http://HOST:METRICS_PORT each`

/** What moves while it is read can be seen twice or not at all: a difference counts only if it stays. */
const attempts = 20
const attemptPauseMs = 250

/** `npm run verify`. */
export const command = defineCommand({
  name: 'verify',
  summary: 'Reconciles what was accepted with what is stored, queued, in a window or pending, worker by worker.',
  usage,
  options: { url: { type: 'string', multiple: true } },
  settings: [
    'host', 'port', 'redisUrl', 'queueName', 'databasePath', 'unsentDir', 'basePath', 'apiKeys', 'logLevel', 'plugins',
  ],
  run: async ({ values }, config, plugins) => await verify(config, values.url, plugins),
})

type VerifyConfig = GatherConfig & Pick<Config, 'host' | 'port' | 'basePath'>

/** @returns the exit code */
async function verify (
  config: VerifyConfig, named: readonly string[] | undefined, plugins: readonly LoadedPlugin[]
): Promise<number> {
  const findings = [
    ...await findStable(config, named ?? [ownUrl(config)]), ...verifyPlugins(config.databasePath, plugins),
  ]
  const right = areRight(findings)
  const result = right ? 'all of it adds up' : 'it does not add up: see the lines that say so'
  await printLines([...findings.map(({ text }) => text), result])
  return right ? 0 : 1
}

/** Where npm start answers with these settings. */
function ownUrl ({ host, port, basePath }: VerifyConfig): string {
  return `http://${host.includes(':') ? `[${host}]` : host}:${port}${basePath}`
}

async function findStable (config: VerifyConfig, urls: readonly string[]): Promise<Finding[]> {
  for (let attempt = 1; ; attempt++) {
    const findings = judge(await gather(config, urls))
    if (areRight(findings) || attempt === attempts) return findings
    await new Promise((resolve) => setTimeout(resolve, attemptPauseMs))
  }
}

function areRight (findings: readonly Finding[]): boolean {
  return findings.every(({ right }) => right)
}
