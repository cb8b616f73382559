#!/usr/bin/env bash
# One run of the worker in the foreground: its state, its exit code, and then the stop hook.
#   bash remote/worker_run.sh [--run-id ID] [--keep-alive] [-- WORKER_ARGUMENT...]
# session.sh runs it in tmux, a systemd unit as its ExecStart. The worker keeps the release that this script is
# in, also when `current` changes. INT, TERM and HUP are passed to the worker, which ends with a checkpoint.
# Exit code: the worker's; 4 if the worker is running already; 2 if it cannot start.
set -uo pipefail # no -e: whatever fails, the exit code is written and the box switches off

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
take_deployed
. "$release/remote/state.sh"

run_id=$(new_run_id)
keep_alive=
while [ $# -gt 0 ]; do
  case $1 in
    --run-id) run_id=${2:?--run-id needs an id} && shift 2 ;;
    --keep-alive) keep_alive=1 && shift ;;
    --) shift && break ;;
    *) fail 2 "$1 is not an option; write: worker_run.sh [--run-id ID] [--keep-alive] [-- ARGUMENT...]" ;;
  esac
done

umask 077
mkdir -p "$MUSICGEN_BOX_HOME" "$state_root" || exit 2

# --- one worker on a box: this script has the lock until the worker has ended
exec 9>> "$worker_lock"
flock --timeout 2 9 || fail 4 "the worker is already running (run $(newest_run)); stop it first"
# Before `current` names this run, so that nobody takes it for a lost one.
write_whole "$worker_run" "$run_id $$"
settle "$([ ! -L "$state_root/current" ] || basename "$(readlink "$state_root/current")")"

state=$state_root/$run_id
mkdir -p "$state"
write_whole "$state/box" "$box_id"
write_whole "$state/release" "$release"
[ -z "$keep_alive" ] || touch "$state/keep_alive"
ln -s "$run_id" "$state_root/current.$run_id" && mv -T "$state_root/current.$run_id" "$state_root/current"
make_places

# --- the worker, in its own process group; only it has the secrets of worker.env
become_worker() {
  exec 9>&-
  cd "$release" || exit 2
  local root=$MUSICGEN_BOX_ROOT home=$MUSICGEN_BOX_HOME workspace=$MUSICGEN_WORKSPACE
  if [ -e "$home/worker.env" ]; then
    set -a
    # shellcheck disable=SC1091
    . "$home/worker.env" || { echo "error: $home/worker.env cannot be read; deploy it again" && exit 2; }
    set +a
  fi
  export MUSICGEN_BOX_ROOT=$root MUSICGEN_BOX_HOME=$home MUSICGEN_WORKSPACE=$workspace
  find_places # worker.env may set one to nothing
  export RUN_ID=$run_id MUSICGEN_STATE_DIR=$state
  export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
  # A relative folder would be inside the release, which a later deploy deletes.
  case ${MUSICGEN_OUTPUT:-} in
    '') [ -n "${MUSICGEN_S3_BUCKET:-}" ] || export MUSICGEN_OUTPUT=$root/output ;;
    /* | s3://*) ;;
    *) export MUSICGEN_OUTPUT=$root/$MUSICGEN_OUTPUT ;;
  esac
  exec "$home/venv/bin/python" -m worker --prompts "$release/prompts.txt" "$@"
}

worker_pid='' asked=''
pass_on() {
  asked=$1
  [ -z "$worker_pid" ] || kill -s "$1" "$worker_pid" 2> /dev/null
}
trap 'pass_on INT' INT
trap 'pass_on TERM' TERM HUP

stays_on="nothing turns this box off; it bills until you stop it"
echo "--- $(utc) run $run_id of $release$(turns_off || echo "; $stays_on")" >> "$state/log"
set -m # job control: its own process group, and SIGINT not ignored, as in a plain background job
(become_worker "$@") >> "$state/log" 2>&1 < /dev/null &
worker_pid=$!
set +m
write_whole "$worker_run" "$run_id $$ $worker_pid"
[ -z "$asked" ] || pass_on "$asked"

while kill -0 "$worker_pid" 2> /dev/null; do
  wait "$worker_pid" # a signal ends the wait early
done
wait "$worker_pid"
code=$?
kill -KILL -- "-$worker_pid" 2> /dev/null # a child process may still hold GPU memory

# --- how it ended: what happens to the box, the last line of the log, then the exit code
grace_s=${MUSICGEN_STOP_GRACE_S:-60}
[[ $grace_s =~ ^[0-9]+$ ]] || grace_s=60
stays=$(why_on "$state" "$code")
if [ -n "$stays" ]; then
  fate="skipped: $stays" fate_text="this box stays on: $stays"
else
  fate=pending fate_text="this box switches off in $grace_s s"
fi
write_whole "$state/stop_hook" "$fate"
echo "--- $(utc) the worker ended with exit code $code; $fate_text" >> "$state/log"
write_whole "$state/exit_code" "$code"
exec 9>&-
[ "$fate" = pending ] || exit "$code"

# --- time for those who follow the log; a new run, `stop --keep` or a signal cancels the stop hook
trap 'asked=again' INT TERM HUP
asked=''
for ((waited_s = 0; waited_s < grace_s; waited_s++)); do
  sleep 1 &
  wait $!
  if [ -n "$asked" ]; then fate="skipped: cancelled by a signal"; fi
  if [ -e "$state/no_stop_hook" ]; then fate="skipped: it was asked to stay on"; fi
  if run_is_on; then fate="skipped: run $(newest_run) started"; fi
  [ "$fate" = pending ] || break
done
if [ "$fate" = pending ]; then
  RUN_ID=$run_id MUSICGEN_STATE_DIR=$state \
    bash "$release/remote/stop_hook.sh" "worker ended with exit code $code" >> "$state/stop_hook.log" 2>&1
  fate="ran $?"
fi
write_whole "$state/stop_hook" "$fate"
exit "$code"
