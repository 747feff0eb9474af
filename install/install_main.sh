#!/usr/bin/env bash
# Installs Gearbox from this checkout as systemd services, or upgrades what is installed. Running it again is the way to upgrade:
# data and configuration stay as they are, and the parts are restarted one after the other while the port stays open.
set -euo pipefail

usage () {
  cat <<'EOF'
usage: sudo install/install_main.sh [OPTION]...

  --web-workers N    web workers that share the port (default: as many as before; at first cores - 1, at least 1)
  --no-start         install only; start with: systemctl start gearbox.target

Only for the first installation; afterwards edit /etc/gearbox/gearbox.env:
  --host ADDRESS     address to listen on (default: 127.0.0.1, for a front on this machine; 0.0.0.0 for everybody)
  --port N           (default: 3333)
  --redis-port N     port of Gearbox's own Redis, on this machine only (default: 6390)
  --metrics-port N   port of the consumer's /metrics (default: 3334); web worker N has its own on the N-th port after it

Code goes to /usr/local/gearbox, data to /var/local/gearbox, configuration to /etc/gearbox.
EOF
}

readonly code=/usr/local/gearbox
readonly data=/var/local/gearbox
readonly conf=/etc/gearbox
readonly units=/etc/systemd/system
readonly parts=(gearbox.target gearbox-redis.service gearbox-consumer.service gearbox-web@.service gearbox-litestream.service)

host=127.0.0.1
port=3333
redis_port=6390
metrics_port=3334
web_workers=
start=yes

say () { echo "gearbox: $*"; }
die () { echo "gearbox: $*" >&2; exit 1; }

main () {
  read_options "$@"
  source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  check_needs
  add_user
  install_code
  write_configuration
  check_paths
  install_units
  if [ "$start" = no ]; then
    say 'installed; start it with: systemctl start gearbox.target'
  elif ! [ -d /run/systemd/system ]; then
    say 'installed; systemd does not run here, so nothing was started'
  else
    start_parts
  fi
  rm -rf "$code.old"
}

read_options () {
  while [ $# -gt 0 ]; do
    case "$1" in
      -h | --help) usage; exit 0 ;;
      --no-start) start=no; shift; continue ;;
      --host | --port | --redis-port | --metrics-port | --web-workers) [ $# -ge 2 ] || { usage >&2; exit 64; } ;;
      *) usage >&2; exit 64 ;;
    esac
    case "$1" in
      --host) host=$2 ;;
      --port) port=$(number "$1" "$2") ;;
      --redis-port) redis_port=$(number "$1" "$2") ;;
      --metrics-port) metrics_port=$(number "$1" "$2") ;;
      --web-workers)
        web_workers=$(number "$1" "$2")
        [ "$web_workers" -le 256 ] || die '--web-workers must be at most 256'
        ;;
    esac
    shift 2
  done
}

