// The configurations of install/nginx and install/haproxy in the real programs, with only ports and paths replaced:
// TLS outside, kept connections inside, and no POST that is sent twice.
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import http2 from 'node:http2'
import { Agent } from 'node:https'
import { connect, createServer as createTcpServer, type AddressInfo, type Server } from 'node:net'
import { delimiter, join } from 'node:path'
import { describe, expect, onTestFinished, test } from 'vitest'
import { formHeaders, send } from '@gearbox/test-kit/client.ts'
import { endWithTest, Program, readTotals, root, startAll } from '@gearbox/test-kit/gearbox.ts'
import { freePort } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

// Debian keeps them where only root's PATH looks.
process.env.PATH = [process.env.PATH, '/usr/sbin', '/usr/local/sbin'].join(delimiter)

interface Front {
  readonly url: string
  readonly ca: string
}

interface Place {
  readonly dir: string
  readonly port: number
  readonly upstreams: readonly number[]
  /** How often haproxy looks at /readyz. */
  readonly checkEvery: string
}

const fronts = [
  {
    name: 'nginx',
    configure: ({ dir, port, upstreams }: Place): string[] => {
      writeFileSync(join(dir, 'gearbox.conf'), replaced('install/nginx/gearbox.conf', [
        ['listen 443 ssl http2', `listen 127.0.0.1:${port} ssl http2`],
        ['listen [::]:443 ssl http2 backlog=65535;', ''],
        ['/etc/ssl/certs/gearbox.pem', join(dir, 'cert.pem')],
        ['/etc/ssl/private/gearbox.key', join(dir, 'key.pem')],
        ['server 127.0.0.1:3333 max_fails=0;',
          upstreams.map((upstream) => `server 127.0.0.1:${upstream} max_fails=0;`).join(' ')],
      ]))
      const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi',
        'scgi'].map((name) => `${name}_temp_path ${join(dir, name)};`)
      writeFileSync(join(dir, 'nginx.conf'),
        `${process.getuid?.() === 0 ? 'user root;' : ''} daemon off; worker_processes 1;
        pid ${join(dir, 'pid')}; error_log stderr;
        events { worker_connections 1024; }
        http { access_log off; ${temporary.join(' ')} include ${join(dir, 'gearbox.conf')}; }`)
      return ['-p', dir, '-e', 'stderr', '-c', join(dir, 'nginx.conf')]
    },
  },
  {
    name: 'haproxy',
    configure: ({ dir, port, upstreams, checkEvery }: Place): string[] => {
      writeFileSync(join(dir, 'gearbox.cfg'), replaced('install/haproxy/gearbox.cfg', [
        ['log /dev/log local0', 'log stdout format raw local0'],
        ['user haproxy', ''],
        ['group haproxy', ''],
        // As many as a test may have files open.
        ['maxconn 100000', 'maxconn 1000'],
        ['bind :443 ', `bind 127.0.0.1:${port} `],
        ['/etc/haproxy/gearbox.pem', join(dir, 'both.pem')],
        [
          'server here 127.0.0.1:3333 check inter 2s fall 3',
          upstreams.map((upstream, i) => `server here${i} 127.0.0.1:${upstream} check inter ${checkEvery} fall 3`)
            .join(' rise 1\n  '),
        ],
      ]))
      return ['-db', '-f', join(dir, 'gearbox.cfg')]
    },
  },
] as const

/** A shipped file with what is this machine's replaced, once each. */
function replaced (path: string, changes: ReadonlyArray<readonly [from: string, to: string]>): string {
  return changes.reduce((text, [from, to]) => {
    expect(text.split(from).length, `"${from}" in ${path}`).toBe(2)
    return text.replace(from, () => to)
  }, readFileSync(join(root, path), 'utf8'))
}

async function startFront ({ name, configure }: typeof fronts[number], upstreams: readonly number[],
  checkEvery = '2s'): Promise<Front> {
  const dir = temporaryDir()
  const port = await freePort()
  const { status, stderr } = spawnSync('openssl',
    ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
      '-keyout', join(dir, 'key.pem'), '-out', join(dir, 'cert.pem'), '-subj', '/CN=localhost', '-addext',
      'subjectAltName=DNS:localhost'], { encoding: 'utf8' })
  expect(status, stderr).toBe(0)
  const ca = readFileSync(join(dir, 'cert.pem'), 'utf8')
  writeFileSync(join(dir, 'both.pem'), ca + readFileSync(join(dir, 'key.pem'), 'utf8'))
  const program = endWithTest(new Program(name, configure({ dir, port, upstreams, checkEvery }), {}))
  const front = { url: `https://localhost:${port}`, ca }
  await until(`${name} to pass a request on; it printed: ${program.output}`,
    async () => (await ask(front, 'GET', '/docs/json')).status === 200)
    .catch((error: unknown) => { throw new Error(program.output, { cause: error }) })
  return front
}

