#!/usr/bin/env bash
# Run a command that the watchdog counts as work, so that the box does not go off as idle in the middle of it.
#   bash remote/busy.sh NAME LIMIT_S -- COMMAND...
# It counts until the command ends, and for LIMIT_S at most: one that hangs keeps no box on. The deadline still holds.
# The kernel releases the lock whatever happens. Exit code: the command's; 2 a wrong argument, 4 NAME is on already.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
. "$release/remote/state.sh"

if ! [[ ${1:-} =~ ^[A-Za-z0-9_-]+$ && ${2:-} =~ ^[0-9]{1,7}$ && ${3:-} = -- && -n ${4:-} ]]; then
  fail 2 "write: busy.sh NAME LIMIT_S -- COMMAND..."
fi
be_busy "$1" "$2" || fail 4 "$1 is on already; wait for it"
shift 3
make_places || true # the command itself says what it lacks
code=0
"$@" 7>&- || code=$?
exit "$code"
