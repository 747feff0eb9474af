// What is shipped for an administrator, judged by the programs that judge such files: every shell script, the systemd
// units, the kernel settings and the Vagrantfile.
import { spawnSync } from 'node:child_process'
import {
  chmodSync, closeSync, copyFileSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, readSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { expect, test } from 'vitest'
import { root } from '@gearbox/test-kit/gearbox.ts'
import { findProgram } from '@gearbox/test-kit/requirements.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'

/** A test that needs a program, and says so where it is skipped. */
function withProgram (name: string, behaviour: string, check: () => void): void {
  const missing = findProgram(name) === undefined
  test.skipIf(missing)(`${behaviour}${missing ? ` (skipped: there is no ${name})` : ''}`, check)
}

/** A program's exit code and all that it said. */
function run (command: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): {
  status: number |
  null,
  said: string
} {
  const { status, stdout, stderr } = spawnSync(command, args,
    { cwd: root, encoding: 'utf8', env: { ...process.env, ...env } })
  return { status, said: stdout + stderr }
}

/** Every file of this checkout that begins with a shell's #! line. */
function shellScripts (dir = root): string[] {
  return readdirSync(dir, { withFileTypes: true }).flatMap((entry) => {
    const path = join(dir, entry.name)
    if (entry.isDirectory()) {
      return ['node_modules', '.git', '.tmp', 'data'].includes(entry.name) ? [] : shellScripts(path)
    }
    return entry.isFile() && /^#!.*\b(ba|da)?sh\n/.test(firstBytes(path)) ? [path] : []
  })
}

function firstBytes (path: string): string {
  const buffer = Buffer.alloc(64)
  const file = openSync(path, 'r')
  const length = readSync(file, buffer)
  closeSync(file)
  return buffer.toString('latin1', 0, length)
}

withProgram('shellcheck', 'shellcheck finds nothing in any shell script', () => {
  const scripts = shellScripts()
  expect(scripts.map((path) => basename(path)))
    .toEqual(expect.arrayContaining(['run-node', 'install_main.sh', 'gearbox', 'sane.sh', 'install.sh']))
  expect(run('shellcheck', scripts)).toEqual({ status: 0, said: '' })
})

/**
 * The units as they are, with this machine's programs in place of those that are only there once Gearbox is installed.
 */
function unitFiles (): string[] {
  const dir = temporaryDir()
  const shipped = join(root, 'install/systemd')
  return readdirSync(shipped).map((name) => {
    const unit = readFileSync(join(shipped, name), 'utf8')
      .replace('ExecStart=/usr/local/gearbox/node_modules/.bin/node ', () => `ExecStart=${process.execPath} `)
      .replace('ExecStart=/usr/bin/redis-server ', () => `ExecStart=${findProgram('redis-server')} `)
      .replace('ExecStart=/usr/local/gearbox/', () => `ExecStart=${root}/`)
      .replace('ExecStart=litestream ', () => `ExecStart=${process.execPath} `)
    writeFileSync(join(dir, name), unit)
    return join(dir, name)
  })
}

withProgram('systemd-analyze', 'systemd has no complaint about the units', () => {
  expect(run('systemd-analyze', ['verify', '--man=no', ...unitFiles()])).toEqual({ status: 0, said: '' })
})

withProgram('systemd-analyze', 'systemd rates the exposure of each service below 3', () => {
  const services = unitFiles().filter((path) => path.endsWith('.service'))
  expect(services.length).toBe(4)
  for (const service of services) {
    // It knows tenths, times ten.
    const { status, said } = run('systemd-analyze',
      ['security', '--offline=true', '--threshold=29', '--no-pager', service])
    expect(status, said).toBe(0)
  }
})

test('web worker N has METRICS_PORT + N to itself, and an instance that is no number is refused', () => {
  // The script next to a Node that only says what it was given.
  const code = temporaryDir()
  mkdirSync(join(code, 'install'))
  mkdirSync(join(code, 'node_modules/.bin'), { recursive: true })
  copyFileSync(join(root, 'install/web-worker'), join(code, 'install/web-worker'))
  const node = join(code, 'node_modules/.bin/node')
  writeFileSync(node, '#!/bin/sh\necho "$METRICS_PORT $*"\n')
  chmodSync(node, 0o755)
  const start = (instance: string, METRICS_PORT: string): { status: number | null, said: string } =>
    run(join(code, 'install/web-worker'), [instance], { METRICS_PORT })
  for (const [instance, metricsPort, port] of [['1', '3334', '3335'], ['9', '3334', '3343'], ['10', '3334', '3344'],
    ['256', '3334', '3590'], ['2', '', ''], ['2', '0', '0'], ['2', 'x', 'x']] as const) {
    const { status, said } = start(instance, metricsPort)
    expect(said.split(' ')[0], `worker ${instance} of ${metricsPort}`).toBe(port)
    expect(said).toContain(`${join(code, 'bin/gearbox.ts')} web\n`)
    expect(status).toBe(0)
  }
  for (const instance of ['', '0', 'blue', '1x', '-1', '01']) {
    // 78 is what the unit does not start again.
    expect(start(instance, '3334')).toEqual({ status: 78, said: expect.stringContaining(`not "${instance}"`) })
  }
})

test('every kernel setting is one that Linux knows, below its reason', () => {
  const lines = readFileSync(join(root, 'install/sysctl/90-gearbox.conf'), 'utf8').split('\n')
  const settings = lines.flatMap((line, i) => {
    const [, dash, name] = /^(-?)([a-z][\w.]+) = \d/.exec(line) ?? []
    return name === undefined ? [] : [{ name, optional: dash === '-', above: lines[i - 1] }]
  })
  expect(settings.length).toBe(lines.filter((line) => line !== '' && !line.startsWith('#')).length)
  for (const { name, optional, above } of settings) {
    expect(above, name).toMatch(/^# /)
    if (process.platform === 'linux' && !optional) {
      expect(existsSync(join('/proc/sys', ...name.split('.'))), name).toBe(true)
    }
  }
})

withProgram('vagrant', 'vagrant finds the Vagrantfile valid, with each kind of network', () => {
  const home = temporaryDir()
  for (const network of ['forwarded', 'private', 'bridged']) {
    const { status, said } = run('vagrant', ['validate', '--ignore-provider'],
      { VAGRANT_HOME: home, VAGRANT_DOTFILE_PATH: join(home, 'dot'), GEARBOX_NETWORK: network })
    expect(said).toContain('validated successfully')
    expect(status).toBe(0)
  }
  expect(run('vagrant', ['validate', '--ignore-provider'],
    { VAGRANT_HOME: home, VAGRANT_DOTFILE_PATH: join(home, 'dot'), GEARBOX_NETWORK: 'none' }))
    .toMatchObject({
      status: expect.not.toBeOneOf([0]),
      said: expect.stringContaining('network must be forwarded, private or bridged'),
    })
})
