#!/usr/bin/env bash
# Stops Gearbox and removes what install_main.sh installed. Data, configuration and the user stay unless --purge is given;
# the distribution's packages stay in any case.
set -euo pipefail

usage () {
  cat <<'EOF'
usage: sudo install/uninstall.sh [--purge]

  --purge    remove /var/local/gearbox with the database, /etc/gearbox and the user gearbox as well
EOF
}

readonly units=/etc/systemd/system

say () { echo "gearbox: $*"; }

main () {
  local purge=no
  case "${1:-}" in
    '') ;;
    --purge) purge=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 64 ;;
  esac
  if [ "$(id -u)" != 0 ]; then
    echo 'gearbox: services can only be removed by root: sudo install/uninstall.sh' >&2
    exit 1
  fi
  if [ -d /run/systemd/system ] && [ -e "$units/gearbox.target" ]; then
    # Workers flush, the consumer stores, Redis syncs: in this order, which the units say.
    systemctl stop gearbox.target
    say 'stopped'
  fi
  local link
  for link in "$units"/gearbox.target.wants/*; do
    if [ -L "$link" ]; then systemctl disable --quiet "$(basename "$link")"; fi
  done
  if [ -e "$units/gearbox.target" ]; then systemctl disable --quiet gearbox.target; fi
  rm -f "$units"/gearbox.target "$units"/gearbox-redis.service "$units"/gearbox-consumer.service "$units"/gearbox-web@.service "$units"/gearbox-litestream.service
  rm -f /etc/sysctl.d/90-gearbox.conf /etc/security/limits.d/90-gearbox.conf /usr/local/bin/gearbox
  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
  rm -rf /usr/local/gearbox /usr/local/gearbox.old /usr/local/gearbox.new
  say 'removed the code and the units'
  if [ "$purge" = no ]; then
    say 'the data in /var/local/gearbox and the configuration in /etc/gearbox stay; install_main.sh goes on with them, uninstall.sh --purge removes them'
    return
  fi
  rm -rf /var/local/gearbox /etc/gearbox
  if getent passwd gearbox >/dev/null; then userdel gearbox; fi
  say 'removed the data, the configuration and the user gearbox'
}

main "$@"
