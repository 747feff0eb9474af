// How Node finds the modules of plugins that are not built in: packages from the working directory first, and what
// every plugin may import of Gearbox here, whether or not its own directories have a copy.
import { registerHooks } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

/** Marks the one import that loads a plugin. */
const scheme = 'gearbox-plugin:'

/** What a plugin may import of Gearbox. */
const seam = /^@gearbox\/(?:runtime\/plugin\.ts|protocol\/[a-z-]+\.ts)$/

let isRegistered = false

/**
 * Imports a plugin's module.
 * @param specifier the URL of a file, or the name of a package: of the working directory, else of Gearbox
 */
export async function importPlugin (specifier: string): Promise<unknown> {
  if (!isRegistered) register()
  isRegistered = true
  return await import(`${scheme}${specifier}`)
}

/** Whether an error says that a package, and not something that it imports, was not found. */
export function isNotFound (error: unknown, name: string): boolean {
  return error instanceof Error && 'code' in error && error.code === 'ERR_MODULE_NOT_FOUND' &&
    error.message.startsWith(`Cannot find package '${name}' imported from ${fileIn(import.meta.dirname)}`)
}

function register (): void {
  registerHooks({
    resolve: (specifier, context, nextResolve) => {
      if (specifier.startsWith(scheme)) {
        const name = specifier.slice(scheme.length)
        const found = orElse(
          () => nextResolve(name, { ...context, parentURL: urlIn(process.cwd()) }),
          () => nextResolve(name, { ...context, parentURL: urlIn(import.meta.dirname) }))
        // Node would print a warning for a .ts file that no package.json calls a module.
        return found.format == null && found.url.endsWith('.ts') ? { ...found, format: 'module-typescript' } : found
      }
      // Never another copy of it: an error that a plugin throws must be of the class that this process knows.
      return seam.test(specifier)
        ? nextResolve(specifier, { ...context, parentURL: urlIn(import.meta.dirname) })
        : nextResolve(specifier, context)
    },
  })
}

/** The first result, or the second where the first is not found. */
function orElse<T> (first: () => T, second: () => T): T {
  try {
    return first()
  } catch (error) {
    if (!(error instanceof Error) || !('code' in error) || error.code !== 'ERR_MODULE_NOT_FOUND') throw error
    return second()
  }
}

/** A module of a directory that need not exist: where the search for packages starts. */
function fileIn (dir: string): string {
  return join(dir, 'plugins.js')
}

function urlIn (dir: string): string {
  return pathToFileURL(fileIn(dir)).href
}