/** One request, on its own TLS connection unless an agent keeps one. */
async function ask ({ url, ca }: Front, method: string, path: string, body = '', headers: Record<string, string> = {},
  agent: Agent | false = false): Promise<{ status: number, text: string }> {
  return await send(`${url}${path}`, {
    method,
    ca,
    agent,
    family: 4,
    servername: 'localhost',
    headers: { ...(body === '' ? {} : formHeaders(body)), ...headers },
    body,
  })
}

async function listen (server: Server): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  onTestFinished(() => { server.close() })
  return (server.address() as AddressInfo).port
}

/** Passes connections on, and counts the POSTs that went over each. */
async function countPosts (target: number): Promise<{ port: number, posts: number[] }> {
  const posts: number[] = []
  const port = await listen(createTcpServer((client) => {
    const upstream = connect(target, '127.0.0.1')
    let index: number | undefined
    client.on('data', (chunk) => {
      if (chunk.includes('POST /increment')) {
        index ??= posts.push(0) - 1
        posts[index] = posts[index]! + 1
      }
    })
    client.pipe(upstream).pipe(client)
    for (const socket of [client, upstream]) socket.on('error', () => {})
    upstream.on('close', () => client.destroy())
    client.on('close', () => upstream.destroy())
  }))
  return { port, posts }
}

/** A Gearbox that has read every body and dies with the n-th POST to it, without an answer. */
async function dyingUpstream (seen: IncomingHttpHeaders[], diesAt: number): Promise<number> {
  let own = 0
  const server = createServer((incoming, reply) => {
    incoming.resume()
    incoming.on('end', () => {
      if (incoming.method !== 'POST') {
        reply.writeHead(200).end()
        return
      }
      seen.push(incoming.headers)
      if (++own >= diesAt) incoming.socket.destroy()
      else reply.writeHead(204).end()
    })
  })
  onTestFinished(() => server.closeAllConnections())
  return await listen(server)
}

