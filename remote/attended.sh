#!/usr/bin/env bash
# Run a script of this folder for as long as somebody attends to it over a connection that may die silently.
#   bash remote/attended.sh SILENCE_S SCRIPT ARGUMENT...
# It is ended when stdin ends, or has brought no line for SILENCE_S; with everything that it started. Exit code: the
# script's, as it ends by itself; 66 if there is no such script.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
silence_s=$1 script=$2
shift 2
[ -f "$release/remote/$script" ] || exit 66

exec 3<&0
setsid bash "$release/remote/$script" "$@" 3<&- < /dev/null & # in a group of its own
job=$!
{
  while read -r -t "$silence_s" -u 3 _; do :; done
  kill -TERM -- "-$job" 2> /dev/null
  sleep 2
  kill -KILL -- "-$job" 2> /dev/null
} > /dev/null 2>&1 &
attends=$!
code=0
wait "$job" || code=$?
kill "$attends" 2> /dev/null || true
exit "$code"
