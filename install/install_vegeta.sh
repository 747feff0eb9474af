#!/usr/bin/env bash
# Installs Vegeta into .tmp/bin, where the scripts of vegeta/ look for it, or into DIR/bin.
set -euo pipefail

version=v12.13.0
module=github.com/tsenart/vegeta/v12

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
prefix=$root/.tmp
case ${1-} in
  '') ;;
  --prefix) prefix=${2:?"--prefix needs a directory"} ;;
  *)
    printf 'usage: install/install_vegeta.sh [--prefix DIR]   (the program goes to DIR/bin; default: %s)\n' "$prefix"
    [[ $1 == --help || $1 == -h ]] && exit
    exit 2
    ;;
esac

if ! command -v go >/dev/null; then
  printf '%s\n' "Vegeta is built with Go 1.22 or newer, which is missing. Install it (https://go.dev/dl, or your distribution's golang package) and run this again," \
    "or put a vegeta $version from https://github.com/tsenart/vegeta/releases, or from 'brew install vegeta', anywhere in your PATH." >&2
  exit 1
fi

mkdir -p "$prefix/bin"
bin=$(cd "$prefix/bin" && pwd)
# Built next to its place and moved there: whoever runs the one that is there goes on with it.
build=$(mktemp -d "$bin/.vegeta-XXXXXX")
trap 'rm -rf "$build"' EXIT

# "go install" asks for the list of all versions, which some module proxies refuse; a module that requires just this one never asks.
if ! GOBIN=$build go install "$module@$version"; then
  printf '%s\n' "go install failed; building $version from a separate module" >&2
  printf 'module build\n\ngo 1.22\n\nrequire %s %s\n' "$module" "$version" >"$build/go.mod"
  (cd "$build" && go build -mod=mod -o vegeta "$module")
fi
mv -f "$build/vegeta" "$bin/vegeta"

printf 'installed %s\n' "$bin/vegeta"
go version -m "$bin/vegeta" | awk '$1 == "mod" { print $2, $3 }'
