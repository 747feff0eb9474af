// A ceiling: Node's own HTTP server, bare. It parses, sums and answers 204.
import { createServer } from 'node:http'
import { port, sum, total } from './sums.ts'

createServer((request, response) => {
  if (request.method === 'GET') {
    response.end(total())
    return
  }
  const chunks: Buffer[] = []
  request.on('data', (chunk: Buffer) => { chunks.push(chunk) })
  request.on('end', () => {
    sum((chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)).toString('latin1'))
    response.writeHead(204).end()
  })
}).listen(port, '127.0.0.1', 65_535)
