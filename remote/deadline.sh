#!/usr/bin/env bash
# This box's deadline: an absolute time in a file on its own disk, which watchdog.sh watches.
#   MUSICGEN_LIFETIME_S=14400 [MUSICGEN_DEADLINE_S=7200] bash remote/deadline.sh arm
#   bash remote/deadline.sh renew SECONDS | extend SECONDS | show
# `arm` comes first at boot; running it again changes nothing. `renew` is for a person's own command: it arms a box
# without MUSICGEN_LIFETIME_S for SECONDS, and lets a lifetime that is over begin anew. The deadline may be earlier than the end of the
# lifetime; `extend` moves it, never past that end. The last line of stdout is JSON. Exit codes: 1 nothing to
# extend, 2 a wrong argument.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
. "$release/remote/state.sh"
deadline=$MUSICGEN_BOX_HOME/deadline
lifetime_end=$MUSICGEN_BOX_HOME/lifetime_end

# --- epoch FILE: the time in it; empty if there is none
epoch() {
  local at
  at=$(first_line "$1")
  [[ $at =~ ^[0-9]{1,12}$ ]] && printf '%s' "$((10#$at))" || true
}

show() {
  local at end left=null
  at=$(epoch "$deadline")
  end=$(epoch "$lifetime_end")
  [ -z "$at" ] || left=$((at - $(date +%s)))
  printf '{"deadline":%s,"lifetime_end":%s,"left_s":%s%s}\n' "${at:-null}" "${end:-null}" "$left" "${1:-}"
}

arm() {
  local life_s=${MUSICGEN_LIFETIME_S:?seconds this box may live} first_s now end
  first_s=${MUSICGEN_DEADLINE_S:-$life_s}
  if ! [[ $life_s =~ ^[0-9]{1,9}$ && $first_s =~ ^[0-9]{1,9}$ ]]; then
    fail 2 "a lifetime of $life_s s and a deadline of $first_s s are not whole numbers; correct them"
  fi
  # A reboot must not buy a second lifetime.
  if [ -z "$(epoch "$deadline")" ]; then
    now=$(date +%s)
    mkdir -p "$MUSICGEN_BOX_HOME"
    [ -n "$(epoch "$lifetime_end")" ] || write_whole "$lifetime_end" $((now + life_s))
    end=$(epoch "$lifetime_end")
    write_whole "$deadline" $((now + first_s < end ? now + first_s : end))
  fi
  show
}

renew() {
  local end
  [[ ${1:-} =~ ^[0-9]{1,9}$ ]] || fail 2 "write: deadline.sh renew SECONDS"
  end=$(epoch "$lifetime_end")
  if [ -n "$end" ] && [ "$end" -le "$(date +%s)" ]; then rm -f "$deadline" "$lifetime_end"; fi
  MUSICGEN_LIFETIME_S=${MUSICGEN_LIFETIME_S:-$1}
  arm
}

extend() {
  local at end new clipped=false
  [[ ${1:-} =~ ^[0-9]{1,9}$ ]] || fail 2 "write: deadline.sh extend SECONDS"
  at=$(epoch "$deadline")
  end=$(epoch "$lifetime_end")
  if [ -z "$at" ] || [ -z "$end" ]; then
    fail 1 "this box has no deadline; there is nothing to extend"
  fi
  if [ "$at" -ge "$end" ]; then
    [ "$MUSICGEN_PLATFORM" = ec2 ] || fail 1 "the deadline is already at the end of the lifetime; after it, a new one begins: fab run"
    fail 1 "the deadline is already at the end of the lifetime given at launch; rent a new machine to continue"
  fi
  new=$((at + $1))
  if [ "$new" -gt "$end" ]; then new=$end clipped=true; fi
  write_whole "$deadline" "$new"
  show ",\"clipped\":$clipped"
}

case ${1:-} in
  arm) arm ;;
  renew) shift && renew "$@" ;;
  extend) shift && extend "$@" ;;
  show) show ;;
  *) fail 2 "write: deadline.sh arm | renew SECONDS | extend SECONDS | show" ;;
esac
