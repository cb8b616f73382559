#!/usr/bin/env bash
# Run the executable that switches this box off, and print how it ended.
#   bash remote/stop_hook.sh REASON [EXECUTABLE]     default: MUSICGEN_STOP_HOOK, relative to the release
# Exit code: the executable's own (124: not finished within 5 minutes), 2 if there is none.
set -uo pipefail
release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
take_deployed
. "$release/remote/state.sh"

hook=$(hook_path "${2:-${MUSICGEN_STOP_HOOK:-}}")
if [ ! -x "$hook" ] || [ -d "$hook" ]; then
  fail 2 "there is no executable ${hook:-named by MUSICGEN_STOP_HOOK}; this box stays on and costs money"
fi
take_settings "$MUSICGEN_PLATFORM_ENV" 'RUNPOD_*'
mkdir -p "$TMPDIR" 2> /dev/null # and nothing on a volume: one that is full or hangs keeps no box on
export MUSICGEN_STOP_REASON=${1:?why the box switches off}
echo "$(utc) $hook ($MUSICGEN_STOP_REASON)"
timeout 300 "$hook" < /dev/null
code=$?
[ "$code" -eq 0 ] || echo "error: $hook ended with exit code $code; this box may still be on and cost money" >&2
exit "$code"
