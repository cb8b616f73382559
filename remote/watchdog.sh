#!/usr/bin/env bash
# Switch this box off at its deadline, after too long without a run or a job of busy.sh, or after too long without progress.
#   bash remote/watchdog.sh run       in the foreground: a systemd service, a container's entrypoint
#   bash remote/watchdog.sh start     the same, detached
#   bash remote/watchdog.sh status    one line of JSON
# It warns in its own log and in the run's, stops the run gracefully, and then runs MUSICGEN_WATCHDOG_ACTION,
# else the stop hook, again and again until the box is off. state/watchdog.json has the reason.
# Settings are read at each poll, as worker.env may appear or change later; docs/box.md lists them.
# Periods are measured by the time since boot, so that setting the clock neither shortens nor lengthens them.
# Exit code 4: it is already running.
set -uo pipefail # no -e: whatever fails, it keeps watching

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
. "$release/remote/state.sh"
lock=$MUSICGEN_BOX_HOME/watchdog.lock
log=$MUSICGEN_BOX_HOME/watchdog.log

watchdog_is_on() {
  [ -e "$lock" ] && ! flock --nonblock --shared "$lock" true
}

# --- scripts: the folder of the others; a deploy may have deleted the release that this one was started from
scripts() {
  if [ -d "$release/remote" ]; then echo "$release/remote"; else echo "$MUSICGEN_BOX_ROOT/current/remote"; fi
}

