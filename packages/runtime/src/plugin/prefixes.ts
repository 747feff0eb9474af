// Which names a plugin can't have: its variables would be those of Gearbox, of the system or of another plugin, its
// tables or metrics those of Gearbox.
import { variables } from '../config.ts'

/** What Gearbox's own tables and metrics begin with, and what SQLite keeps for itself. */
const ofGearbox = [
  'answered', 'batches', 'check', 'core', 'corrections', 'embedded', 'gaps', 'gearbox', 'help', 'increments',
  'keys', 'lag', 'meta', 'numbers', 'once', 'part', 'process', 'producer', 'producers', 'push', 'requests',
  'results', 'sequence', 'set', 'sqlite', 'totals', 'window', 'workers',
]

/** What variables of shells, Node, npm, service managers, containers and their platforms begin with. */
const ofOthers = [
  'all', 'appdata', 'aws', 'azure', 'bash', 'browser', 'bun', 'cache', 'ci', 'color', 'colorterm', 'columns',
  'configuration', 'container', 'credentials', 'dbus', 'debian', 'debug', 'deno', 'dev', 'display', 'docker', 'dyld',
  'dyno', 'editor', 'env', 'fly', 'force', 'ftp', 'gcp', 'git', 'github', 'gitlab', 'glibc', 'google', 'heroku', 'home',
  'hostname', 'http', 'https', 'ifs', 'init', 'invocation', 'jemalloc', 'journal', 'kubernetes', 'lang', 'language',
  'lc', 'ld', 'less', 'lines', 'listen', 'logname', 'logs', 'ls', 'mail', 'malloc', 'memory', 'mode', 'no', 'node',
  'nomad', 'notify', 'npm', 'nvm', 'oldpwd', 'openssl', 'os', 'otel', 'pager', 'path', 'pid', 'pm2', 'pnpm', 'prod',
  'ps1', 'ps2', 'ps4', 'pwd', 'railway', 'remote', 'render', 'runtime', 'secret', 'service', 'shell', 'shlvl', 'ssh',
  'ssl', 'state', 'sudo', 'systemd', 'temp', 'term', 'test', 'tmp', 'tmpdir', 'tmux', 'tz', 'user', 'username', 'uv',
  'vercel', 'vitest', 'volta', 'watchdog', 'xdg', 'yarn',
]

/** The prefix of a plugin's variables: `MY_PLUGIN` of `my-plugin`. */
export function prefixOf (name: string): string {
  return name.replaceAll('-', '_').toUpperCase()
}

/** Whether a variable is the prefix itself or begins with it. */
export function hasPrefix (variable: string, prefix: string): boolean {
  return variable === prefix || variable.startsWith(`${prefix}_`)
}

/** Whether a prefix is in use. @returns by whom, to complete "its prefix NAME_ is …" */
export function ownerOf (name: string): string | undefined {
  const first = name.split('-', 1)[0]!
  const isFirst = (variable: string): boolean => variable.split('_', 1)[0] === first.toUpperCase()
  if (variables.some(isFirst) || ofGearbox.includes(first)) return "Gearbox's own"
  return ofOthers.includes(first) ? "other programs'" : undefined
}
