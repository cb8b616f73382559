#!/usr/bin/env bash
# Models on this box as jobs of their own, which go on when the connection ends: remote/models.py and remote/smoke.py.
#   bash remote/models.sh list|remove|... [ARGUMENT...]    models.py at once: its output and exit code
#   bash remote/models.sh start get|verify|smoke NAME      -> {"folder": ..., "joined": ...}: where log and exit_code are
#   bash remote/models.sh settle FOLDER                    write exit code 137 for a job whose processes are gone
# One job of a kind and name at a time: a second start joins the first. A job counts as work for the watchdog, for
# LIMIT_S at most. Exit codes: those of models.py and smoke.py; 2 something is missing.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
take_deployed
. "$release/remote/state.sh"

LIMIT_S=$((6 * 3600))
jobs=$MUSICGEN_BOX_HOME/models
python=$MUSICGEN_BOX_HOME/venv/bin/python

# --- run_python SCRIPT ARGUMENT...: in the worker's environment. models.py reads worker.env by itself.
run_python() {
  [ -x "$python" ] || fail 2 "the environment is missing on this box; run: fab install"
  cd "$release"
  make_places
  PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 exec "$python" "remote/$1" "${@:2}"
}

is_on() { [ -e "$MUSICGEN_BOX_HOME/busy/$1" ] && ! flock --nonblock --shared "$MUSICGEN_BOX_HOME/busy/$1" true; }

# --- job_name KIND NAME: with a checksum, as a/b-c and a-b/c are two models
job_name() {
  local sum
  sum=$(printf '%s' "$2" | cksum)
  printf '%s-%s-%s' "$1" "$(printf '%s' "$2" | tr -c 'A-Za-z0-9' '-')" "${sum%% *}"
}

start() {
  local job began_s=$SECONDS joined=true
  [[ ${1:-} =~ ^(get|verify|smoke)$ && ${2:-} =~ ^[A-Za-z0-9/~.][A-Za-z0-9._/-]*$ ]] \
    || fail 2 "write: models.sh start get|verify|smoke NAME"
  [ -x "$python" ] || fail 2 "the environment is missing on this box; run: fab install"
  job=$(job_name "$1" "$2")
  if ! is_on "$job"; then
    joined=false
    mkdir -p "$jobs/$job"
    rm -f "$jobs/$job/began"
    write_whole "$jobs/$job/model" "$2" # for who asks what it uses
    setsid bash "${BASH_SOURCE[0]}" job "$job" "$@" > /dev/null 2>&1 < /dev/null &
    until [ -e "$jobs/$job/began" ]; do
      [ $((SECONDS - began_s)) -lt 20 ] || fail 1 "the job did not start; run it again"
      sleep 0.1
    done
  fi
  printf '{"folder":%s,"joined":%s}\n' "$(json_string "$jobs/$job")" "$joined"
}

# --- job JOB get|verify|smoke NAME: in a session of its own; the lock on busy/JOB says that it is on
job() {
  local folder=$jobs/$1 code=0
  be_busy "$1" "$LIMIT_S" || return 0 # another start was first
  rm -f "$folder/exit_code"
  : > "$folder/log"
  : > "$folder/began"
  case $2 in
    smoke) (run_python smoke.py "$3" 7>&-) >> "$folder/log" 2>&1 || code=$? ;;
    *) (run_python models.py "$2" "$3" 7>&-) >> "$folder/log" 2>&1 || code=$? ;;
  esac
  write_whole "$folder/exit_code" "$code"
}

settle() {
  [ -d "${1:-}" ] && [ ! -e "$1/exit_code" ] || return 0
  is_on "$(basename "$1")" || [ -e "$1/exit_code" ] || write_whole "$1/exit_code" 137
}

case ${1:-} in
  start) shift && start "$@" ;;
  job) shift && job "$@" ;;
  settle) shift && settle "$@" ;;
  *) run_python models.py "$@" ;;
esac
