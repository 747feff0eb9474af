// The OpenAPI page and document. They need no key: they contain no totals, and a browser could not send one before the
// page has asked for it.
import swaggerUi from '@fastify/swagger-ui'
import type { FastifyInstance } from 'fastify'
import { docsTheme } from './theme.ts'

/**
 * A key may be typed into this page, so nothing but its own files runs in it, it speaks to this service alone, and no
 * other page frames it. Swagger UI draws with style attributes and has its icons inline.
 */
const contentSecurityPolicy = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self' 'unsafe-inline'",
  "img-src 'self' data:",
  "connect-src 'self'",
  "form-action 'none'",
  "base-uri 'none'",
  "frame-ancestors 'none'",
].join('; ')

/** Adds the page at `path`, which includes BASE_PATH, and the document below it. */
export async function docsRoutes (app: FastifyInstance, { path }: { readonly path: string }): Promise<void> {
  app.addHook('onRoute', (route) => { route.config = { ...route.config, needs: 'none' } })
  await app.register(swaggerUi, { routePrefix: path, staticCSP: contentSecurityPolicy, ...docsTheme })
}
