#!/usr/bin/env bash
# The scripts of install/ on a fresh system: installs an older release from nothing, counts, upgrades under load, uninstalls,
# reinstalls, purges.
# The system is made by debootstrap in a directory and booted by systemd-nspawn, so that systemd runs the units with all their
# settings. Where it can't be booted, it is entered by chroot and the units' commands are started by hand.
set -euo pipefail

usage () {
  cat <<'EOF'
usage: sudo npm run test:install [-- OPTION...]

  --suite NAME    bookworm (default), trixie, jammy, noble, …
  --base DIR      copy this system instead of making one with debootstrap
  --chroot        don't boot
  --logs          show all that the scripts say
EOF
}

suite=bookworm
base=
mode=boot
logs=no
while [ $# -gt 0 ]; do
  case "$1" in
    --suite) suite=$2; shift 2 ;;
    --base) base=$2; shift 2 ;;
    --chroot) mode=chroot; shift ;;
    --logs) logs=yes; shift ;;
    *) usage; [ "$1" = --help ] && exit 0; exit 64 ;;
  esac
done

skip () { echo "skipped: $*"; exit 0; }
[ "$(id -u)" = 0 ] || skip 'only root can make and enter a system in a directory'
command -v debootstrap >/dev/null || [ -n "$base" ] || skip 'there is no debootstrap (apt-get install debootstrap systemd-container)'
command -v systemd-nspawn >/dev/null || mode=chroot

source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
dir=$(mktemp -d /var/tmp/gearbox-install-XXXXXX)
root=$dir/root
log=$dir/log
nspawn=
leader=
made=no
finished=no
declare -A running=()

cleanup () {
  local status=$?
  trap - EXIT
  trap '' INT TERM HUP
  set +e
  # A signal that ends this script leaves the status of whatever came before.
  if [ "$finished" = no ] && [ "$made" = no ] && [ "$status" = 1 ]; then
    tail -n 5 "$log"
    echo 'skipped: no system can be made and entered here'
    status=0
  elif [ "$finished" = no ]; then
    [ "$status" != 0 ] || status=1
    echo "FAILED: $step"
    tail -n 40 "$log"
    [ -n "$leader" ] && inside journalctl --no-pager -n 60 -u 'gearbox*'
  fi
  # Where this script alone was interrupted, its debootstrap or load goes on.
  local started
  mapfile -t started < <(descendants $$)
  kill "${started[@]}" 2>/dev/null
  await_end 100 "${started[@]}"
  # And what it made nobody's children.
  mapfile -t -O "${#started[@]}" started < <(find /proc -maxdepth 2 -path '/proc/[0-9]*/root' -lname "$root" 2>/dev/null | cut -d / -f 3)
  kill -KILL "${started[@]}" 2>/dev/null
  await_end 100 "${started[@]}"
  if [ -n "$nspawn" ]; then
    # Its init takes SIGRTMIN+4 for "power off". Once that is gone, so is everything in there.
    [ -n "$leader" ] && kill -s RTMIN+4 "$leader"
    await_end 100 "$nspawn"
    # shellcheck disable=SC2086
    kill -KILL "$nspawn" $leader 2>/dev/null
    # shellcheck disable=SC2086
    await_end 300 "$nspawn" $leader
  fi
  wait
  unmount
  # A mount that is left must not be emptied.
  if grep -q " $dir/" /proc/mounts; then echo "still mounted below $dir: it stays"; else rm -rf "$dir"; fi
  exit "$status"
}

unmount () {
  awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do umount "$mount" || umount -l "$mount"; done
}

# All that this script has started, but for the booted system, which is stopped from inside.
descendants () {
  local child
  for child in $(pgrep -P "$1"); do
    if [ "$child" != "$nspawn" ] && [ "$child" != "$BASHPID" ]; then
      echo "$child"
      descendants "$child"
    fi
  done
}

# await_end TENTHS PID...: until none of them runs.
await_end () {
  local tenths=$1
  shift
  while [ "$tenths" -gt 0 ] && kill -0 "$@" 2>/dev/null; do
    sleep 0.1
    tenths=$((tenths - 1))
  done
}

step='preparing'
begin () {
  step=$1
  printf '%4d s  %s\n' "$SECONDS" "$step"
}

fail () { echo "$step: $*" >>"$log"; exit 1; }

