// What the web part of one plugin works with: its view of this worker. Everything in it is bounded and named after the
// plugin, so that one plugin can't pass for another.
import type { Socket } from 'node:net'
import type { FastifyRequest } from 'fastify'
import type { Config } from '@gearbox/runtime/config.ts'
import type { ApiKeys } from '@gearbox/runtime/access/api-keys.ts'
import type { Logger } from '@gearbox/runtime/log/logger.ts'
import type { Registry } from '@gearbox/runtime/metrics.ts'
import type {
  FastPostHandler, Json, LoadedPlugin, Plugin, PluginReader, Submitted, SubmitOptions, WebContext,
} from '@gearbox/runtime/plugin.ts'
import type { AdmitOptions } from '../increment/admit.ts'
import { countPairs } from '../increment/count-pairs.ts'
import { callerOf, checkKey } from '../increment/idempotency.ts'
import { pluginMetrics } from './metrics.ts'

/** What carries entries of plugins to the consumer. */
export interface Submissions {
  submit (
    plugin: string, data: Json | (() => Json | undefined), options?: SubmitOptions & { readonly alone?: boolean }
  ): Promise<Submitted>
  holdReply (bytes: number): () => void
}

/** The parts of a worker that a context is made of. */
export interface ContextOptions {
  readonly core: Pick<Config, 'ackTimeoutMs' | 'basePath' | 'databasePath'>
  readonly logger: Logger
  readonly apiKeys: ApiKeys
  readonly admit: AdmitOptions
  readonly submissions: Submissions
  /** Reads for plugins, from the database that totals are read from. */
  readonly database: PluginReader
  readonly registry: Registry
  /** Aborts when this worker begins to stop. */
  readonly stopping: AbortSignal
  readonly producer: string
  /** Takes the socket of a request of this plugin's scope. */
  readonly detach: (request: FastifyRequest) => Socket
  /** What `fastPost` of this plugin does. */
  readonly fastPost: (prefix: string, handler: FastPostHandler) => void
}

/** The context of a plugin. */
export function contextOf (
  { name }: Plugin, settings: LoadedPlugin['settings'], options: ContextOptions
): WebContext<LoadedPlugin['settings']> {
  const { core, apiKeys, admit, submissions, database, stopping, producer } = options
  const { ackTimeoutMs, basePath, databasePath } = core
  return {
    settings,
    core: { ackTimeoutMs, basePath, databasePath },
    logger: options.logger.child({ plugin: name }),
    increment: async (pairs, how) => await countPairs(admit, name, pairs, how),
    submit: async (data, how) => await submissions.submit(name, data, { ...how, alone: false }),
    holdReply: (bytes) => submissions.holdReply(bytes),
    idempotency: ({ headers }) => {
      const key = headers['idempotency-key']
      if (key === undefined) return {}
      // Where nobody checks who calls, the header means nothing.
      return { idempotencyKey: checkKey(key), caller: apiKeys.any ? callerOf(headers.authorization) : '' }
    },
    detach: options.detach,
    fastPost: options.fastPost,
    isAllowed: ({ headers }, scope) => apiKeys.allows(headers.authorization, scope),
    hasApiKeys: apiKeys.any,
    database,
    metrics: pluginMetrics(name, options.registry),
    stopping,
    producer,
  }
}
