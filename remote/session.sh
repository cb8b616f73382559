#!/usr/bin/env bash
# Start or stop the worker or a training on this box, or print its state. The last line of stdout is JSON.
#   bash remote/session.sh start [--job worker|train] [--keep-alive] [-- ARGUMENT...]
#   bash remote/session.sh stop [--keep] [GRACE_S [BY]]    --keep: the box stays on afterwards; BY: who stops it;
#                                                          GRACE_S: 60, and 300 of a training, also if it is ''
#   bash remote/session.sh status
# Exit codes: 0 done, 1 failed, 2 something is missing, 4 a job of either kind is running already.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
take_deployed
. "$release/remote/state.sh"

# --- is_installed: install.sh has finished for the requirements of this release
is_installed() {
  local wanted=${MUSICGEN_REQUIREMENTS:-$release/requirements/worker.txt} made_from=
  read -r made_from _ 2> /dev/null < "$MUSICGEN_BOX_HOME/venv.stamp" || true
  [ -x "$MUSICGEN_BOX_HOME/venv/bin/python" ] && [ "$made_from" = "$(sha256sum < "$wanted" | cut -d ' ' -f 1)" ]
}

# --- refuse_missing JOB: what its start needs is here
refuse_missing() {
  case $1 in
    worker)
      is_installed || fail 2 "the environment for this release is missing or incomplete; install it first"
      [ -r "$release/prompts.txt" ] || fail 2 "there is no prompts.txt in $release; deploy it first"
      ;;
    train) [ -r "$release/remote/train.py" ] || fail 2 "there is no remote/train.py in $release; deploy it first" ;;
  esac
  command -v tmux > /dev/null || fail 2 "tmux is missing; install it first"
}

refuse_second() {
  if run_is_on; then
    status_json
    fail 4 "the $(name_of "$(job_of "$(newest_run)")") is already running (run $(newest_run)); follow it, or stop it first"
  fi
}

start() {
  local keep=() job=worker id began_s=$SECONDS
  while [ $# -gt 0 ]; do
    case $1 in
      --job) job=${2:?--job needs a name} && shift 2 ;;
      --keep-alive) keep=(--keep-alive) && shift ;;
      --) shift && break ;;
      *) fail 2 "$1 is not an option; write: session.sh start [--job worker|train] [--keep-alive] [-- ARGUMENT...]" ;;
    esac
  done
  refuse_other_jobs "$job"
  refuse_second # before its remedy is one that does not help
  refuse_missing "$job"
  mkdir -p "$state_root"

  # --- one start at a time, until its run has the lock
  exec 8>> "$MUSICGEN_BOX_HOME/start.lock"
  flock --timeout 15 8 || fail 4 "another start is running; wait for it"
  refuse_second

  # --- the session of a run that has ended may still be counting down to the stop hook
  id=$(newest_run)
  settle "$id"
  if tmux has-session -t =worker 2> /dev/null; then
    [ -z "$id" ] || touch "$state_root/$id/no_stop_hook"
    # It is killed when the new one is there: tmux's server ends with its last session, and would end under the new one.
    tmux kill-session -t =worker-ended 2> /dev/null || true
    tmux rename-session -t =worker worker-ended 2> /dev/null || true
  fi

  # A tmux server has the variables of whoever started it, so the paths, which are not secret, are passed on, and
  # the pod's API key, which RunPod's ~/.bashrc exports, is left out.
  # As several arguments, which tmux runs without a shell.
  id=$(new_run_id)
  tmux new-session -d -s worker -c / env -u RUNPOD_API_KEY "HOME=$HOME" "PATH=$PATH" \
    "MUSICGEN_PLATFORM=$MUSICGEN_PLATFORM" "MUSICGEN_PLATFORM_ENV=$MUSICGEN_PLATFORM_ENV" \
    "MUSICGEN_BOX_ROOT=$MUSICGEN_BOX_ROOT" "MUSICGEN_BOX_HOME=$MUSICGEN_BOX_HOME" \
    "MUSICGEN_WORKSPACE=$MUSICGEN_WORKSPACE" "MUSICGEN_MODELS_DIR=$MUSICGEN_MODELS_DIR" \
    "MUSICGEN_HEARTMULA_DIR=$MUSICGEN_HEARTMULA_DIR" \
    bash "$release/remote/job.sh" --job "$job" --run-id "$id" "${keep[@]}" -- "$@" 8>&- \
    || fail 1 "tmux did not start the session; see its message above"
  tmux kill-session -t =worker-ended 2> /dev/null || true
  until [ -e "$state_root/$id/exit_code" ] || grep -qs "^$id [0-9]* [0-9]" "$job_run"; do
    [ $((SECONDS - began_s)) -lt 10 ] || fail 1 "the session did not start the $(name_of "$job"); see what it shows: tmux attach -t worker"
    sleep 0.1
  done
  status_json
}

# --- ended_within SECONDS: the run has released its lock in this time
ended_within() {
  local tries=$(($1 * 5 + 1))
  while run_is_on; do
    [ $((tries--)) -gt 0 ] || return 1
    sleep 0.2
  done
}

stop() {
  local stay='' grace_s id job wrapper pid='' signal needed=nothing
  if [ "${1:-}" = --keep ]; then stay=1 && shift; fi
  grace_s=${1:-}
  [[ $grace_s =~ ^[0-9]*$ ]] || fail 2 "$grace_s is not a whole number of seconds; write: session.sh stop [--keep] GRACE_S"
  id=$(newest_run)
  if [ -n "$stay" ] && [ -n "$id" ] && [ -d "$state_root/$id" ]; then touch "$state_root/$id/no_stop_hook"; fi
  if run_is_on; then
    until read -r id wrapper pid < "$job_run" && [ -n "$pid" ]; do # it is starting
      run_is_on || break
      sleep 0.1
    done
    job=$(job_of "$id")
    grace_s=${grace_s:-$(grace_of "$job")}
    # To the worker the signal looks like a Ctrl-C.
    [ ! -d "$state_root/$id" ] || write_whole "$state_root/$id/stopped_by" "${2:-session.sh stop}"
    for signal in $(signals_of "$job"); do
      needed=SIG$signal
      kill -s "$signal" "$pid" 2> /dev/null || true
      if ended_within "$grace_s"; then break; fi
      needed=SIGKILL grace_s=${MUSICGEN_STOP_TERM_S:-10}
    done
    if [ "$needed" = SIGKILL ]; then
      kill -s KILL -- "-$pid" 2> /dev/null || true
      # job.sh writes the exit code, unless it hangs, too
      if ! ended_within 5; then
        kill -s KILL "$wrapper" 2> /dev/null || true
        ended_within 2 || fail 1 "the $(name_of "$job") cannot be killed; restart this box"
      fi
    fi
  fi
  settle "$id"
  status_json "\"needed\":\"$needed\""
}

case ${1:-} in
  start) shift && start "$@" ;;
  stop) shift && stop "$@" ;;
  status) settle "$(newest_run)" && status_json ;;
  *) fail 2 "write: session.sh start [--job worker|train] [--keep-alive] [-- ARGUMENT...] | stop [--keep] [GRACE_S [BY]] | status" ;;
esac
