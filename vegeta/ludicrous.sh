#!/usr/bin/env bash
# As fast as the replies come: 1,024 workers, each of which sends its next request when it has its reply (Vegeta calls that rate 0).
# A reply that waits for a commit takes some 40 ms, so few workers would measure the wait: 128 of them can ask at most 3,200 times a
# second, these 25,000 times.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/attack.sh" ludicrous --load '-rate=0 -workers=1024 -max-workers=1024' --duration 30s "$@"
