// A ceiling: a bare TCP server in Node that knows only as much HTTP as it needs: it looks for the end of the head and
// for Content-Length, sums the body and answers 204. It is no web server: it checks nothing, has no timeouts, and
// believes whatever it is sent.
import { createServer } from 'node:net'
import { port, sum, total } from './sums.ts'

const answer = 'HTTP/1.1 204 No Content\r\n\r\n'
const contentLength = /\r\ncontent-length: *(\d+)/i

createServer((socket) => {
  let rest = ''
  socket.on('error', () => {})
  socket.on('data', (chunk) => {
    rest += chunk.toString('latin1')
    let answers = ''
    for (;;) {
      const end = rest.indexOf('\r\n\r\n')
      if (end < 0) break
      const head = rest.slice(0, end)
      const next = end + 4 + Number(contentLength.exec(head)?.[1] ?? 0)
      if (rest.length < next) break
      if (head.startsWith('GET')) {
        const text = total()
        answers += `HTTP/1.1 200 OK\r\nContent-Length: ${text.length}\r\n\r\n${text}`
      } else {
        sum(rest.slice(end + 4, next))
        answers += answer
      }
      rest = rest.slice(next)
    }
    if (answers !== '') socket.write(answers)
  })
}).listen(port, '127.0.0.1', 65_535)
