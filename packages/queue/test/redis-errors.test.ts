// What is said of a Redis that can't be used: one line, with what to do, and never what was sent to it.
import { ReplyError } from 'ioredis'
import { expect, test } from 'vitest'
import { explainClose, explainRedisError } from '../src/redis/errors.ts'
import { scriptCommands, scripts } from '../src/redis/scripts.ts'

/** An error as ioredis makes it of Redis's reply to a command. */
function replied (message: string, name = 'get', args: readonly unknown[] = ['gearbox:{0}:generation']): Error {
  return Object.assign(new ReplyError(message), { command: { name, args } })
}

function systemError (code: string): Error {
  return Object.assign(new Error(`connect ${code} somewhere`), { code })
}

const login = ['3', 'AUTH', 'default', 's3cret']
const push = [scripts.gearboxPush.lua, '2', 'gearbox:{0}:generation', 'gearbox:{0}:batches', 'x']

test.each<[error: Error, says: RegExp]>([
  [replied('NOAUTH HELLO must be called with the client already authenticated, otherwise …', 'hello', login),
    /wants a password/],
  [replied('WRONGPASS invalid username-password pair or user is disabled.', 'hello', login),
    /password in REDIS_URL is wrong.*percent-encode/],
  [replied('ERR invalid password', 'auth', ['s3cret']), /password in REDIS_URL is wrong/],
  // Of Redis before 6.0, and of proxies.
  [replied('ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `default`, `s3cret`, ', 'hello', login),
    /refused the login/],
  [replied("ERR wrong number of arguments for 'auth' command", 'auth', ['u', 's3cret']), /6\.0 or newer/],
  [replied('ERR AUTH <password> called without any password configured for the default user.', 'auth', ['s3cret']),
    /it has no password, and REDIS_URL has one/],
  [replied('ERR unexpected s3cret', 'hello', login), /refused the login/],
  [replied('ERR DB index is out of range', 'select', ['99']), /no database of the number/],
  [replied('ERR max number of clients reached', 'hello', login), /maxclients/],
  [replied('DENIED Redis is running in protected mode because protected mode is enabled\r\nand no password is set …',
    'hello', login), /protected mode/],
  [replied('LOADING Redis is loading the dataset in memory'), /still loading/],
  [replied("MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk."),
    /its own disk/],
  [replied("OOM command not allowed when used memory > 'maxmemory'. script: b531, on @user_script:1.", 'eval', push),
    /memory is full/],
  [replied("READONLY You can't write against a read only replica. script: b531, on @user_script:1.", 'evalsha', push),
    /replica.*primary/],
  [replied('MOVED 3999 127.0.0.1:6381'), /Cluster/], [replied('CLUSTERDOWN Hash slot not served'), /Cluster/],
  [replied("ERR unknown command 'EVAL', with args beginning with: ", 'eval', push), /does not know the command EVAL/],
  [replied('ERR something new\r\nand more'), /^ERR something new$/],
  [replied(`ERR ${'x'.repeat(500)}`), /^ERR x{96}…$/],
  // 6.x, 7.0, 7.2 and 8.
  [replied("NOPERM this user has no permissions to run the 'info' command or its subcommand", 'info', ['server']),
    /may not run the command INFO; docs\/redis\.md/],
  [replied("NOPERM this user has no permissions to run the 'config|get' command", 'config', ['GET', 'x']),
    /may not run the command CONFIG GET;/],
  [replied("NOPERM User gearbox has no permissions to run the 'rpush' command script: b531, on @user_script:1.",
    'evalsha', push), /may not run the command RPUSH;/],
  [replied("ERR The user executing the script can't run this command or subcommand script: b531, on @user_script:1.",
    'eval', push), /commands of a script \(GET, RPUSH, PUBLISH\)/],
  [replied("NOPERM this user has no permissions to run the 'evalsha' command", 'evalsha', push),
    /may not run the command EVALSHA;/],
  [replied('NOPERM this user has no permissions to access one of the keys used as arguments'), /keys gearbox:\*;/],
  [replied('NOPERM No permissions to access a key', 'evalsha', push), /keys gearbox:\*;/],
  [replied('NOPERM this user has no permissions to access one of the channels used as arguments', 'subscribe',
    ['gearbox:{0}:told']), /channels gearbox:\*;/],
  [replied("ERR The user executing the script can't publish to the channel mentioned in the command script: b531",
    'eval', push), /channels gearbox:\*;/],
  [new Error('Unknown RESP type 72 "H". Please report this.'), /not Redis/],
  [new Error("Socket timeout. Expecting data, but didn't receive any in 2000ms."), /does not answer/],
  [new Error("Stream isn't writeable and enableOfflineQueue options is false"), /^not connected$/],
  [systemError('ECONNREFUSED'), /nothing listens/], [systemError('ENOTFOUND'), /no host of that name/],
  [systemError('ENOENT'), /no such socket/], [systemError('EACCES'), /may not use it/],
  [systemError('DEPTH_ZERO_SELF_SIGNED_CERT'), /certificate.*NODE_EXTRA_CA_CERTS/], [systemError('ECONNRESET'),
    /^the connection was lost/],
])('%s', (error, says) => {
  const reason = explainRedisError(error)
  expect(reason).toMatch(says)
  expect(reason).not.toMatch(/s3cret|[\r\n]/)
})

test('what was never usable is more likely the wrong port', () => {
  for (const code of ['ECONNRESET', 'EPIPE']) {
    expect(explainRedisError(systemError(code), { tls: false, ready: false })).toMatch(/rediss:\/\/.*maxclients/)
  }
  for (const code of ['ETIMEDOUT', 'EPROTO', 'ERR_SSL_WRONG_VERSION_NUMBER']) {
    expect(explainRedisError(systemError(code), { tls: true, ready: false })).toMatch(/no TLS.*redis:\/\//)
  }
  expect(explainClose({ tls: false, ready: false })).toMatch(/rediss:\/\//)
  expect(explainClose({ tls: true, ready: false })).toMatch(/no TLS/)
  expect(explainClose({ tls: true, ready: true })).toBe('the connection was closed')
})

test('the commands of every script are known', () => {
  for (const { lua } of Object.values(scripts)) expect(scriptCommands(lua).length).toBeGreaterThan(0)
  expect(scriptCommands('return 1')).toEqual([])
})
