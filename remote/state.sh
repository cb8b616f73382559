#!/usr/bin/env bash
# The state of the runs on this box: functions that the other scripts source after env.sh.
# A run is one of the worker or of a training. It is on while job.sh holds a lock on the box's own disk; the kernel
# releases it whatever happens, and another box on the same network volume does not see it. Files appear whole:
# written aside, then renamed.

# Without it every lock would look taken. Debian and Ubuntu always have it.
command -v flock > /dev/null || fail 2 "flock is missing on this box; install util-linux there (fab shell), then run it again"

state_root=$MUSICGEN_BOX_ROOT/state
# Their names are those of earlier releases, whose scripts may be running here: a pod's watchdog, a worker.
job_lock=$MUSICGEN_BOX_HOME/worker.lock
job_run=$MUSICGEN_BOX_HOME/worker.run # RUN_ID, pid of job.sh, pid of the job
# Identifies this box on a shared network volume; a resumed pod has the same id.
box_id=${RUNPOD_POD_ID:-$(hostname)}

utc() { date -u +%Y-%m-%dT%H:%M:%SZ; }
utc_of() { date -u -d "@$1" +%Y-%m-%dT%H:%M:%SZ; } # EPOCH

new_run_id() { echo "$(date -u +%Y%m%dT%H%M%SZ)-$(od -An -N2 -tx1 /dev/urandom | tr -d ' \n')"; }

# --- write_whole FILE TEXT
write_whole() {
  printf '%s\n' "$2" > "$1.tmp" && mv -T "$1.tmp" "$1"
}

# --- first_line FILE: empty if there is none
first_line() {
  local line=
  if [ -r "$1" ]; then read -r line < "$1" || true; fi
  printf '%s' "$line"
}

run_is_on() {
  [ -e "$job_lock" ] && ! flock --nonblock --shared "$job_lock" true
}

# --- newest_run: the RUN_ID of the run that is on, else of the last; empty if there was none
newest_run() {
  local id
  if run_is_on && read -r id _ 2> /dev/null < "$job_run"; then
    printf '%s' "$id"
  elif [ -L "$state_root/current" ]; then
    basename "$(readlink "$state_root/current")"
  fi
}

# --- job_of RUN_ID: what it runs; empty if there is no such run
job_of() {
  local job=
  [ -n "$1" ] || return 0
  job=$(first_line "$state_root/$1/job")
  printf '%s' "${job:-worker}" # earlier releases had no other
}

refuse_other_jobs() {
  case $1 in
    worker | train) ;;
    *) fail 2 "$1 is not a job; write: --job worker, or --job train" ;;
  esac
}

# --- name_of JOB: as messages name it
name_of() {
  case $1 in train) echo training ;; *) echo worker ;; esac
}

# --- signals_of JOB: what asks it to stop, the first first. The worker takes SIGINT for a Ctrl-C. A training of
# transformers dies on SIGINT without a checkpoint; on SIGTERM it can save one, but only at its next step.
signals_of() {
  case $1 in train) echo TERM ;; *) echo INT TERM ;; esac
}

# --- grace_of JOB: seconds that it has after the first signal
grace_of() {
  case $1 in train) echo 300 ;; *) echo 60 ;; esac
}

# --- weights_mb: the size of all models here, also of one that is being downloaded
weights_mb() {
  local mb
  # As worker.env has the folders now: the watchdog may be older than its line. Their sum is the last line.
  mb=$(find_places && du -smc "$HF_HOME" "$MUSICGEN_MODELS_DIR" "$MUSICGEN_HEARTMULA_DIR" 2> /dev/null | tail -n 1)
  mb=${mb%%[!0-9]*}
  printf '%s' "${mb:-0}"
}

# --- settle RUN_ID: write exit code 137 for a run of this box whose processes are gone without one
settle() {
  local state=$state_root/$1
  [ -n "$1" ] && [ -d "$state" ] && [ ! -e "$state/exit_code" ] || return 0
  [ "$(first_line "$state/box")" = "$box_id" ] || return 0
  if run_is_on && grep -qs "^$1 " "$job_run"; then return 0; fi
  echo "--- $(utc) the run was lost: the box restarted, or all its processes were killed" >> "$state/log"
  write_whole "$state/exit_code" 137
}

