#!/usr/bin/env bash
# Attacks with Vegeta and writes what came of it into a directory. sane.sh, insane.sh and ludicrous.sh start it with their profiles.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:$root/.tmp/bin

usage() {
  cat <<'END'
usage: vegeta/PROFILE.sh [--targets FILE] [--duration TIME] [--dir DIRECTORY] [-- further options of vegeta attack]

  --targets FILE    made by create_targets.ts (default: .tmp/vegeta/targets.json)
  --duration TIME   how long, such as 500ms, 30s or 5m (default: the profile's)
  --dir DIRECTORY   where results.bin, report.txt, histogram.txt and plot.html go (default: .tmp/vegeta/PROFILE)

Options after -- are Vegeta's own and win: "-- -rate=500" for another rate, "-- -lazy -duration=0" to send each target just once.
END
}

fail() {
  printf '%s\n' "$*" >&2
  exit 2
}

# Prints a command as it could be pasted into a terminal, and runs it.
run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  "$@"
}

profile=$1
shift
targets=$root/.tmp/vegeta/targets.json
directory=$root/.tmp/vegeta/$profile
attack=()
while (($# > 0)); do
  case $1 in
    --help | -h) usage && exit ;;
    --targets | --duration | --dir | --load)
      (($# > 1)) || fail "$1 needs a value; --help tells more"
      case $1 in
        --targets) targets=$2 ;;
        --duration) duration=$2 ;;
        --dir) directory=$2 ;;
        --load) read -ra attack <<<"$2" ;;
      esac
      shift 2
      ;;
    --) shift && break ;;
    *) fail "unknown option $1; --help tells more, and Vegeta's own options go after --" ;;
  esac
done

command -v vegeta >/dev/null || fail "vegeta is missing; install/install_vegeta.sh installs it"
[[ -r $targets ]] || fail "there are no targets in $targets; make some: npm run targets -- 9000 127.0.0.1"
read -rn1 first <"$targets" || true
format=http
[[ $first != '{' ]] || format=json

mkdir -p "$directory"
results=$directory/results.bin
run vegeta attack -name="$profile" -format="$format" -targets="$targets" "${attack[@]}" -duration="$duration" -output="$results" "$@"
run vegeta report -type=text -output="$directory/report.txt" "$results"
run vegeta report -type='hist[0,1ms,2ms,5ms,10ms,20ms,50ms,100ms,200ms,500ms,1s,2s,5s]' -output="$directory/histogram.txt" "$results"
run vegeta plot -title="$profile" -output="$directory/plot.html" "$results"
printf '\n'
# An error's text has the target and the client's port in it; here each kind stands once.
sed -E 's/^[A-Z][a-z]+ "[^"]*": //; s/[][0-9a-f.:]+->//' "$directory/report.txt" | awk '!seen[$0]++'
printf '\n'
cat "$directory/histogram.txt"
printf '\nplot: %s\n' "$directory/plot.html"
