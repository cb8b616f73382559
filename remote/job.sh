#!/usr/bin/env bash
# One run of a job in the foreground: its state, its exit code, and then the stop hook.
#   bash remote/job.sh [--job worker|train] [--run-id ID] [--keep-alive] [-- ARGUMENT...]
# The job is the worker, or a training (remote/train.py); it gets the arguments. session.sh runs this script in tmux, a
# systemd unit as its ExecStart. The job keeps the release that this script is in, also when `current` changes. INT,
# TERM and HUP are passed to the job, which ends with a checkpoint; a training gets TERM for each.
# Exit code: the job's; 4 if a job of either kind is running already; 2 if it cannot start.
#
# The job is in a process group of its own, with the release as its working folder; what of the group is left at its
# end is killed. Its output goes to MUSICGEN_STATE_DIR/log. It writes MUSICGEN_STATE_DIR/status.json, of which the
# watchdog and `fab status` read `progress` and `state`, and exits with 75 if it can be resumed.
set -uo pipefail # no -e: whatever fails, the exit code is written and the box switches off

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
take_deployed
. "$release/remote/state.sh"

run_id=$(new_run_id)
job=worker
keep_alive=
while [ $# -gt 0 ]; do
  case $1 in
    --job) job=${2:?--job needs a name} && shift 2 ;;
    --run-id) run_id=${2:?--run-id needs an id} && shift 2 ;;
    --keep-alive) keep_alive=1 && shift ;;
    --) shift && break ;;
    *) fail 2 "$1 is not an option; write: job.sh [--job worker|train] [--run-id ID] [--keep-alive] [-- ARGUMENT...]" ;;
  esac
done
refuse_other_jobs "$job"

umask 077
mkdir -p "$MUSICGEN_BOX_HOME" "$state_root" || exit 2

# --- one job on a box: this script has the lock until the job has ended
exec 9>> "$job_lock"
flock --timeout 2 9 || fail 4 "the $(name_of "$(job_of "$(newest_run)")") is already running (run $(newest_run)); stop it first"
state=$state_root/$run_id
mkdir -p "$state"
write_whole "$state/job" "$job"
# Before `current` names this run, so that nobody takes it for a lost one.
write_whole "$job_run" "$run_id $$"
settle "$([ ! -L "$state_root/current" ] || basename "$(readlink "$state_root/current")")"

write_whole "$state/box" "$box_id"
write_whole "$state/release" "$release"
[ -z "$keep_alive" ] || touch "$state/keep_alive"
ln -s "$run_id" "$state_root/current.$run_id" && mv -T "$state_root/current.$run_id" "$state_root/current"
make_places

# --- the job, in its own process group; only it has the secrets of worker.env
become_job() {
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
  case $job in
    worker) become_worker "$@" ;;
    train) become_train "$@" ;;
  esac
}

become_worker() {
  # A relative folder would be inside the release, which a later deploy deletes.
  case ${MUSICGEN_OUTPUT:-} in
    '') [ -n "${MUSICGEN_S3_BUCKET:-}" ] || export MUSICGEN_OUTPUT=$MUSICGEN_BOX_ROOT/output ;;
    /* | s3://*) ;;
    *) export MUSICGEN_OUTPUT=$MUSICGEN_BOX_ROOT/$MUSICGEN_OUTPUT ;;
  esac
  exec "$MUSICGEN_BOX_HOME/venv/bin/python" -m worker --prompts "$release/prompts.txt" "$@"
}

become_train() {
  local python
  python=$(. "$release/remote/environment.sh" && find_python)
  [ -n "$python" ] || { echo "error: there is no Python 3.11 to 3.13 on this box; run: fab install" && exit 2; }
  exec "$python" "$release/remote/train.py" "$@"
}

job_pid='' asked=''
pass_on() {
  asked=$1
  [ -z "$job_pid" ] || kill -s "$1" "$job_pid" 2> /dev/null
}
read -r first_signal _ <<< "$(signals_of "$job")"
trap 'pass_on "$first_signal"' INT
trap 'pass_on TERM' TERM HUP

stays_on="nothing turns this box off; it bills until you stop it"
echo "--- $(utc) run $run_id of $release$(turns_off || echo "; $stays_on")" >> "$state/log"
set -m # job control: its own process group, and SIGINT not ignored, as in a plain background job
(become_job "$@") >> "$state/log" 2>&1 < /dev/null &
job_pid=$!
set +m
write_whole "$job_run" "$run_id $$ $job_pid"
[ -z "$asked" ] || pass_on "$asked"

while kill -0 "$job_pid" 2> /dev/null; do
  wait "$job_pid" # a signal ends the wait early
done
wait "$job_pid"
code=$?
kill -KILL -- "-$job_pid" 2> /dev/null # a child process may still hold GPU memory

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
echo "--- $(utc) the $(name_of "$job") ended with exit code $code; $fate_text" >> "$state/log"
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
    bash "$release/remote/stop_hook.sh" "$(name_of "$job") ended with exit code $code" >> "$state/stop_hook.log" 2>&1
  fate="ran $?"
fi
write_whole "$state/stop_hook" "$fate"
exit "$code"