describe.each(fronts)('behind $name', (kind) => {
  const missing = [kind.name, 'openssl'].filter((name) => findProgram(name) === undefined)
  const real = test.skipIf(missing.length > 0)
  const why = missing.length > 0 ? ` (skipped: there is no ${missing.join(', no ')})` : ''

  real('POSTs over TLS are counted once, and clients that come and go share few connections to ' +
    `Gearbox${why}`, async () => {
    const databasePath = join(temporaryDir(), 'numbers.db')
    const gearbox = endWithTest(await startAll({ DATABASE_PATH: databasePath, WEB_WORKERS: '1' }))
    const { port, posts } = await countPosts(Number(new URL(gearbox.url).port))
    const front = await startFront(kind, [port])
    const clients = 40
    for (let i = 0; i < clients; i++) {
      expect((await ask(front, 'POST', '/increment?ack=stored', 'tls=1')).status).toBe(204)
    }
    expect(posts.reduce((sum, count) => sum + count, 0)).toBe(clients)
    expect(posts.length, 'connections that carried them').toBeLessThanOrEqual(2)

    const agent = new Agent({ keepAlive: true, maxSockets: 8 })
    expect(await Promise.all(Array.from({ length: clients },
      async () => (await ask(front, 'POST', '/increment?ack=stored', 'kept=1', {}, agent)).status)))
      .toEqual(Array(clients).fill(204))
    agent.destroy()
    expect(readTotals(databasePath)).toEqual(new Map([['kept', BigInt(clients)], ['tls', BigInt(clients)]]))
  })

  real('Gearbox\'s own answers get through: errors as JSON, keys with a slash, a page of the same ' +
    `host${why}`, async () => {
    const databasePath = join(temporaryDir(), 'numbers.db')
    const gearbox = endWithTest(await startAll({ DATABASE_PATH: databasePath, WEB_WORKERS: '1' }))
    const front = await startFront(kind, [Number(new URL(gearbox.url).port)])
    const tooLarge = await ask(front, 'POST', '/increment', `${'a'.repeat(70_000)}=1`)
    expect([tooLarge.status, JSON.parse(tooLarge.text)])
      .toEqual([413, expect.objectContaining({ code: 'GBX_BODY_TOO_LARGE' })])
    expect((await ask(front, 'POST', '/increment?ack=stored', 'a%2Fb=5', { origin: front.url })).status).toBe(204)
    expect((await ask(front, 'POST', '/increment', 'a%2Fb=5', { origin: 'https://elsewhere.example' })).status)
      .toBe(403)
    expect((await ask(front, 'GET', '/totals/a%2Fb')).text).toBe('{"key":"a/b","total":5}')
  })

  real('a public name is answered where HOSTS_ALLOWED has it, also to its own pages, and no ' +
    `other is${why}`, async () => {
    const gearbox =
      endWithTest(await startAll({
        DATABASE_PATH: join(temporaryDir(), 'numbers.db'),
        WEB_WORKERS: '1',
        HOSTS_ALLOWED: 'counter.example',
      }))
    const front = await startFront(kind, [Number(new URL(gearbox.url).port)])
    expect((await ask(front, 'POST', '/increment', 'a=1',
      { host: 'counter.example', origin: 'https://counter.example' })).status).toBe(204)
    const other = await ask(front, 'POST', '/increment', 'a=1',
      { host: 'other.example', origin: 'https://other.example' })
    expect([other.status, JSON.parse(other.text)]).toEqual([421,
      expect.objectContaining({ code: 'GBX_UNKNOWN_HOST', message: expect.stringContaining('HOSTS_ALLOWED') })])
  })

  real(`only what the public may reach is published${why}`, async () => {
    const gearbox = endWithTest(await startAll({ DATABASE_PATH: join(temporaryDir(), 'numbers.db'), WEB_WORKERS: '1' }))
    const front = await startFront(kind, [Number(new URL(gearbox.url).port)])
    const paths = ['/metrics', '/readyz', '/healthz', '/', '/increments', '/increment/', '/%6detrics', '//metrics',
      '/docs/../metrics', '/docs/%2e%2e/metrics', '/totals/../metrics', '/metrics?', '/METRICS', '/docs;/../metrics']
    for (const path of paths) {
      const { status, text } = await ask(front, 'GET', path)
      expect([400, 404], path).toContain(status)
      expect(text, path).not.toContain('gearbox_')
    }
    const refused = await ask(front, 'GET', '/metrics')
    expect([refused.status, JSON.parse(refused.text)])
      .toEqual([404, expect.objectContaining({ code: 'GBX_NOT_FOUND' })])
    for (const method of ['PUT', 'DELETE', 'POST', 'PATCH']) {
      expect([403, 404], method).toContain((await ask(front, method, '/totals/foo')).status)
    }
    for (const path of ['/totals', '/totals?prefix=a', '/docs', '/docs/', '/docs/json']) {
      expect((await ask(front, 'GET', path)).status, path).toBeLessThan(400)
    }
    expect((await ask(front, 'GET', '/totals/none')).text).toContain('GBX_')
    expect((await ask(front, 'POST', '/increment?ack=stored', 'foo=1')).status).toBe(204)
  })

  real(`HTTP/2 counts as well${why}`, async () => {
    const databasePath = join(temporaryDir(), 'numbers.db')
    const gearbox = endWithTest(await startAll({ DATABASE_PATH: databasePath, WEB_WORKERS: '1' }))
    const front = await startFront(kind, [Number(new URL(gearbox.url).port)])
    const session = http2.connect(front.url, { ca: front.ca })
    onTestFinished(() => session.destroy())
    const statuses =
      await Promise.all(Array.from({ length: 20 }, async () => await new Promise<number>((resolve, reject) => {
        const stream = session.request({
          ':method': 'POST',
          ':path': '/increment?ack=stored',
          'content-type': 'application/x-www-form-urlencoded',
          origin: front.url,
        })
        stream.on('response', (headers) => { resolve(Number(headers[':status'])) })
        stream.on('error', reject)
        stream.resume().end('h2=1')
      })))
    expect(session.alpnProtocol).toBe('h2')
    expect(statuses).toEqual(Array(20).fill(204))
    expect(readTotals(databasePath)).toEqual(new Map([['h2', 20n]]))
  })

  real('a POST whose upstream dies is not sent to another one, and the client\'s own repeat is what ' +
    `counts${why}`, async () => {
    const seen: IncomingHttpHeaders[] = []
    const front = await startFront(kind, [await dyingUpstream(seen, 1), await dyingUpstream(seen, 1)])
    expect((await ask(front, 'POST', '/increment', 'foo=1')).status).toBe(502)
    expect(seen.length).toBe(1)
    expect((await ask(front, 'POST', '/increment', 'foo=1', { 'idempotency-key': 'abc' })).status).toBe(502)
    expect(seen.map((headers) => headers['idempotency-key'])).toEqual([undefined, 'abc'])
  })

  real(`nor is one whose upstream dies on a kept connection${why}`, async () => {
    const seen: IncomingHttpHeaders[] = []
    const front = await startFront(kind, [await dyingUpstream(seen, 2)])
    expect((await ask(front, 'POST', '/increment', 'foo=1')).status).toBe(204)
    expect((await ask(front, 'POST', '/increment', 'foo=1')).status).toBe(502)
    expect(seen.length).toBe(2)
  })

  real(`Gearbox is told the client's address, and not what the client says it is${why}`, async () => {
    const seen: IncomingHttpHeaders[] = []
    const front = await startFront(kind, [await dyingUpstream(seen, 2)])
    expect((await ask(front, 'POST', '/increment', 'foo=1',
      { 'x-forwarded-for': '192.0.2.1', 'x-real-ip': '192.0.2.2' })).status).toBe(204)
    expect(seen[0]).toMatchObject({
      'x-forwarded-for': '127.0.0.1',
      'x-real-ip': '127.0.0.1',
      'x-forwarded-proto': 'https',
      host: new URL(front.url).host,
    })
  })
})

