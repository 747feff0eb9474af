#!/usr/bin/env bash
# Installs what Gearbox needs from the distribution: Redis, SQLite's shell, npm with any Node, and a clock that is kept right.
# For Ubuntu 22.04, 24.04, 26.04 and Debian 12, 13. Running it again changes nothing.
set -euo pipefail

usage () {
  cat <<'EOF'
usage: sudo install/install_ubuntu.sh

Installs redis-server, sqlite3, npm (with the distribution's Node, where there is none) and chrony. Then: install/install_main.sh
EOF
}

say () { echo "gearbox: $*"; }
die () { echo "gearbox: $*" >&2; exit 1; }

installed () { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

systemd_runs () { [ -d /run/systemd/system ]; }

main () {
  case "${1:-}" in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 64 ;;
  esac
  [ "$(id -u)" = 0 ] || die 'packages can only be installed by root: sudo install/install_ubuntu.sh'
  command -v apt-get >/dev/null || die 'there is no apt-get here. Install redis-server 6 or newer, sqlite3 and npm 7 or newer yourself, then run install/install_main.sh'
  check_distribution

  local missing=()
  installed ca-certificates || missing+=(ca-certificates)
  command -v redis-server >/dev/null || missing+=(redis-server)
  command -v sqlite3 >/dev/null || missing+=(sqlite3)
  # npm only unpacks what the lockfile names, and that brings the Node that Gearbox runs on. So the distribution's npm does,
  # with whichever Node it depends on, and a Node that somebody installed with its own npm stays what it is.
  command -v npm >/dev/null || missing+=(npm)
  # What is pruned, and what counts as late, goes by the clocks of all machines. Another program may keep this one's already.
  installed chrony || installed ntpsec || installed ntp || missing+=(chrony)

  if [ "${#missing[@]}" = 0 ]; then
    say 'all packages are installed'
  else
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  fi
  # The package starts a Redis on port 6379. Gearbox has one of its own; one that was here before is somebody's.
  if [[ " ${missing[*]} " == *' redis-server '* ]] && systemd_runs; then
    systemctl disable --now --quiet redis-server.service
    say "the package's own Redis on port 6379 is disabled, as nobody used it yet; Gearbox starts another one"
  fi
  say "Redis $(redis-server --version | sed 's/.* v=\([^ ]*\).*/\1/'), SQLite $(sqlite3 --version | cut -d ' ' -f 1), npm $(npm --version 2>/dev/null)"
  say 'next: sudo install/install_main.sh'
}

check_distribution () {
  local id version
  id=$(sed -n 's/^ID=//p' /etc/os-release | tr -d '"')
  version=$(sed -n 's/^VERSION_ID=//p' /etc/os-release | tr -d '"')
  case "$id $version" in
    'ubuntu 22.04' | 'ubuntu 24.04' | 'ubuntu 26.04' | 'debian 12' | 'debian 13') ;;
    *) say "this is $id $version, where nobody has tried this; going on" ;;
  esac
}

main "$@"
