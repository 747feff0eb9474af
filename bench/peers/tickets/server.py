"""Tornado with a counter in its memory: one process. The port is the only argument."""
import asyncio
import sys

import tornado.httpserver
import tornado.web

issued = 0


class Tickets(tornado.web.RequestHandler):
    def post(self):
        global issued
        issued += 1
        self.set_header('Content-Type', 'text/plain')
        self.write('ticket number %010u\n' % issued)


class Total(tornado.web.RequestHandler):
    def get(self):
        self.write(str(issued))


async def main():
    app = tornado.web.Application([(r'/tickets/bench', Tickets), (r'/total', Total)])
    server = tornado.httpserver.HTTPServer(app)
    server.bind(int(sys.argv[1]), '127.0.0.1', backlog=65_535)
    server.start()
    await asyncio.Event().wait()


asyncio.run(main())
