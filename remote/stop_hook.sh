#!/usr/bin/env bash
# Run the executable that turns this box off, and say how that went.
#   bash remote/stop_hook.sh REASON [EXECUTABLE]     default: MUSICGEN_STOP_HOOK, relative to the release
# Exit code: the executable's own (124: no end within 5 minutes), 2 if there is none.
set -uo pipefail
release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
take_deployed

hook=${2:-${MUSICGEN_STOP_HOOK:-}}
case $hook in
  '' | /*) ;;
  *) hook=$release/$hook ;;
esac
if [ ! -x "$hook" ] || [ -d "$hook" ]; then
  echo "error: there is no executable ${hook:-named by MUSICGEN_STOP_HOOK}; this box stays on and costs money" >&2
  exit 2
fi
export MUSICGEN_STOP_REASON=${1:?why the box goes off}
echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $hook ($MUSICGEN_STOP_REASON)"
timeout 300 "$hook" < /dev/null
code=$?
[ "$code" -eq 0 ] || echo "error: $hook ended with exit code $code; this box may still be on and cost money" >&2
exit "$code"