const haproxy = fronts[1]
const missing = [haproxy.name, 'openssl'].filter((name) => findProgram(name) === undefined)

test.skipIf(missing.length > 0)('a machine behind haproxy that stops with DRAIN_MS is noticed by no ' +
  `client${missing.length > 0 ? ` (skipped: there is no ${missing.join(', no ')})` : ''}`, async () => {
  const databases = [join(temporaryDir(), 'numbers.db'), join(temporaryDir(), 'numbers.db')]
  const machines = await Promise.all(databases.map(async (databasePath) => (
    endWithTest(await startAll({ DATABASE_PATH: databasePath, WEB_WORKERS: '1', DRAIN_MS: '3000' })))))
  // Three failed checks take 600 ms, and as much again on a busy machine, of the 3000.
  const front = await startFront(haproxy, machines.map(({ url }) => Number(new URL(url).port)), '200ms')
  const statuses = new Map<number | string, number>()
  const enough = new AbortController()
  const clients = Array.from({ length: 12 }, async (_, i) => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 })
    while (!enough.signal.aborted) {
      // On kept connections and on new ones.
      const outcome = await ask(front, 'POST', '/increment?ack=stored', 'foo=1', {},
        i % 3 === 0 ? false : agent).then(({ status }) => status, String)
      statuses.set(outcome, (statuses.get(outcome) ?? 0) + 1)
    }
    agent.destroy()
  })
  const answered = (): number => [...statuses.values()].reduce((sum, count) => sum + count, 0)
  const more = async (count: number): Promise<void> => {
    const before = answered()
    await until(`${count} more replies`, () => answered() >= before + count)
  }
  await more(200)
  machines[0]!.kill('SIGTERM')
  expect(await machines[0]!.exited, machines[0]!.output).toBe(0)
  await more(200)
  enough.abort()
  await Promise.all(clients)
  expect([...statuses.keys()]).toEqual([204])
  await machines[1]!.end()
  const totals = databases.map((path) => readTotals(path).get('foo') ?? 0n)
  expect(totals[0]! + totals[1]!).toBe(BigInt(answered()))
  expect(totals[0]).toBeGreaterThan(0n)
})

/**
 * Why the installer can't be tried here; undefined where it can: in its own /etc, which only this process sees.
 */
const noOwnEtc = process.platform !== 'linux' || process.getuid?.() !== 0 || findProgram('unshare') === undefined
  ? 'only root makes its own /etc'
  : spawnSync('unshare',
    ['-m', 'sh', '-c',
      'mount -t tmpfs none /mnt && mkdir /mnt/up /mnt/work && mount -t overlay -o ' +
        'lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work none /etc']).status === 0
    ? undefined
    : 'no file system can be mounted here'

