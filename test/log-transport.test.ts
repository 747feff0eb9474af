// LOG_TRANSPORT: the log of every process goes to a pino transport, and what happens where that is none, or fails.
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { post } from '@gearbox/test-kit/client.ts'
import { endWithTest, Program, root, startCommand } from '@gearbox/test-kit/gearbox.ts'
import { freePort } from '@gearbox/test-kit/redis.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { until } from '@gearbox/test-kit/until.ts'

interface Started {
  readonly program: Program
  readonly url: string
  /** Where the transport below writes. */
  readonly file: string
}

/** `npm start` with a transport of this source. */
async function start (source: string): Promise<Started> {
  const dir = temporaryDir()
  const [file, port] = [join(dir, 'log'), await freePort()]
  writeFileSync(join(dir, 'transport.mjs'), source.replaceAll('FILE', JSON.stringify(file)))
  const program = endWithTest(new Program(process.execPath, [join(root, 'bin/gearbox.ts'), 'start'], {
    LOG_TRANSPORT: './transport.mjs', PORT: String(port), WEB_WORKERS: '1',
  }, { cwd: dir }))
  return { program, url: `http://127.0.0.1:${port}`, file }
}

const toFile = `import { appendFileSync } from 'node:fs'
import { Writable } from 'node:stream'
export default () => new Writable({ write (chunk, _encoding, done) { appendFileSync(FILE, chunk); done() } })`

async function ready (url: string): Promise<void> {
  await until('it to be ready', async () => await fetch(`${url}/readyz`).then(({ ok }) => ok, () => false), 20_000)
}

test('a transport receives the log of every process to the last line, and standard output nothing', async () => {
  const { program, url, file } = await start(toFile)
  await ready(url)
  expect((await post(url, 'foo=1')).status).toBe(204)
  program.kill('SIGTERM')
  expect(await program.exited).toBe(0)
  const lines = readFileSync(file, 'utf8').trimEnd().split('\n').map((line): { msg: string } => JSON.parse(line))
  expect(lines.map(({ msg }) => msg)).toEqual(expect.arrayContaining([
    expect.stringMatching(/^listens on/), expect.stringMatching(/^stopping/), 'stopped',
  ]))
  expect(program.output).toBe('')
})

test.each([
  ['throws while it is loaded', 'throw new Error("no luck")', /failed \(no luck\): logging to standard output/],
  ['exports nothing', 'export const x = 1', /failed \(.*\): logging to standard output/],
  ['throws later', `import { Writable } from 'node:stream'
export default () => new Writable({ write () { throw new Error('full') } })`, /failed \(.*\): logging to standard/],
  ['exits', 'setTimeout(() => process.exit(3), 10)\nexport default async () => await new Promise(() => {})',
    /failed \(.*\): logging to standard output/],
])('one that %s is named, and the log goes on to standard output', async (_what, source, says) => {
  const { program, url, file } = await start(source)
  await ready(url)
  await program.printed(says)
  expect((await post(url, 'foo=1')).status).toBe(204)
  program.kill('SIGTERM')
  expect(await program.exited).toBe(0)
  expect(program.output).toMatch(/"msg":"stopped"/)
  expect(existsSync(file)).toBe(false)
})

test('one that hangs holds up neither a request nor the end', { timeout: 60_000 }, async () => {
  const { program, url } = await start('export default () => { for (;;); }')
  await ready(url)
  expect((await post(url, 'foo=1')).status).toBe(204)
  const before = performance.now()
  program.kill('SIGTERM')
  expect(await program.exited).toBe(0)
  expect(performance.now() - before).toBeLessThan(9000)
})

test.each(['./gone.mjs', 'no-such-transport'])('an unknown one (%s) is exit code 78', async (LOG_TRANSPORT) => {
  const program = startCommand('start', [], { LOG_TRANSPORT })
  expect(await program.exited).toBe(78)
  expect(program.output).toMatch(/LOG_TRANSPORT must be a pino transport, and there is no (?:file|package) "/)
})
