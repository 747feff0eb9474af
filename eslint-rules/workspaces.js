// What the import rules know of the repository: its workspaces, what each declares and exports,
// and which files import which.
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve, sep } from 'node:path'

/** The directory of the repository. */
export const root = resolve(import.meta.dirname, '..')

const manifests = new Map()

/** The path of a file from the root, with slashes. */
export function pathOf (file) {
  return relative(root, file).split(sep).join('/')
}

/** The directory of the workspace that a path is in; '' for the root's own. */
export function workspaceOf (path) {
  return /^(?:apps|packages|plugins)\/[^/]+/.exec(path)?.[0] ?? ''
}

/** The package.json of a workspace. */
export function manifestOf (workspace) {
  let manifest = manifests.get(workspace)
  if (manifest === undefined) {
    const file = join(root, workspace, 'package.json')
    manifest = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {}
    manifests.set(workspace, manifest)
  }
  return manifest
}

/** Whether a path is source of the product, and not of its tests and tools. */
export function isProduct (path) {
  return /^(?:apps|packages|plugins)\/(?!test-kit\/)[^/]+\/src\/|^bin\//.test(path)
}

const pluginDirs = existsSync(join(root, 'plugins')) ? readdirSync(join(root, 'plugins'), { withFileTypes: true }) : []

const workspaces = {
  ...Object.fromEntries(pluginDirs.filter((entry) => entry.isDirectory()).map(({ name }) =>
    [`@gearbox/${name}`, `plugins/${name}`])),
  '@gearbox/web': 'apps/web',
  '@gearbox/consumer': 'apps/consumer',
  '@gearbox/queue': 'packages/queue',
  '@gearbox/runtime': 'packages/runtime',
  '@gearbox/protocol': 'packages/protocol',
  '@gearbox/test-kit': 'packages/test-kit',
}

/** `@gearbox/queue/queue.ts` → `@gearbox/queue`; undefined for what is not a package. */
export function packageOf (specifier) {
  if (/^(?:\.|node:|data:)/.test(specifier)) return undefined
  return /^(?:@[^/]+\/)?[^/]+/.exec(specifier)?.[0]
}

/** The path of what a file of ours imports; undefined for what is not ours. */
export function targetOf (path, specifier) {
  if (specifier.startsWith('.')) return pathOf(resolve(root, dirname(path), specifier))
  const name = packageOf(specifier)
  const workspace = workspaces[name]
  if (workspace === undefined) return undefined
  const subpath = `.${specifier.slice(name.length)}`
  const exported = Object.entries(manifestOf(workspace).exports ?? {})
  // As Node does it: of the patterns that fit, the longest.
  for (const [pattern, target] of exported.sort(([one], [other]) => other.length - one.length)) {
    const [before, after] = pattern.split('*')
    if (after === undefined ? subpath !== pattern : !subpath.startsWith(before) || !subpath.endsWith(after)) continue
    const star = after === undefined ? '' : subpath.slice(before.length, subpath.length - after.length)
    return `${workspace}/${target.replace('*', star).slice(2)}`
  }
  return undefined
}

const imports = new Map()

/** The line of an import or re-export that names its source. */
const importing = /^(?:import|export|\} from)\b[^'\n]*'([^'\n]+)'/gm

/** The product's source that a file on the disk imports: paths. */
export function importsOf (path) {
  let found = imports.get(path)
  if (found === undefined) {
    const file = join(root, path)
    const text = existsSync(file) ? readFileSync(file, 'utf8') : ''
    found = Array.from(text.matchAll(importing), ([, specifier]) => targetOf(path, specifier))
      .filter((target) => target !== undefined && target.endsWith('.ts') && isProduct(target))
    imports.set(path, found)
  }
  return found
}

/** Calls back with the node and the specifier of every import and re-export of a file, dynamic ones too. */
export function visitImports (visit) {
  const check = ({ source }) => {
    if (source?.type === 'Literal' && typeof source.value === 'string') visit(source, source.value)
  }
  return {
    ImportDeclaration: check,
    ExportNamedDeclaration: check,
    ExportAllDeclaration: check,
    ImportExpression: check,
  }
}
