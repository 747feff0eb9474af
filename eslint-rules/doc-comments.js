// Whoever uses what a file exports learns from an editor's hover what it is and what may be relied on.

/** The name of an exported function; undefined for anything else. */
function functionName ({ declaration }) {
  return /^(?:TSDeclareFunction|FunctionDeclaration)$/.test(declaration?.type) ? declaration.id?.name : undefined
}

/** Every exported declaration has a doc comment right above it; of a function with overloads, the first. */
export const docComments = {
  meta: { type: 'suggestion', schema: [], messages: { missing: 'an exported declaration needs a doc comment' } },
  create (context) {
    const { sourceCode } = context
    const check = (node) => {
      if (node.declaration === null) return
      const siblings = node.parent.body
      const before = siblings[siblings.indexOf(node) - 1]
      const name = functionName(node)
      if (before?.type === node.type && name !== undefined && functionName(before) === name) return
      const comment = sourceCode.getCommentsBefore(node).at(-1)
      const documented = comment?.type === 'Block' && comment.value.startsWith('*') &&
        comment.loc.end.line >= node.loc.start.line - 1
      if (!documented) context.report({ node, messageId: 'missing' })
    }
    return { ExportNamedDeclaration: check, ExportDefaultDeclaration: check }
  },
}
