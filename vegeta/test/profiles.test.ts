// The profiles, each in a short attack on the product as `npm start` runs it, with totals that are exact afterwards.
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { beforeAll, expect, test } from 'vitest'
import { readTotals, root } from '@gearbox/test-kit/gearbox.ts'
import { temporaryDir } from '@gearbox/test-kit/temporary.ts'
import { createTargets, installTimeoutMs, requireVegeta, run, startProduct, succeed, verify } from './kit.ts'

beforeAll(requireVegeta, installTimeoutMs)

test.each([
  { profile: 'sane', format: 'json', rate: '-rate=1100/s' },
  { profile: 'insane', format: 'http', rate: '-rate=9000/s -max-workers=2000' },
  { profile: 'ludicrous', format: 'json', rate: '-rate=0 -workers=1024 -max-workers=1024' },
])('the $profile profile leaves exact totals and its reports', async ({ profile, format, rate }) => {
  const product = await startProduct()
  const targets = join(product.dir, 'targets')
  await createTargets('700', product.host, '--format', format, '--pairs', '2', '--keys', '300', '--out', targets)
  const dir = join(product.dir, 'out', profile)
  const output = await succeed(`vegeta/${profile}.sh`, ['--targets', targets, '--duration', '1s', '--dir', dir])
  expect(output).toContain(`+ vegeta attack -name=${profile} -format=${format} -targets=${targets} ${rate} ` +
    `-duration=1s -output=${dir}/results.bin\n`)
  expect(readFileSync(join(dir, 'report.txt'), 'utf8')).toMatch(/^Requests +\[total, rate, throughput\]/)
  expect(readFileSync(join(dir, 'histogram.txt'), 'utf8')).toMatch(/^Bucket/)
  expect(readFileSync(join(dir, 'plot.html'), 'utf8')).toContain(`<title>${profile}</title>`)

  const verified = await verify(join(dir, 'results.bin'), product.databasePath, '--targets', targets, '--url',
    product.url)
  expect(verified.output).toContain('every total is')
  expect(verified.code).toBe(0)
})

test('the simple check: one target, and a total of as many as were sent', async () => {
  expect(readFileSync(join(root, 'vegeta/testbody'), 'latin1')).toBe('key=test1&value=1')
  const product = await startProduct()
  const results = join(product.dir, 'results.bin')
  // The file names port 3333, where somebody may be at work.
  await succeed('vegeta',
    ['attack', '-targets=vegeta/targets.txt', `-connect-to=127.0.0.1:3333:${product.host}`, '-rate=1100',
      '-duration=1s', `-output=${results}`])
  const { code, output } = await verify(results, product.databasePath, '--targets', 'vegeta/targets.txt', '--url',
    product.url)
  // On a busy machine Vegeta's time is up before its last request.
  const [, sent] =
    /^(\d+) requests \(204: \1\): \1 counted, 0 not counted, 0 may have been\n1 keys: every total is exact\n$/.exec(
      output
    ) ?? []
  expect(Number(sent), output).toBeGreaterThan(900)
  expect(code).toBe(0)
  expect(readTotals(product.databasePath)).toEqual(new Map([['test1', BigInt(sent ?? 0)]]))
})

test('options after -- are Vegeta\'s, and win over the profile', async () => {
  const product = await startProduct()
  const targets = join(product.dir, 'targets.json')
  await createTargets('90', product.host, '--out', targets)
  const dir = join(product.dir, 'out')
  const output = await succeed('vegeta/ludicrous.sh',
    ['--targets', targets, '--dir', dir, '--', '-lazy', '-duration=0'])
  expect(output).toContain(`-duration=30s -output=${dir}/results.bin -lazy -duration=0\n`)
  expect(await verify(join(dir, 'results.bin'), product.databasePath, '--targets', targets, '--url', product.url))
    .toMatchObject({ code: 0, output: expect.stringContaining('90 requests (204: 90)') })
})

test('a profile without targets, or with an unknown option, says what to do', async () => {
  expect(await run('vegeta/sane.sh', ['--targets', join(temporaryDir(), 'none')]))
    .toMatchObject({ code: 2, output: expect.stringContaining('npm run targets -- 9000 127.0.0.1') })
  expect(await run('vegeta/sane.sh', ['--rate=3']))
    .toMatchObject({ code: 2, output: expect.stringContaining('go after --') })
  expect(await run('vegeta/sane.sh', ['--help']))
    .toMatchObject({ code: 0, output: expect.stringContaining('usage: vegeta/PROFILE.sh') })
})
