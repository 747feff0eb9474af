#!/usr/bin/env bash
# 1,100 requests per second: what a single machine bears with ease.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/attack.sh" sane --load '-rate=1100/s' --duration 30s "$@"