# Of this host's npm settings only what is needed to reach a registry, and none of its credentials.
environment () {
  local name value
  echo "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
  echo 'HOME=/root'
  echo 'LC_ALL=C.UTF-8'
  for name in http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
    [ -n "${!name:-}" ] && echo "$name=${!name}"
  done
  for name in registry proxy https-proxy noproxy; do
    value=$(npm config get "$name" 2>/dev/null || true)
    case "$value" in '' | null | undefined) ;; *) echo "npm_config_${name//-/_}=$value" ;; esac
  done
  echo 'npm_config_cafile=/etc/ssl/certs/ca-certificates.crt'
}

make_system () {
  if [ -n "$base" ]; then
    cp -a "$base" "$root"
  else
    local from=()
    case "$suite" in
      bookworm | trixie) ;;
      # All releases of Ubuntu have one script, and a debootstrap knows the names of those before it only.
      *) from=(http://archive.ubuntu.com/ubuntu /usr/share/debootstrap/scripts/gutsy) ;;
    esac
    debootstrap --variant=minbase --include=ca-certificates,systemd,systemd-sysv,dbus "$suite" "$root" "${from[@]}" >>"$log" 2>&1
  fi
  case "$suite" in
    bookworm | trixie)
      cat >"$root/etc/apt/sources.list" <<EOF
deb http://deb.debian.org/debian $suite main
deb http://deb.debian.org/debian-security $suite-security main
EOF
      ;;
    *)
      cat >"$root/etc/apt/sources.list" <<EOF
deb http://archive.ubuntu.com/ubuntu $suite main universe
deb http://archive.ubuntu.com/ubuntu $suite-updates main universe
EOF
      ;;
  esac
  # What this host takes to reach the network, the new system needs as well.
  rm -f "$root/etc/resolv.conf"
  cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
  if [ -e /etc/ssl/certs/ca-certificates.crt ]; then cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"; fi
  mkdir "$root/checkout"
  tar -C "$source" -cf - --exclude=node_modules --exclude=.git --exclude=.tmp --exclude=data . | tar -C "$root/checkout" -xf - --no-same-owner
  # An older release: another version, a unit that allows fewer files, and a module that is gone by now.
  cp -a "$root/checkout" "$root/older"
  sed -i 's/"version": ".*"/"version": "0.0.0"/' "$root/older/package.json"
  sed -i 's/^LimitNOFILE=.*/LimitNOFILE=2048/' "$root/older/install/systemd/gearbox-consumer.service"
  echo 'export {}' >"$root/older/apps/consumer/src/gone.ts"
}

# Both ways share this host's network, so that apt and npm work, and its ports: everything listens on free ones.
enter_system () {
  if [ "$mode" = boot ]; then boot_system && return; echo '        systemd-nspawn could not boot it'; fi
  mode=chroot
  mount -t proc proc "$root/proc"
  mount --rbind --make-rslave /dev "$root/dev"
  # Services of packages are not ours to start.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
  chmod +x "$root/usr/sbin/policy-rc.d"
}

boot_system () {
  local options=(--quiet --directory="$root" --boot --resolv-conf=off --console=pipe)
  [ -d /run/systemd/system ] || options+=(--keep-unit --register=no)
  systemd-nspawn "${options[@]}" </dev/null >"$dir/console" 2>&1 &
  nspawn=$!
  for _ in $(seq 200); do
    kill -0 "$nspawn" 2>/dev/null || break
    leader=$(pgrep -P "$nspawn" -x systemd || true)
    if [ -n "$leader" ] && [[ "$(inside systemctl is-system-running 2>/dev/null)" =~ ^(running|degraded)$ ]]; then return 0; fi
    sleep 0.1
  done
  cat "$dir/console" >>"$log"
  kill -KILL "$nspawn" 2>/dev/null || true
  wait "$nspawn" 2>/dev/null || true
  nspawn=
  leader=
  return 1
}

inside () {
  local enter=(chroot "$root")
  if [ -n "$leader" ]; then enter=(nsenter -t "$leader" -m -u -i -p -r -w); fi
  env -i "${env[@]}" "${enter[@]}" "$@"
}

script () {
  if [ "$logs" = yes ]; then inside "$@" 2>&1 | tee -a "$log" | sed 's/^/          /'; else inside "$@" >>"$log" 2>&1; fi
}

