// What differs from Swagger UI in the page of /docs: name, icon, and a script that shows and sends values exactly.
import { readFileSync } from 'node:fs'

const read = (file: string): string => readFileSync(new URL(file, import.meta.url), 'utf8')
const icon = read('icon.svg')

/** Options of @fastify/swagger-ui. */
export const docsTheme = {
  logo: { type: 'image/svg+xml', content: icon },
  theme: {
    title: 'Gearbox',
    favicon: [{ filename: 'icon.svg', rel: 'icon', sizes: 'any', type: 'image/svg+xml', content: icon }],
    js: [{ filename: 'gearbox.js', content: read('in-browser.js') }],
  },
}
