// Every document, followed like a reader would: in a fresh copy of the repository, block after block in the order in
// which they stand. What can't be done on a test machine is listed here with its reason; so is each word that is
// replaced, such as a port that may be taken.
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { delimiter, dirname, join } from 'node:path'
import { chromium, type Page } from 'playwright-core'
import { afterAll, beforeAll, expect, onTestFinished, test } from 'vitest'
import { installTimeoutMs, requireVegeta } from '../vegeta/test/kit.ts'
import { Program, root } from '@gearbox/test-kit/gearbox.ts'
import { freePort, RedisServer } from '@gearbox/test-kit/redis.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'

interface Block {
  readonly document: string
  readonly line: number
  /** What stands behind a fence; empty for an indented block. */
  readonly language: string
  readonly text: string
}

/** Blocks that are not run, by how they begin, and why. Each must be there. */
const notRun: ReadonlyArray<readonly [document: string, begins: string, why: string]> = [
  ['CONTRIBUTING.md', 'npm ci\n', 'it is what .ci/run does, this test included'],
  ['DESIGN.md', 'client ──POST──▶', 'a picture'],
  ['DESIGN.md', ' apps/web', 'a map'],
  ['packages/protocol/DESIGN.md', '{"v":1,', 'what a batch looks like'],
  ['docs/checking.md', 'npm run chaos', 'two minutes; test/chaos/chaos.test.ts runs shorter ones'],
  ['docs/http.md', '{"key":"foo"', 'what a correction is answered with'],
  ['docs/redis.md', 'appendonly yes', 'lines of redis.conf, which every Redis of the tests has'],
  ['docs/redis.md', 'ACL SETUSER', 'a command of Redis; redis-login.test.ts runs it'],
  ['install/README.md', 'sudo install/install_ubuntu.sh', 'it needs its own system: npm run test:install'],
  ['install/README.md', 'git pull', 'npm run test:install upgrades so'],
  ['install/README.md', 'sudo install/uninstall.sh', 'npm run test:install uninstalls so'],
  ['install/README.md', 'sudo install/install_front.sh', 'test/install/fronts.test.ts runs it in its own /etc'],
  ['install/README.md', 'promtool check', 'test/install/prometheus.test.ts runs promtool; the rest writes into /etc'],
  ['install/README.md', 'sudo cp install/litestream.yml', 'npm run test:install does it'],
  ['install/README.md', 'sudo systemctl stop', 'it needs Litestream; rebind has its own tests'],
  ['install/README.md', 'sudo install/install_vegeta.sh', 'it writes into /usr/local'],
  ['install/README.md', 'vagrant up', 'it needs a hypervisor; test/install/units.test.ts validates the Vagrantfile'],
  ['plugins/README.md', 'import { definePlugin', 'plugins.test.ts loads it'],
  ['plugins/README.md', 'PLUGINS=./poll.ts', 'plugins.test.ts runs all three lines'],
  ['plugins/tickets/README.md', 'npm run rebind -- /srv', 'plugins/tickets/test/end-to-end.test.ts runs it'],
  ['plugins/tickets/README.md', 'npm run rebind -- --embedded', 'plugins/tickets/test/end-to-end.test.ts runs it'],
  ['vegeta/README.md', '33000 requests', 'what the command above it prints'],
]

/** Blocks that have to fail, and how. */
const failing: ReadonlyArray<readonly [document: string, begins: string, status: number]> = [
  ['docs/operations.md', 'curl https://', 35],
]