free_port () {
  local port
  for (( ; ; )); do
    port=$((10000 + RANDOM % 20000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then echo "$port"; return; fi
  done
}

# By hand what systemd would do: the units' own command, user, directory and environment file, in their order.
start_by_hand () {
  local unit command
  for unit in gearbox-redis gearbox-consumer gearbox-web@; do
    command=$(sed -n 's/^ExecStart=//p' "$root/etc/systemd/system/$unit.service")
    command=${command//%i/1}
    # shellcheck disable=SC2016
    env -i "${env[@]}" chroot "$root" setpriv --reuid gearbox --regid gearbox --init-groups --no-new-privs \
      sh -c 'cd /usr/local/gearbox; set -a; . /etc/gearbox/gearbox.env; exec $0' "$command" >>"$log" 2>&1 &
    running[$unit]=$!
  done
}

stop_by_hand () {
  local unit
  for unit in gearbox-web@ gearbox-consumer gearbox-redis; do
    kill "${running[$unit]}"
    wait "${running[$unit]}" || fail "$unit ended with $?"
    unset "running[$unit]"
  done
}

start () { if [ "$mode" = boot ]; then inside systemctl start gearbox.target; else start_by_hand; fi; }
stop () { if [ "$mode" = boot ]; then inside systemctl stop gearbox.target; else stop_by_hand; fi; }

# await WHAT SECONDS COMMAND...
await () {
  local what=$1 deadline=$((SECONDS + $2))
  shift 2
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || fail "waited in vain for $what"
    sleep 0.1
  done
}

status_of () { curl -s -o /dev/null -m 10 -w '%{http_code}' "$@" || true; }
ready () { [ "$(status_of "$url/readyz")" = 200 ]; }
refused () { [ "$(status_of "$url/healthz")" = 000 ]; }
post () { status_of -d "$1" "$url/increment?ack=stored"; }
total () { inside sqlite3 /var/local/gearbox/sqlite/numbers.db "select value from numbers where key = '$1'"; }
durable () { curl -s -m 10 "http://127.0.0.1:$((metrics_port + $1))/metrics" | grep -q '^gearbox_queue_durable 1$'; }
expect () { [ "$2" = "$3" ] || fail "$1 is $2, not $3"; }
# What is installed and differs from this release.
differences () {
  local of
  for of in apps packages install bin package.json package-lock.json; do
    diff -rq --exclude=node_modules --exclude=test "$root/checkout/$of" "$root/usr/local/gearbox/$of" || true
  done
  for of in "$root"/checkout/install/systemd/*; do diff -q "$of" "$root/etc/systemd/system/" || true; done
}
configuration () { (cd "$root/etc/gearbox" && stat -c '%n %a %U:%G %Y' ./* && sha256sum ./*); }

load () {
  local answer
  while [ -e "$dir/load" ]; do
    answer=$(post upgrade=1)
    echo "$answer" >>"$dir/answers"
  done
}

trap cleanup EXIT
mapfile -t env < <(environment)
port=$(free_port)
redis_port=$(free_port)
metrics_port=$(free_port)
url=http://127.0.0.1:$port
options=(--port "$port" --redis-port "$redis_port" --metrics-port "$metrics_port" --web-workers 2)

begin "$([ -n "$base" ] && echo "copying $base" || echo "making a system: $suite")"
make_system
begin 'entering it'
enter_system
echo "        by $([ "$mode" = boot ] && echo 'systemd-nspawn, booted' || echo 'chroot')"
inside apt-get update >>"$log" 2>&1 || fail 'its archive is out of reach'
made=yes

begin 'install_ubuntu.sh'
script /checkout/install/install_ubuntu.sh
begin 'install_ubuntu.sh again changes nothing'
script /checkout/install/install_ubuntu.sh
tail -n 5 "$log" | grep -q 'all packages are installed' || fail 'it installed something'

begin 'install_main.sh of an older release'
script /older/install/install_main.sh "${options[@]}"
expect 'how much differs from this release' "$(differences | wc -l)" 4
[ "$mode" = boot ] || start
await 'the service to be ready' 30 ready

begin 'a POST is counted'
expect 'the answer' "$(post 'foo=1&bar=-2&foo=3')" 204
expect 'foo' "$(total foo)" 4
expect 'bar' "$(total bar)" -2
# Each process by itself: the consumer, and both web workers, or in a chroot the one that was started by hand.
workers=$([ "$mode" = boot ] && echo 2 || echo 1)
for ((i = 0; i <= workers; i++)); do
  await "the metrics of process $i" 10 durable "$i"
done
expect 'metrics of the shared port' "$(status_of "$url/metrics")" 404
expect 'the reader of totals' "$(curl -s "$url/totals/foo")" '{"key":"foo","total":4}'
# The queue is for nobody else, and the programs don't belong to those who run them.
expect 'an answer of Redis without its password' "$(inside redis-cli -p "$redis_port" ping 2>&1)" 'NOAUTH Authentication required.'
expect 'what user gearbox could change' "$(inside find /usr/local/gearbox /etc/gearbox -user gearbox -o -perm -002 ! -type l)" ''
expect 'what others can read' "$(inside find /var/local/gearbox /etc/gearbox -mindepth 1 -maxdepth 1 -perm /007)" ''

begin 'gearbox verify, backup'
if [ "$mode" = boot ]; then
  inside gearbox verify >"$dir/verify" 2>&1 || fail "verify does not add up: $(cat "$dir/verify")"
  expect 'the workers that verify asked' "$(grep -c ': accepted' "$dir/verify")" 2
fi
script gearbox backup /var/local/gearbox/backup/numbers.db
expect 'foo in the backup' "$(inside sqlite3 /var/local/gearbox/backup/numbers.db "select value from numbers where key = 'foo'")" 4

if [ "$mode" = boot ]; then
  begin 'what dies is started again, and what is configured wrongly is not'
  inside systemctl kill --signal=KILL gearbox-consumer.service gearbox-redis.service gearbox-web@1.service
  await 'all to be started again' 30 inside systemctl is-active --quiet gearbox-consumer.service gearbox-redis.service gearbox-web@1.service
  await 'the service to be ready' 30 ready
  await 'a stored increment' 30 sh -c "[ \"\$(curl -s -o /dev/null -m 10 -w '%{http_code}' -d killed=1 '$url/increment?ack=stored')\" = 204 ]"
  inside mkdir -p /run/systemd/system/gearbox-consumer.service.d
  printf '[Service]\nEnvironment=COMMIT_INTERVAL_MS=x\n' | inside tee /run/systemd/system/gearbox-consumer.service.d/wrong.conf >/dev/null
  inside systemctl daemon-reload
  inside systemctl restart gearbox-consumer.service
  await 'the consumer to give up' 10 sh -c "[ \"\$(nsenter -t $leader -m -u -i -p -r -w systemctl show -P Result gearbox-consumer.service)\" = exit-code ]"
  expect 'its exit code' "$(inside systemctl show -P ExecMainStatus gearbox-consumer.service)" 78
  expect 'its state' "$(inside systemctl show -P ActiveState gearbox-consumer.service)" failed
  inside rm -r /run/systemd/system/gearbox-consumer.service.d
  inside systemctl daemon-reload
  inside systemctl reset-failed gearbox-consumer.service
  inside systemctl start gearbox-consumer.service
fi

if [ "$mode" = boot ]; then
  begin 'replication starts with everything else, and not without its file or program'
  expect 'whether it is enabled before anybody asked' "$(inside systemctl is-enabled gearbox-litestream.service || true)" disabled
  inside systemctl enable --quiet --now gearbox-litestream.service
  expect 'its state without /etc/litestream.yml' "$(inside systemctl is-active gearbox-litestream.service || true)" inactive
  inside cp /checkout/install/litestream.yml /etc/litestream.yml
  inside systemctl start gearbox-litestream.service >>"$log" 2>&1 || true
  await 'it to give up without the program' 10 sh -c "[ \"\$(nsenter -t $leader -m -u -i -p -r -w systemctl show -P ActiveState gearbox-litestream.service)\" = failed ]"
  # In place of the program one that writes where a replica goes, as it does.
  # shellcheck disable=SC2016
  printf '#!/bin/sh\n[ "$1 $2 $3" = "replicate -config /etc/litestream.yml" ] && touch /var/local/gearbox/sqlite/.litestream /var/local/gearbox/backup/litestream && exec sleep 1000\n' |
    inside tee /usr/local/bin/litestream >/dev/null
  inside chmod 755 /usr/local/bin/litestream
  stop
  inside systemctl reset-failed gearbox-litestream.service || true
  start
  await 'it to run' 10 inside systemctl is-active --quiet gearbox-litestream.service
  await 'it to write' 10 inside test -e /var/local/gearbox/backup/litestream
  await 'the service to be ready' 30 ready
  inside systemctl disable --quiet --now gearbox-litestream.service
  inside rm /usr/local/bin/litestream /etc/litestream.yml /var/local/gearbox/sqlite/.litestream
fi

begin 'install_main.sh of this release: an upgrade under load'
before=$(configuration)
touch "$dir/load"
: >"$dir/answers"
if [ "$mode" = boot ]; then
  load &
  loader=$!
else
  expect 'the answer' "$(post upgrade=1)" 204
  echo 204 >>"$dir/answers"
  stop
fi
script /checkout/install/install_main.sh
[ "$mode" = boot ] || start
await 'the service to be ready' 30 ready
rm "$dir/load"
[ "$mode" = chroot ] || wait "$loader"
expect 'the configuration' "$(configuration)" "$before"
expect 'what differs from this release' "$(differences)" ''
if [ "$mode" = boot ]; then
  for unit in gearbox-consumer gearbox-web@1 gearbox-web@2; do
    pid=$(inside systemctl show -P MainPID "$unit.service")
    program=$(inside readlink "/proc/$pid/exe")
    [[ "$program" == /usr/local/gearbox/*/bin/node ]] || fail "$unit still runs $program"
  done
fi
stored=$(grep -c '^204$' "$dir/answers")
unknown=$(grep -c '^000$' "$dir/answers" || true)
late=$(grep -c '^202$' "$dir/answers" || true)
stop
start
await 'the service to be ready' 30 ready
counted=$(total upgrade)
echo "        $stored answered as stored, $late later, $unknown without an answer; $counted counted"
# Without tcp_migrate_req, which a container can't set, a stopping worker resets what it has not accepted yet: a handful, one after the other.
[ "$mode" = chroot ] || [ "$unknown" -le 4 ] || fail "$unknown requests had no answer: the port was closed meanwhile"
if [ "$counted" -lt $((stored + late)) ] || [ "$counted" -gt $((stored + late + unknown)) ]; then fail 'the upgrade lost or doubled something'; fi
expect 'foo' "$(total foo)" 4

begin 'uninstall.sh leaves the data'
expect 'the answer' "$(post last=7)" 204
[ "$mode" = boot ] || stop
script /checkout/install/uninstall.sh
await 'the port to be closed' 10 refused
left=$(inside find /usr/local/gearbox /usr/local/bin/gearbox /etc/systemd/system /etc/sysctl.d /etc/security/limits.d -name '*gearbox*' 2>/dev/null || true)
expect 'what is left' "$left" ''
expect 'the configuration' "$(configuration)" "$before"
expect 'last' "$(total last)" 7
if [ "$mode" = boot ]; then
  expect 'the order of the stop' "$(inside journalctl --no-pager -o cat | grep -E '^Stopped gearbox-.*Gearbox|^Stopped Gearbox' | sed 's/.*Gearbox \(web\|consumer\|queue\).*/\1/' | tail -n 4 | paste -sd ' ')" 'web web consumer queue'
  inside journalctl --no-pager -o cat -u 'gearbox*' | grep -E 'unexpected|"level":60' && fail 'something unexpected was logged'
fi

begin 'reinstalling goes on with the data'
script /checkout/install/install_main.sh --web-workers 1
[ "$mode" = boot ] || start
await 'the service to be ready' 30 ready
expect 'the answer' "$(post last=1)" 204
expect 'last' "$(total last)" 8
expect 'foo' "$(total foo)" 4

begin 'uninstall.sh --purge removes everything'
[ "$mode" = boot ] || stop
script /checkout/install/uninstall.sh --purge
left=$(inside find / -xdev \( -path /checkout -o -path /older -o -path /proc -o -path /sys -o -path /var/log -o -path /tmp \) -prune -o -name '*gearbox*' -print)
expect 'what is left' "$left" ''
if inside getent passwd gearbox >>"$log"; then fail 'the user is left'; fi

begin "all is well on $suite ($mode)"
finished=yes
