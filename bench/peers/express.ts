// Express's hello world: what the original was measured against. It reads no body and sums nothing.
import { port } from './sums.ts'

interface App {
  post: (path: string, handle: (request: unknown, response: { send: (text: string) => void }) => void) => void
  listen: (port: number, host: string) => void
}

/** Not known to TypeScript: the bench runs without it where it is not installed. */
const name: string = 'express'
const module: { readonly default: () => App } | undefined = await import(name).catch(() => undefined)
if (module === undefined) {
  process.stdout.write('express is not installed (npm install --no-save express)\n')
  process.exit(1)
}
const app = module.default()
app.post('/increment', (_request, response) => response.send('Hello World!'))
app.listen(port, '127.0.0.1')