number () {
  [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || die "$1 must be a number, not $2"
  echo "$2"
}

check_needs () {
  [ "$(id -u)" = 0 ] || die 'services can only be installed by root: sudo install/install_main.sh'
  local program
  for program in npm redis-server systemctl useradd tar; do
    command -v "$program" >/dev/null || die "there is no $program. On Ubuntu and Debian: sudo install/install_ubuntu.sh"
  done
}

add_user () {
  if ! getent passwd gearbox >/dev/null; then
    useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin gearbox
    say 'added the user gearbox'
  fi
  install -d -m 0750 -o root -g gearbox "$data"
  install -d -m 0750 -o gearbox -g gearbox "$data/sqlite" "$data/redis" "$data/backup"
}

# Made next to the place where it belongs and moved there when it is whole: an npm ci that fails changes nothing.
install_code () {
  rm -rf "$code.new"
  mkdir -p "$code.new"
  tar -C "$source" -cf - --exclude=node_modules --exclude=test \
    apps bin packages plugins install package.json package-lock.json .npmrc docs README.md DESIGN.md SECURITY.md CONTRIBUTING.md CHANGELOG.md LICENSE | tar -C "$code.new" -xf - --no-same-owner
  say 'installing the packages of the lockfile'
  (
    cd "$code.new"
    npm ci --omit=dev
    # npm 9 takes the link to the lockfile's Node away again together with the Nodes for other machines that it did not install.
    [ -x node_modules/.bin/node ] || npm rebuild
  )
  local node
  node=$("$code.new/node_modules/.bin/node" --version) || die 'the lockfile brought no Node for this machine: Linux on x64 or arm64 with glibc is needed'
  chmod -R u=rwX,go=rX "$code.new"
  rm -rf "$code.old"
  if [ -d "$code" ]; then mv "$code" "$code.old"; fi
  mv "$code.new" "$code"
  install -D -m 0755 "$code/install/gearbox" /usr/local/bin/gearbox
  say "code is in $code, with Node $node"
}

write_configuration () {
  install -d -m 0750 -o root -g gearbox "$conf"
  if [ -e "$conf/gearbox.env" ] && [ -e "$conf/redis.conf" ]; then
    say "configuration in $conf stays as it is"
    return
  fi
  local password
  password=$(od -An -N 24 -tx1 /dev/urandom | tr -d ' \n')
  # A configuration of the Redis that is kept knows its port and password.
  if [ -e "$conf/redis.conf" ]; then
    redis_port=$(sed -n 's/^port //p' "$conf/redis.conf")
    password=$(sed -n 's/^requirepass //p' "$conf/redis.conf")
  fi
  local name
  for name in redis.conf gearbox.env; do
    [ -e "$conf/$name" ] && continue
    (
      umask 0137
      sed -e "s/@HOST@/$host/; s/@PORT@/$port/; s/@REDIS_PORT@/$redis_port/; s/@METRICS_PORT@/$metrics_port/; s/@REDIS_PASSWORD@/$password/" \
        "$code/install/$name" >"$conf/$name.new"
    )
    chgrp gearbox "$conf/$name.new"
    mv "$conf/$name.new" "$conf/$name"
    say "wrote $conf/$name"
  done
}

# The units may write nowhere else, so a path elsewhere fails only when something is written there.
check_paths () {
  local name path
  for name in DATABASE_PATH UNSENT_DIR; do
    path=$(setting "$name")
    case "$path" in
      '' | "$data"/sqlite/*) ;;
      *) say "$name is $path, which the units may not write unless a ReadWritePaths of yours allows it: $conf/gearbox.env says how" ;;
    esac
  done
}

install_units () {
  local unit
  for unit in "${parts[@]}"; do install -m 0644 "$code/install/systemd/$unit" "$units/$unit"; done
  install -D -m 0644 "$code/install/limits/90-gearbox.conf" /etc/security/limits.d/90-gearbox.conf
  install -D -m 0644 "$code/install/sysctl/90-gearbox.conf" /etc/sysctl.d/90-gearbox.conf
  if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    if ! [ -w /proc/sys/vm/overcommit_memory ] || ! /lib/systemd/systemd-sysctl /etc/sysctl.d/90-gearbox.conf; then
      say 'the kernel settings of /etc/sysctl.d/90-gearbox.conf could not be made here (a container?): make them on the host'
    fi
  fi
  local before
  before=$(enabled_workers)
  web_workers=${web_workers:-${before:-$(default_workers)}}
  check_ports
  local i
  for ((i = web_workers + 1; i <= ${before:-0}; i++)); do
    systemctl disable --quiet "gearbox-web@$i.service"
    if [ -d /run/systemd/system ]; then systemctl stop "gearbox-web@$i.service"; fi
  done
  systemctl enable --quiet gearbox.target gearbox-redis.service gearbox-consumer.service
  for ((i = 1; i <= web_workers; i++)); do systemctl enable --quiet "gearbox-web@$i.service"; done
}

# Web worker N serves its /metrics on METRICS_PORT + N: none of these may be a port of something else.
check_ports () {
  local metrics taken
  metrics=$(setting METRICS_PORT)
  [[ $metrics =~ ^[1-9][0-9]*$ ]] || return 0
  for taken in "$(setting PORT)" "$(sed -n 's/^port //p' "$conf/redis.conf")" 65536; do
    if [ "$taken" -gt "$metrics" ] && [ "$taken" -le $((metrics + web_workers)) ]; then
      die "METRICS_PORT in $conf/gearbox.env must be one with $web_workers free ports after it, for the web workers; of $metrics, port $taken is not"
    fi
  done
}

enabled_workers () {
  find "$units" -path '*/gearbox.target.wants/gearbox-web@*.service' | sed 's/.*@\([0-9]*\)\.service/\1/' | sort -n | tail -n 1
}

default_workers () {
  local cores
  cores=$(nproc)
  echo $((cores > 1 ? cores - 1 : 1))
}

# A consumer reads what the workers of the version before have written, so it goes first. Redis goes on: a new redis.conf or
# unit of it counts from its next start.
start_parts () {
  local i
  if systemctl is-active --quiet gearbox-consumer.service; then
    systemctl restart gearbox-consumer.service
    for ((i = 1; i <= web_workers; i++)); do
      if systemctl is-active --quiet "gearbox-web@$i.service"; then
        systemctl restart "gearbox-web@$i.service"
        await_listening "$i"
      fi
    done
  fi
  systemctl start gearbox.target
  for ((i = 1; i <= 60; i++)); do
    if ready; then
      say "listens on $(setting HOST):$(setting PORT), web workers: $web_workers, stores in $(setting DATABASE_PATH)"
      say "try: curl -d 'foo=1&bar=-2&foo=3' http://127.0.0.1:$(setting PORT)$(base_path)/increment"
      return
    fi
    sleep 0.5
  done
  systemctl --no-pager --lines=5 status 'gearbox*' >&2 || true
  die "it does not get ready; journalctl -u 'gearbox*' says why. The code of before, if there was any, is in $code.old"
}

# The next worker stops only when this one listens on the shared port: otherwise there is a moment in which nobody does.
await_listening () {
  local pid port try
  port=$(printf '%04X' "$(setting PORT)")
  for ((try = 0; try < 100; try++)); do
    pid=$(systemctl show -P MainPID "gearbox-web@$1.service")
    # The second field is address and port, state 0A is LISTEN, the tenth field the socket's number (proc_net_tcp in the kernel's documentation).
    if find "/proc/$pid/fd" -lname 'socket:*' -printf '%l\n' 2>/dev/null |
      grep -qxFf <(awk -v port=":$port" '$4 == "0A" && substr($2, length($2) - 4) == port { print "socket:[" $10 "]" }' /proc/net/tcp /proc/net/tcp6 2>/dev/null); then return; fi
    sleep 0.1
  done
}

setting () { sed -n "s/^$1=//p" "$conf/gearbox.env" | tail -n 1; }

base_path () {
  local path
  path=$(setting BASE_PATH)
  echo "${path%/}"
}

ready () {
  systemctl is-active --quiet gearbox-redis.service gearbox-consumer.service || return 1
  local i
  for ((i = 1; i <= web_workers; i++)); do systemctl is-active --quiet "gearbox-web@$i.service" || return 1; done
  local address
  address=$(setting HOST)
  if [ "$address" = 0.0.0.0 ]; then address=127.0.0.1; fi
  "$code/node_modules/.bin/node" -e 'fetch(process.argv[1]).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))' \
    "http://$address:$(setting PORT)$(base_path)/readyz"
}

main "$@"
