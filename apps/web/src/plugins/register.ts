// The web parts of plugins: each in a scope of its own under BASE_PATH, where what holds for every route of ours holds
// for its routes too. The server calls it; it knows plugins by their seam alone.
import type { Socket } from 'node:net'
import type { FastifyInstance, FastifyReply, FastifyRequest, RouteOptions } from 'fastify'
import type { Origins } from '@gearbox/runtime/access/origins.ts'
import { FatalError, reasonOf } from '@gearbox/runtime/errors.ts'
import type { FastPostHandler, LoadedPlugin } from '@gearbox/runtime/plugin.ts'
import { exitCode } from '@gearbox/runtime/process/exit-codes.ts'
import { detach } from '../http/detach.ts'
import { checkForm, checkOrigin } from '../http/write-checks.ts'
import { contextOf, type ContextOptions } from './context.ts'
import { FastPostRoutes, type AddFastPost } from './fast-posts.ts'
import { addFormParser } from './form-body.ts'

/** What the routes of plugins are registered with. */
export interface PluginOptions extends Omit<ContextOptions, 'detach' | 'fastPost'> {
  readonly loaded: readonly LoadedPlugin[]
  readonly origins: Origins
  /** Counts a reply that is written past Fastify. */
  readonly replied: (statusCode: number) => void
  /** Without a fast lane it does nothing. */
  readonly fastPost: AddFastPost
}

/** Methods that read. For all others the page that sends them is checked: a form needs no preflight. */
const reading = new Set(['GET', 'HEAD', 'OPTIONS'])

/**
 * Registers the web parts of all plugins.
 * @throws FatalError (exit code 78) with the plugin and the cause, if one of them throws or has a route that exists
 */
export async function registerPlugins (app: FastifyInstance, prefix: string, options: PluginOptions): Promise<void> {
  for (const plugin of options.loaded) {
    try {
      await app.register(async (scope) => { await registerOne(scope, plugin, options) }, { prefix })
    } catch (error) {
      throw new FatalError(`the plugin "${plugin.plugin.name}" can't be started: ` +
        reasonOf(error).replaceAll(/\s*[\r\n]+\s*/g, ' '), exitCode.config)
    }
  }
}

async function registerOne (
  scope: FastifyInstance, { plugin, settings }: LoadedPlugin, options: PluginOptions
): Promise<void> {
  if (plugin.web === undefined) return
  const fastPosts = new FastPostRoutes()
  scope.addHook('onRoute', (route) => {
    describeRoute(route, plugin.name)
    fastPosts.addRoute(route)
  })
  scope.addHook('onRequest', (request, _reply, done) => {
    if (reading.has(request.method)) done()
    else done(checkOrigin(request, options.origins) ?? checkForm(request))
  })
  scope.addHook('preValidation', fillBody)
  addFormParser(scope, options.admit.limits.bodyPairsMax)
  const replies = new WeakMap<object, FastifyReply>()
  scope.addHook('onRequest', (request, reply, done) => {
    replies.set(request, reply)
    done()
  })
  const detachRequest = (request: FastifyRequest): Socket => {
    const reply = replies.get(request)
    if (reply === undefined) throw new Error('that is not a request to a route of this plugin')
    options.replied(200)
    return detach(request, reply)
  }
  const fastPost = (path: string, handler: FastPostHandler): void => fastPosts.add(path, handler)
  await plugin.web(scope, contextOf(plugin, settings, { ...options, detach: detachRequest, fastPost }))
  fastPosts.finish(scope.prefix, options.fastPost)
}

/** In the document, routes of a plugin are under its name; one that needs no key says so. */
function describeRoute (route: RouteOptions, name: string): void {
  const { schema = {}, config } = route
  route.schema = { tags: [name], ...schema, ...(config?.needs === 'none' ? { security: [] } : {}) }
}

/** A request without a body is a form without fields, for a route that takes one. */
function fillBody (request: FastifyRequest, _reply: FastifyReply, done: () => void): void {
  if (request.body == null && request.routeOptions.schema?.body !== undefined) request.body = Object.create(null)
  done()
}