/** What is written otherwise here. Each must be found somewhere. */
interface Place {
  readonly dir: string
  readonly port: number
  readonly pagePort: number
  readonly redis: string
  readonly otherRedis: string
}
const replaced: ReadonlyArray<readonly [from: RegExp, to: (place: Place) => string]> = [
  // Somebody may listen on the standard ports.
  [/127\.0\.0\.1:3333/g, ({ port }) => `127.0.0.1:${port}`],
  [/127\.0\.0\.1:3334/g, ({ pagePort }) => `127.0.0.1:${pagePort}`],
  [/(?<=npm run targets -- 9000 127\.0\.0\.1)$/gm, ({ port }) => `:${port}`],
  [/redis:\/\/127\.0\.0\.1:6379/g, ({ redis }) => redis],
  // Other machines.
  [/redis:\/\/10\.0\.0\.5/g, ({ otherRedis }) => otherRedis],
  [/HOST=0\.0\.0\.0/g, () => 'HOST=127.0.0.1'],
  [/\/srv\/numbers\.db|\/tmp\/numbers-copy\.db/g, ({ dir }) => join(dir, 'elsewhere.db')],
  // Packages are linked, and quickstart.test.ts installs them; vegeta/test/kit.ts installs Vegeta.
  [/npm ci && /g, () => ''],
  [/^install\/install_vegeta\.sh$/gm, () => ':'],
  // Seconds instead of minutes.
  [/-duration=10s/g, () => '-duration=1s'],
  [/^vegeta\/(?:sane|insane|ludicrous)\.sh$/gm, () => '$& --duration 1s'],
]

/** What goes on until it is stopped, and what it says when it can be used. */
const lasting: ReadonlyArray<readonly [command: RegExp, ready: RegExp]> = [
  [/\bnpm start$/, /try: curl/],
  [/\bnpm run web\b/, /listens on/],
  [/\bnpm run consumer\b/, /consuming from/],
]

/** All documents that are this project's own. */
const documents = spawnSync('git', ['ls-files', '--cached', '--others', '--exclude-standard', '*.md'],
  { cwd: root, encoding: 'utf8' }).stdout.split('\n').filter((name) => name !== '')

function blocksOf (document: string): Block[] {
  const lines = readFileSync(join(root, document), 'utf8').split('\n')
  const blocks: Block[] = []
  for (let i = 0; i < lines.length; i++) {
    const [, language] = /^```(\w*)$/.exec(lines[i]!) ?? []
    if (language !== undefined) {
      const end = lines.indexOf('```', i + 1)
      blocks.push({ document, line: i + 1, language, text: lines.slice(i + 1, end).join('\n') })
      i = end
    } else if (/^ {4}\S/.test(lines[i]!) && (i === 0 || lines[i - 1] === '')) {
      let end = i
      while (lines[end]?.startsWith('    ') === true ||
        (lines[end] === '' && lines[end + 1]?.startsWith('    ') === true)) {
        end++
      }
      blocks.push({
        document,
        line: i + 1,
        language: '',
        text: lines.slice(i, end).map((line) => line.slice(4)).join('\n'),
      })
      i = end
    }
  }
  return blocks
}

/** The entry of a list that speaks of a block. */
function entryOf<T extends readonly [document: string, begins: string, unknown]> (list: readonly T[], block: Block): T |
  undefined {
  return list.find(([document, begins]) => document === block.document && block.text.startsWith(begins))
}

const all = documents.flatMap(blocksOf)
/** Rows of --help, which documents.test.ts compares with it. */
const settingsTable = /^ {2}[A-Z_]+ {2}/
const run = all.filter((block) => entryOf(notRun, block) === undefined && !settingsTable.test(block.text))

/**
 * A working tree as a clone of this one would be, uncommitted changes included, with the packages that are installed
 * here.
 */
function copyRepository (): string {
  const { stdout } = spawnSync('git', ['ls-files', '-z', '--cached', '--others', '--exclude-standard'],
    { cwd: root, encoding: 'utf8' })
  const copy = join(temporaryDir(), 'gearbox')
  for (const path of stdout.split('\0').filter((path) => path !== '' && existsSync(join(root, path)))) {
    mkdirSync(dirname(join(copy, path)), { recursive: true })
    cpSync(join(root, path), join(copy, path))
  }
  const [from, to] = [join(root, 'node_modules'), join(copy, 'node_modules')]
  mkdirSync(join(to, '@gearbox'), { recursive: true })
  for (const name of readdirSync(from)) if (name !== '@gearbox') symlinkSync(join(from, name), join(to, name))
  for (const name of readdirSync(join(from, '@gearbox'))) {
    const path = ['apps', 'packages', 'plugins'].map((dir) => join(copy, dir, name)).find((path) => existsSync(path))
    if (path !== undefined) symlinkSync(path, join(to, '@gearbox', name))
  }
  return copy
}

