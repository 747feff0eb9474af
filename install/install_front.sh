#!/usr/bin/env bash
# Puts a front's configuration into its place, but only one that the front's own program accepts: what runs there goes on otherwise,
# and what was there before stays next to it.
set -euo pipefail

usage () {
  cat <<'EOT'
usage: sudo install/install_front.sh nginx | haproxy

  nginx      install/nginx/gearbox.conf becomes /etc/nginx/conf.d/gearbox.conf, next to what nginx serves already
  haproxy    install/haproxy/gearbox.cfg becomes /etc/haproxy/haproxy.cfg, in place of what is there

Before: install the program, and put the certificate where the file names it. Change the file in this checkout, and run this again.
EOT
}

say () { echo "gearbox: $*"; }
die () { echo "gearbox: $*" >&2; exit 1; }

main () {
  case "${1:-}" in
    nginx | haproxy) ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 64 ;;
  esac
  [ "$(id -u)" = 0 ] || die "a front can only be changed by root: sudo install/install_front.sh $1"
  command -v "$1" >/dev/null || die "there is no $1. On Ubuntu and Debian: sudo apt-get install $1"
  source=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
  "install_$1"
}

# haproxy has one file: checked where it is, moved when it is right.
install_haproxy () {
  local target=/etc/haproxy/haproxy.cfg
  mkdir -p /etc/haproxy
  haproxy -c -f "$source/haproxy/gearbox.cfg" || die "haproxy does not accept install/haproxy/gearbox.cfg, for the reason above; $target stays as it is"
  keep "$target" "$source/haproxy/gearbox.cfg"
  install -m 0644 "$source/haproxy/gearbox.cfg" "$target.new"
  mv "$target.new" "$target"
  reload haproxy
}

# nginx checks only all of its files together. It reads none of them until it is told to, so what it does not accept is taken back.
install_nginx () {
  local target=/etc/nginx/conf.d/gearbox.conf
  mkdir -p /etc/nginx/conf.d
  local before=
  if [ -e "$target" ]; then before=$(mktemp) && cp -p "$target" "$before"; fi
  install -m 0644 "$source/nginx/gearbox.conf" "$target"
  if ! nginx -t; then
    if [ -n "$before" ]; then mv "$before" "$target"; else rm "$target"; fi
    die "nginx does not accept install/nginx/gearbox.conf, for the reason above; /etc/nginx is as it was"
  fi
  if [ -n "$before" ]; then
    if ! cmp -s "$before" "$target"; then cp -p --backup=numbered "$before" "$target.before"; fi
    rm "$before"
  fi
  reload nginx
}

# keep OLD NEW: keeps a copy of OLD unless it is the same as NEW.
keep () {
  if [ -e "$1" ] && ! cmp -s "$1" "$2"; then
    cp -p --backup=numbered "$1" "$1.before"
    say "what was in $1 is in $1.before now"
  fi
}

reload () {
  if [ -d /run/systemd/system ]; then
    systemctl reload-or-restart "$1"
    say "$1 works with it"
  else
    say "systemd does not run here; tell $1 to read its configuration again"
  fi
}

main "$@"