describe('install_front.sh', () => {
  /** Runs it in its own /etc, and then what shows how that looks. */
  function install (name: string, before: string, after: string): {
    status: number |
    null,
    said: string,
    shown: string
  } {
    const dir = temporaryDir()
    const script = join(dir, 'run')
    writeFileSync(script, `set -e
      mount -t tmpfs none /mnt && mkdir /mnt/up /mnt/work &&
        mount -t overlay -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work none /etc
      [ ! -d /run/systemd ] || mount -t tmpfs none /run/systemd
      certificate () {
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout "$2" -out "$1" \\
          -subj /CN=localhost 2>/dev/null
      }
      mkdir -p /etc/haproxy /etc/nginx/conf.d /etc/ssl/private
      ${before}
      set +e
      '${join(root, 'install/install_front.sh')}' ${name} >'${dir}/said' 2>&1
      status=$?
      (${after}) >'${dir}/shown' 2>&1
      exit $status
    `)
    const { status, stderr } = spawnSync('unshare', ['-m', 'bash', script], { encoding: 'utf8' })
    return {
      status,
      said: stderr + readFileSync(join(dir, 'said'), 'utf8'),
      shown: readFileSync(join(dir, 'shown'), 'utf8'),
    }
  }

  const missing = noOwnEtc ?? [...fronts.map(({ name }) => name),
    'openssl'].filter((name) => findProgram(name) === undefined).map((name) => `there is no ${name}`)[0]
  const real = test.skipIf(missing !== undefined)
  const why = missing === undefined ? '' : ` (skipped: ${missing})`
  const haproxyShipped = readFileSync(join(root, 'install/haproxy/gearbox.cfg'), 'utf8')
  const nginxShipped = readFileSync(join(root, 'install/nginx/gearbox.conf'), 'utf8')

  real(`a file that haproxy does not accept takes nobody's place${why}`, () => {
    // Its certificate is not there.
    const { status, said, shown } = install('haproxy',
      'echo "# mine" >/etc/haproxy/haproxy.cfg; rm -f /etc/haproxy/gearbox.pem',
      'cat /etc/haproxy/haproxy.cfg; ls /etc/haproxy | grep haproxy.cfg')
    expect(said).toMatch(/gearbox\.pem[^]*haproxy does not accept install\/haproxy\/gearbox\.cfg/)
    expect([status, shown]).toEqual([1, '# mine\nhaproxy.cfg\n'])
  })

  real(`one that it accepts does, and what was there is kept${why}`, () => {
    const { status, said, shown } = install('haproxy',
      'echo "# mine" >/etc/haproxy/haproxy.cfg; certificate /etc/haproxy/c /etc/haproxy/k; cat /etc/haproxy/c ' +
        '/etc/haproxy/k >/etc/haproxy/gearbox.pem',
      'cat /etc/haproxy/haproxy.cfg.before /etc/haproxy/haproxy.cfg')
    expect(status, said).toBe(0)
    expect(shown).toBe(`# mine\n${haproxyShipped}`)
  })

  real(`what nginx does not accept is taken back${why}`, () => {
    const no = install('nginx', 'rm -f /etc/ssl/certs/gearbox.pem', 'ls /etc/nginx/conf.d')
    expect(no.said).toMatch(/gearbox\.pem[^]*nginx does not accept/)
    expect([no.status, no.shown]).toEqual([1, ''])
    const kept = install('nginx', 'rm -f /etc/ssl/certs/gearbox.pem; echo "# mine" >/etc/nginx/conf.d/gearbox.conf',
      'cat /etc/nginx/conf.d/*')
    expect([kept.status, kept.shown]).toEqual([1, '# mine\n'])
  })

  real(`what it accepts is in its place${why}`, () => {
    const { status, said, shown } = install('nginx',
      'certificate /etc/ssl/certs/gearbox.pem /etc/ssl/private/gearbox.key; echo "# mine" ' +
        '>/etc/nginx/conf.d/gearbox.conf',
      'cat /etc/nginx/conf.d/gearbox.conf.before /etc/nginx/conf.d/gearbox.conf')
    expect(status, said).toBe(0)
    expect(shown).toBe(`# mine\n${nginxShipped}`)
  })
})