# --- be_busy NAME LIMIT_S: until this script ends, and for LIMIT_S at most, the watchdog counts it as work
be_busy() {
  local up
  mkdir -p "$MUSICGEN_BOX_HOME/busy"
  exec 7>> "$MUSICGEN_BOX_HOME/busy/$1"
  flock --timeout 2 7 || return 4
  read -r up _ < /proc/uptime
  printf '%s\n' $((10#${up%.*} + 10#$2)) > "$MUSICGEN_BOX_HOME/busy/$1" # seconds since boot
}

is_busy() {
  local file end up
  read -r up _ < /proc/uptime
  for file in "$MUSICGEN_BOX_HOME"/busy/*; do
    end=$(first_line "$file")
    [[ $end =~ ^[0-9]{1,12}$ ]] && [ "${up%.*}" -lt "$end" ] || continue
    flock --nonblock --shared "$file" true || return 0
  done
  return 1
}

# --- hook_path HOOK: where that executable is. A pod's watchdog has only a part of a release beside it; the rest is
# in the deployed one.
hook_path() {
  local folder=${release:?the script that sources this sets it}
  case $1 in
    '' | /*) folder='' ;;
    *) [ -e "$folder/$1" ] || folder=$MUSICGEN_BOX_ROOT/current ;;
  esac
  printf '%s' "${folder:+$folder/}$1"
}

# --- turns_off: there is an executable that switches this box off
turns_off() {
  local hook
  hook=$(hook_path "${MUSICGEN_WATCHDOG_ACTION:-${MUSICGEN_STOP_HOOK:-}}")
  [ -x "$hook" ] && [ ! -d "$hook" ]
}

# --- why_on STATE CODE: why the box stays on after the run in STATE ended with CODE; empty if it switches off
why_on() {
  local status=
  if [ -z "${MUSICGEN_STOP_HOOK:-}" ]; then
    echo "no MUSICGEN_STOP_HOOK is set"
  elif [ -e "$1/no_stop_hook" ]; then
    echo "it was asked to stay on"
  elif [ "${MUSICGEN_KEEP_ALIVE:-}" = 1 ] || [ -e "$1/keep_alive" ]; then
    echo "keep-alive"
  elif [ "$2" = 75 ] && [ -r "$1/status.json" ]; then
    status=$(< "$1/status.json")
    # EC2 does not charge the first hour of a machine that it interrupts, but of one that ends itself.
    if [[ $status =~ \"notice\":\ ?\"[^\"]*takes\ this\ spot\ machine\ back ]]; then
      echo "EC2 takes this spot machine back by itself"
    fi
  fi
}

# --- is_kept_alive RUN_ID: this box is to stay on after its runs, or after this one. A run of another box on the same
# network volume says nothing of this one.
is_kept_alive() {
  [ "${MUSICGEN_KEEP_ALIVE:-}" = 1 ] && return 0
  [ -n "$1" ] && [ -e "$state_root/$1/keep_alive" ] && [ "$(first_line "$state_root/$1/box")" = "$box_id" ]
}

# --- status_json [MORE]: the newest run as one line; MORE is appended to the object
status_json() {
  local id state pid=null running=false code bytes=0 keep=false
  id=$(newest_run)
  state=$state_root/$id
  if run_is_on; then
    running=true
    read -r _ _ pid 2> /dev/null < "$job_run" || true
  fi
  code=$([ -z "$id" ] || first_line "$state/exit_code")
  if [ -n "$id" ] && [ -r "$state/log" ]; then bytes=$(stat -c %s "$state/log"); fi
  if is_kept_alive "$id"; then keep=true; fi
  printf '{"run_id":%s,"running":%s,"pid":%s,"exit_code":%s,"log_bytes":%s,"release":%s,"state_dir":%s,' \
    "$(json_string "$id")" "$running" "${pid:-null}" "${code:-null}" "$bytes" \
    "$(json_string "$([ -z "$id" ] || first_line "$state/release")")" "$(json_string "${id:+$state}")"
  printf '"job":%s,"stop_hook":%s,"stopped_by":%s,"keep_alive":%s%s}\n' "$(json_string "$(job_of "$id")")" \
    "$(json_string "$([ -z "$id" ] || first_line "$state/stop_hook")")" \
    "$(json_string "$([ -z "$id" ] || first_line "$state/stopped_by")")" "$keep" "${1:+,$1}"
}