/** Somebody who does what a document says, in their own directory and terminals. */
class Reader {
  readonly #place: Place
  #programs: Program[] = []
  #page: Page | undefined
  /** All that was printed. */
  output = ''

  constructor (place: Place) {
    this.#place = place
    // The target that is shipped names the standard port.
    const targets = join(place.dir, 'vegeta/targets.txt')
    writeFileSync(targets, readFileSync(targets, 'utf8').replace(':3333', `:${place.port}`))
    // A 4xx is nothing that a document would ask for.
    writeFileSync(join(place.dir, '..', 'terminal'),
      'curl () { case " $* " in *" --fail "*) ;; *) set -- --fail-with-body "$@" ;; esac; command curl --silent ' +
        '--show-error --max-time 10 "$@"; }\n')
  }

  async follow (block: Block): Promise<void> {
    if (block.language === 'js') await this.#runInPage(block)
    else if (block.language === 'html') await this.#showAndClick(block)
    else if (block.language === 'javascript') await this.#runProgram('node --input-type=module', block)
    else if (block.language === 'python') await this.#runProgram('python3 -', block)
    else await this.#runShell(block)
  }

  /** Ctrl-C in every terminal: the workers first, so that the consumer still stores what they flush. */
  async stop (): Promise<void> {
    for (const program of this.#programs.splice(0).reverse()) {
      program.killGroup('SIGINT')
      expect(await program.exited, program.output).toBe(0)
    }
  }

  #here (text: string): string {
    return replaced.reduce((text, [from, to]) => text.replace(from, to(this.#place)), text)
  }

  async #runShell (block: Block): Promise<void> {
    const lines = this.#here(block.text).split('\n').map((line) => line.replace(/\s+# .*$/, ''))
    const isLasting = (line: string): boolean => lasting.some(([command]) => command.test(line))
    // Another way to run it takes the place of the one before.
    if (lines.some(isLasting)) await this.stop()
    let commands: string[] = []
    for (const line of [...lines, undefined]) {
      if (line !== undefined && !isLasting(line)) {
        commands.push(line)
        continue
      }
      if (commands.join('').trim() !== '') await this.#runCommands(commands.join('\n'), block)
      commands = []
      if (line !== undefined) await this.#start(line)
    }
  }

  async #start (command: string): Promise<void> {
    const program = new Program('bash', ['-c', command], this.#env, { cwd: this.#place.dir, detached: true })
    onTestFinished(async () => { await program.end() })
    this.#programs.push(program)
    await program.printed(lasting.find(([pattern]) => pattern.test(command))![1])
  }

  /** In the terminal that is not taken: what it exported stays. */
  async #runCommands (commands: string, block: Block): Promise<void> {
    const program = new Program('bash',
      ['-e', '-o', 'pipefail', '-c', `. ../terminal; trap 'export -p >>../terminal' EXIT\n${commands}`], this.#env,
      { cwd: this.#place.dir, detached: true })
    onTestFinished(async () => { await program.end() })
    const status = await program.exited
    expect(status,
      `${block.document}, line ${block.line}:\n${commands}\n${program.output}`).toBe(entryOf(failing, block)?.[2] ?? 0)
    this.output += program.output
  }

  /** In a page of another origin than Gearbox's. */
  async #runInPage (block: Block): Promise<void> {
    this.#page ??= await openPage(this.#place.pagePort, (text) => { this.output += `${text}\n` })
    await this.#page.evaluate(`(async () => { ${this.#here(block.text)} })()`)
  }

  /** A program that a command reads from its standard input. */
  async #runProgram (command: string, block: Block): Promise<void> {
    await this.#runCommands(`${command} <<'END'\n${this.#here(block.text)}\nEND`, block)
  }

  /** Shows a document in a page of another origin than Gearbox's, and clicks its button. */
  async #showAndClick (block: Block): Promise<void> {
    this.#page ??= await openPage(this.#place.pagePort, (text) => { this.output += `${text}\n` })
    await this.#page.setContent(this.#here(block.text))
    const reply = this.#page.waitForResponse(/\/increment$/)
    await this.#page.click('button')
    this.output += `clicked: ${(await reply).status()}\n`
  }

  get #env (): NodeJS.ProcessEnv {
    return {
      PORT: String(this.#place.port),
      npm_config_update_notifier: 'false',
      PATH: [dirname(process.execPath), process.env.PATH].join(delimiter),
    }
  }
}

