#!/usr/bin/env bash
# 9,000 requests per second. 2,000 workers keep that up with replies of up to 220 ms; where replies take longer, the rate falls
# instead of the connections rising until all that is measured is their queue.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/attack.sh" insane --load '-rate=9000/s -max-workers=2000' --duration 30s "$@"