# --- log_line TEXT: to the watchdog's log, and to the run's while it is on
log_line() {
  local line LC_ALL=C
  line="--- $(utc) watchdog: $1"
  echo "$line" | tee -a "$log" >&2
  if run_is_on; then
    echo "$line" >> "$state_root/$(newest_run)/log"
    own_bytes=$((own_bytes + ${#line} + 1))
  fi
}

# --- settings as they are now, one a line; in a subshell, so that a removed one is unset
settings() (
  take_deployed
  whole() { if [[ $1 =~ ^[0-9]{1,9}$ ]]; then echo "$((10#$1))"; else echo "$2"; fi; }
  whole "${MUSICGEN_IDLE_LIMIT_S:-}" 1800
  whole "${MUSICGEN_NO_PROGRESS_LIMIT_S:-}" 1800
  case $(job_of "$(newest_run)") in train) grace_s=$(grace_of train) ;; *) grace_s=120 ;; esac
  whole "${MUSICGEN_WATCHDOG_GRACE_S:-}" "$grace_s"
  echo "${MUSICGEN_WATCHDOG_POLL_S:-15}"
  echo "${MUSICGEN_WATCHDOG_WARN_S:-600 120}"
  echo "${MUSICGEN_WATCHDOG_ACTION:-${MUSICGEN_STOP_HOOK:-}}"
  if is_kept_alive "$(newest_run)"; then echo 1; fi
)

read_settings() {
  local rows
  mapfile -t rows < <(settings)
  idle_limit_s=${rows[0]} no_progress_limit_s=${rows[1]} grace_s=${rows[2]} poll_s=${rows[3]}
  read -r -a warn_s <<< "${rows[4]}"
  action=${rows[5]} keep_alive=${rows[6]:-}
}

# --- the time since boot in ms
read_clock() {
  local up
  read -r up _ < /proc/uptime
  now_ms=$((10#${up/./} * 10))
}

# --- due_ms: the deadline as time since boot, computed when its file changes. A missing or damaged file changes
# nothing.
read_deadline() {
  local at end
  at=$(first_line "$MUSICGEN_BOX_HOME/deadline")
  end=$(first_line "$MUSICGEN_BOX_HOME/lifetime_end")
  [[ $end =~ ^[0-9]{1,12}$ ]] || end=$at
  [[ $at =~ ^[0-9]{1,12}$ ]] || at=$end
  [[ $at =~ ^[0-9]{1,12}$ ]] || return 0
  at=$((10#$at < 10#$end ? 10#$at : 10#$end))
  if [ "$at" != "$deadline" ]; then
    deadline=$at
    due_ms=$((now_ms + (at - $(date +%s)) * 1000))
  fi
}

read_progress() {
  local key='' text='' id bytes=0
  if run_is_on; then
    on=1 idle_since_ms=$now_ms
    id=$(newest_run) job=$(job_of "$id")
    if [ -r "$state_root/$id/status.json" ]; then text=$(< "$state_root/$id/status.json"); fi
    if [[ $text =~ \"progress\":\ ?([0-9]+) ]]; then key=${BASH_REMATCH[1]}; fi
    # A download of weights is progress, too, but only at the start: later they may be for another box.
    if [[ -z $text || $text =~ \"state\":\ ?\"starting\" ]]; then
      key+=" $(weights_mb)"
      # Before its first step a training may fetch and prepare data for hours, and skip batches after a resume.
      if [ "$job" = train ]; then
        bytes=$(stat -c %s "$state_root/$id/log" 2> /dev/null)
        key+=" $((${bytes:-0} - own_bytes))"
      fi
    fi
    if [ "$id $key" != "$progress" ]; then
      progress="$id $key" progress_at_ms=$now_ms
    fi
  else
    on='' progress_at_ms=$now_ms progress=''
    if is_busy; then idle_since_ms=$now_ms; fi
  fi
}

# --- the nearest limit: `reason` and `left_ms`; no reason if nothing limits the box
closer() {
  if [ -z "$reason" ] || [ "$2" -lt "$left_ms" ]; then reason=$1 left_ms=$2; fi
}

judge() {
  reason='' left_ms=0
  # The run needs its grace before the deadline: EC2's own shutdown does not wait.
  if [ -n "$deadline" ] && [ -n "$on$action" ]; then
    closer lifetime $((due_ms - now_ms - ${on:-0} * grace_s * 1000))
  fi
  if [ -n "$on" ] && [ "$no_progress_limit_s" -gt 0 ]; then
    closer no_progress $((no_progress_limit_s * 1000 - (now_ms - progress_at_ms)))
  fi
  if [ -z "$on" ] && [ "$idle_limit_s" -gt 0 ] && [ -z "$keep_alive" ] && [ -n "$action" ]; then
    closer idle $((idle_limit_s * 1000 - (now_ms - idle_since_ms)))
  fi
  case $reason in
    lifetime) why="its deadline is $(utc_of "$deadline")" ;;
    no_progress) why="the $(name_of "$job") made no progress for $(((now_ms - progress_at_ms) / 1000)) s" ;;
    idle) why="no worker or training ran for $(((now_ms - idle_since_ms) / 1000)) s" ;;
    *) why='' ;;
  esac
}

# --- once for each limit and time in MUSICGEN_WATCHDOG_WARN_S, unless the limit itself is shorter
warn() {
  local at_s limit_s=999999999 tightest=''
  case $reason in
    idle) limit_s=$idle_limit_s ;;
    no_progress) limit_s=$no_progress_limit_s ;;
  esac
  for at_s in "${warn_s[@]}"; do
    [[ $at_s =~ ^[0-9]{1,9}$ ]] && [ "$at_s" -lt "$limit_s" ] && [ "$left_ms" -le $((at_s * 1000)) ] || continue
    if [ -z "$tightest" ] || [ "$at_s" -lt "$tightest" ]; then tightest=$at_s; fi
  done
  if [ -n "$tightest" ] && [ "$warned" != "$reason $tightest" ]; then
    log_line "in $((left_ms / 1000)) s this box $(ending): $why"
  fi
  warned="$reason $tightest"
}

ending() {
  if [ -z "$action" ] || { [ "$reason" = no_progress ] && [ -n "$keep_alive" ]; }; then
    echo "stops its $(name_of "$job")"
  else
    echo "switches off"
  fi
}

write_result() {
  write_whole "$state_root/watchdog.json" "$(
    printf '{"schema":1,"acted_at":%s,"reason":"%s","detail":%s,"run_id":%s,"stopped_with":%s,"action":%s,' \
      "$(json_string "$(utc)")" "$reason" "$(json_string "$why")" "$(json_string "$run_id")" \
      "$(json_string "$stopped_with")" "$(json_string "$action")"
    printf '"action_exit_code":%s}' "$1"
  )"
}

act() {
  local run_id='' stopped_with='' answer code=null
  [ -z "$on" ] || run_id=$(newest_run)
  log_line "now this box $(ending): $why"
  if [ "$(ending)" != "switches off" ]; then action=''; fi
  mkdir -p "$state_root"
  write_result null
  if [ -n "$on" ]; then
    answer=$(bash "$(scripts)/session.sh" stop --keep "$grace_s" "the watchdog" 9>&-)
    if [[ $answer =~ \"needed\":\"([A-Za-z]+)\" ]]; then stopped_with=${BASH_REMATCH[1]}; fi
  fi
  if [ -n "$action" ]; then
    write_result null
    RUN_ID=$run_id MUSICGEN_STATE_DIR=$state_root/$run_id \
      bash "$(scripts)/stop_hook.sh" "$reason" "$action" >> "$log" 2>&1 9>&-
    code=$?
    log_line "the action ended with exit code $code"
  fi
  write_result "$code"
}

run() {
  local deadline='' due_ms=0 now_ms on='' job='' idle_since_ms progress='' progress_at_ms reason why left_ms warned=''
  local own_bytes=0 # what this watchdog has written to runs' logs
  local idle_limit_s no_progress_limit_s grace_s poll_s warn_s action keep_alive
  mkdir -p "$MUSICGEN_BOX_HOME"
  exec 9>> "$lock"
  if ! flock --timeout 2 9; then
    fail 4 "the watchdog is already running (pid $(first_line "$MUSICGEN_BOX_HOME/watchdog.pid"))"
  fi
  write_whole "$MUSICGEN_BOX_HOME/watchdog.pid" "$$"
  if [ -n "${MUSICGEN_LIFETIME_END:-}${MUSICGEN_LIFETIME_S:-}" ]; then
    bash "$release/remote/deadline.sh" arm 2>&1 > /dev/null | tee -a "$log" >&2
  fi
  read_clock
  idle_since_ms=$now_ms progress_at_ms=$now_ms
  read_deadline
  if [ -e "$MUSICGEN_BOX_HOME/lifetime_over" ]; then
    log_line "watching; its lifetime is over, and it switches off at $(utc_of "$deadline"); extend it: fab status --extend 2h"
  elif [ -n "$deadline" ]; then
    log_line "watching; the deadline is $(utc_of "$deadline")"
  else
    log_line "watching; there is no deadline"
  fi
  while :; do
    read_settings
    read_clock
    read_deadline
    read_progress
    judge
    if [ -n "$reason" ] && [ "$left_ms" -le 0 ]; then
      act
      # Give the action time to switch the box off; if it is still on, act again.
      sleep "${MUSICGEN_WATCHDOG_RETRY_S:-60}" 9>&-
    elif [ -n "$reason" ]; then
      warn
    fi
    sleep "$poll_s" 9>&- || sleep 15 9>&-
  done
}

status() {
  local running=false pid=null idle_limit_s no_progress_limit_s grace_s poll_s warn_s action keep_alive acted=null
  local deadline off=false
  read_settings
  if (take_deployed && turns_off); then off=true; fi
  if watchdog_is_on; then running=true pid=$(first_line "$MUSICGEN_BOX_HOME/watchdog.pid"); fi
  if [ -r "$state_root/watchdog.json" ]; then acted=$(first_line "$state_root/watchdog.json"); fi
  deadline=$(bash "$release/remote/deadline.sh" show)
  printf '{"running":%s,"pid":%s,%s,"idle_limit_s":%s,"no_progress_limit_s":%s,"action":%s,"turns_off":%s,' \
    "$running" "${pid:-null}" "${deadline:1:${#deadline}-2}" "$idle_limit_s" "$no_progress_limit_s" \
    "$(json_string "$action")" "$off"
  printf '"acted":%s}\n' "${acted:-null}"
}

start() {
  local began_s=$SECONDS
  if watchdog_is_on; then
    status
    fail 4 "the watchdog is already running"
  fi
  setsid bash "$release/remote/watchdog.sh" run > /dev/null 2>&1 < /dev/null &
  until watchdog_is_on; do
    if [ $((SECONDS - began_s)) -ge 10 ]; then
      fail 1 "the watchdog did not start; see $log"
    fi
    sleep 0.1
  done
  status
}

case ${1:-} in
  run) run ;;
  start) start ;;
  status) status ;;
  *) fail 2 "write: watchdog.sh run | start | status" ;;
esac
