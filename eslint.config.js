import neostandard from 'neostandard'
import { docComments } from './eslint-rules/doc-comments.js'
import { declaredImports, importDirection, noCycles } from './eslint-rules/imports.js'

const gearbox = {
  rules: {
    'declared-imports': declaredImports,
    'doc-comments': docComments,
    'import-direction': importDirection,
    'no-cycles': noCycles,
  },
}

export default [
  ...neostandard({
    ts: true,
    ignores: ['node_modules', 'data', 'docs'],
  }),
  {
    files: ['**/*.ts', '**/*.js'],
    rules: {
      '@stylistic/max-len': ['error', { code: 120 }],
      'max-lines': ['error', { max: 600 }],
    },
  },
  {
    files: ['**/*.ts'],
    plugins: { gearbox },
    rules: {
      'gearbox/declared-imports': 'error',
      'gearbox/import-direction': 'error',
    },
  },
  {
    files: ['{apps,packages,plugins}/*/src/**/*.ts', 'bin/**/*.ts'],
    rules: {
      'gearbox/doc-comments': 'error',
      'gearbox/no-cycles': 'error',
    },
  },
]
