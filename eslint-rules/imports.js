// Rules about imports: each is declared, each runs one way, and none leads back to where it began.
import { house, rooms, seam } from './rooms.js'
import {
  importsOf, isProduct, manifestOf, packageOf, pathOf, targetOf, visitImports, workspaceOf,
} from './workspaces.js'

/** A workspace's package.json names every package that it imports. Tests and tools may import devDependencies too. */
export const declaredImports = {
  meta: { type: 'problem', schema: [], messages: { undeclared: '{{name}} is not in {{where}} of {{manifest}}' } },
  create (context) {
    const path = pathOf(context.filename)
    const workspace = workspaceOf(path)
    const { dependencies, optionalDependencies, devDependencies } = manifestOf(workspace)
    const tools = !isProduct(path)
    const declared = { ...dependencies, ...optionalDependencies, ...tools ? devDependencies : {} }
    return visitImports((node, specifier) => {
      const name = packageOf(specifier)
      if (name === undefined || Object.hasOwn(declared, name)) return
      const where = tools ? 'the dependencies and devDependencies' : 'the dependencies'
      const manifest = `${workspace || '.'}/package.json`
      context.report({ node, messageId: 'undeclared', data: { name, where, manifest } })
    })
  },
}

/** The place of a name in a list of rooms: its layer, and the room itself. */
function placeIn (list, name) {
  const isRoom = (room) => room === name || (room.endsWith('/*') && name.startsWith(room.slice(0, -1)))
  const layer = list.findIndex((room) => [room].flat().some(isRoom))
  return layer === -1 ? undefined : { layer, name }
}

/** Whether something at one place of a list may import something at another. */
function mayImport (from, to) {
  return from.name === to.name || from.layer < to.layer
}

function isPlugin (workspace) {
  return workspace.startsWith('plugins/')
}

/** Arrows run down only, from one workspace to another by name, within one by path. */
export const importDirection = {
  meta: {
    type: 'problem',
    schema: [],
    messages: {
      leaves: 'a path must not lead out of its workspace; import by the name of the other one',
      tests: 'the product must not import what is there for its tests',
      up: '{{from}} must not import from {{to}}: eslint-rules/rooms.js says which way arrows run',
      plugin: '{{from}} must not import from {{to}}: a plugin is loaded where PLUGINS names it',
      seam: '{{from}} must not import from {{to}}: a plugin may only import @gearbox/runtime/plugin.ts and ' +
        '@gearbox/protocol/… of Gearbox',
      homeless: '{{path}} is in no room of eslint-rules/rooms.js',
    },
  },
  create (context) {
    const path = pathOf(context.filename)
    const workspace = workspaceOf(path)
    const product = isProduct(path)
    const home = product ? placeIn(house, workspace) : undefined
    const list = rooms[workspace]
    const roomOf = (file) => file.slice(`${workspace}/src/`.length).split('/')[0]
    const room = product && list !== undefined ? placeIn(list, roomOf(path)) : undefined
    const visit = visitImports((node, specifier) => {
      const target = targetOf(path, specifier)
      if (target === undefined) return
      const other = workspaceOf(target)
      if (other !== workspace) {
        if (specifier.startsWith('.') && other + workspace !== '') context.report({ node, messageId: 'leaves' })
        if (!product) return
        const data = { from: workspace || 'bin', to: other || 'the root' }
        if (isPlugin(other)) return context.report({ node, messageId: 'plugin', data })
        if (isPlugin(workspace)) {
          if (!seam.test(target)) context.report({ node, messageId: 'seam', data })
          return
        }
        const there = placeIn(house, other)
        if (there === undefined) context.report({ node, messageId: 'tests' })
        else if (!mayImport(home, there)) {
          context.report({ node, messageId: 'up', data })
        }
      } else if (product && !isProduct(target) && target.endsWith('.ts')) {
        context.report({ node, messageId: 'tests' })
      } else if (room !== undefined) {
        const there = placeIn(list, roomOf(target))
        if (there !== undefined && !mayImport(room, there)) {
          context.report({ node, messageId: 'up', data: { from: room.name, to: there.name } })
        }
      }
    })
    if (!product || list === undefined || room !== undefined) return visit
    return { ...visit, Program: (node) => context.report({ node, messageId: 'homeless', data: { path } }) }
  },
}

/** The way from one file back to another through the imports of files on the disk; undefined if there is none. */
function wayBack (from, to, seen = new Set()) {
  for (const next of importsOf(from)) {
    if (next === to) return [from]
    if (seen.has(next)) continue
    seen.add(next)
    const rest = wayBack(next, to, seen)
    if (rest !== undefined) return [from, ...rest]
  }
  return undefined
}

/** No file imports itself through others, types included. */
export const noCycles = {
  meta: { type: 'problem', schema: [], messages: { cycle: 'this import leads back here: {{way}}' } },
  create (context) {
    const path = pathOf(context.filename)
    return visitImports((node, specifier) => {
      const target = targetOf(path, specifier)
      const way = target === undefined ? undefined : target === path ? [] : wayBack(target, path)
      if (way === undefined) return
      context.report({ node, messageId: 'cycle', data: { way: [path, ...way, path].join(' → ') } })
    })
  },
}