/** An empty page in a real browser. @param said called with what it logs */
async function openPage (port: number, said: (text: string) => void): Promise<Page> {
  const server = createServer((_request, response) => {
    response.setHeader('content-type',
      'text/html').end('<title>a page</title>')
  })
  await new Promise<void>((resolve) => server.listen(port, '127.0.0.1', resolve))
  onTestFinished(() => { server.close() })
  const browser = await chromium.launch({
    executablePath: findProgram('chromium')!,
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
      '--disable-background-networking'],
  })
  onTestFinished(async () => { await browser.close() })
  const page = await browser.newPage()
  page.on('console', (message) => said(message.text()))
  await page.goto(`http://127.0.0.1:${port}/`)
  return page
}

/** What a document's commands must have printed by its end. */
const printed: { readonly [document: string]: readonly RegExp[] } = {
  'README.md': [/^\{"key":"foo","total":4\}/m, /bar\|-2\nfoo\|4$/m, /^204\n204$/m, /^clicked: 204$/m],
  'docs/http.md': [/\{"key":"a\/b","total":7\}/, /"total":"5"/],
  'docs/checking.md': [/every total is exact/, /all of it adds up/],
  'vegeta/README.md': [/^test1\|\d+$/m, /^1 keys: every total is exact$/m,
    /^\d+ requests \(204: \d+\): \d+ counted, 0 not counted, 0 may have been\n90\d\d keys: every total is exact$/m],
  'docs/redis.md': [/^p%40ss%2Fword%231$/m],
  'docs/browsers.md': [/^3$/m, /415/],
  'docs/operations.md': [/all of it adds up/, /nothing was rejected/, /\{"status":"ok"\}/, /^0$/m,
    /wrong version number/,
    /^cafe?[^|]*\|63616665CC81\|1\n.*\|636166C3A9\|1$/m],
}

/** What it must have counted. */
const counted: { readonly [document: string]: string } = {
  'README.md': 'bar|-6\nclicks|1\nfoo|7\n',
  // Nothing of the string.
  'docs/browsers.md': 'clicks|2\nleaves|1\norders|1\npage view|1\n',
}

beforeAll(requireVegeta, installTimeoutMs)

let redis: RedisServer | undefined
let otherRedis: RedisServer | undefined
beforeAll(async () => { [redis, otherRedis] = await Promise.all([RedisServer.start(), RedisServer.start()]) })
afterAll(async () => { await Promise.all([redis?.stop(), otherRedis?.stop()]) })

test('what is not run, failing or replaced is there', () => {
  for (const list of [notRun, failing]) {
    for (const entry of list) {
      expect(all.filter((block) => entryOf<readonly [string, string, unknown]>([entry], block)).length,
        entry.slice(0, 2).join(': ')).toBe(1)
    }
  }
  for (const [from] of replaced) {
    expect(run.filter(({ text }) => text.search(from) !== -1).length, String(from)).toBeGreaterThan(0)
  }
  expect(run.filter(({ language }) => !['', 'sh', 'js', 'javascript', 'python', 'html'].includes(language))).toEqual([])
  expect(Object.keys({ ...printed, ...counted })
    .filter((document) => !run.some((block) => block.document === document))).toEqual([])
})

test.each([...new Set(run.map(({ document }) => document))])('%s, block after block',
  { timeout: 300_000 }, async (document) => {
    const dir = copyRepository()
    const place = {
      dir,
      port: await freePort(),
      pagePort: await freePort(),
      redis: redis!.url,
      otherRedis: otherRedis!.url,
    }
    const reader = new Reader(place)
    for (const block of run.filter((block) => block.document === document)) await reader.follow(block)
    await reader.stop()
    for (const pattern of printed[document] ?? []) expect(reader.output).toMatch(pattern)
    const totals = counted[document]
    if (totals !== undefined) {
      expect(spawnSync('sqlite3', [join(dir, 'data/numbers.db'), 'select * from numbers'], { encoding: 'utf8' }).stdout)
        .toBe(totals)
    }
  })
