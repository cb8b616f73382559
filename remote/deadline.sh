#!/usr/bin/env bash
# This box's death date: an absolute time in a file on its own disk, which watchdog.sh watches.
#   MUSICGEN_LIFETIME_S=14400 [MUSICGEN_DEADLINE_S=7200] bash remote/deadline.sh arm
#   bash remote/deadline.sh extend SECONDS | show
# `arm` comes first at boot, and running it again changes nothing. The deadline may be earlier than the end of the
# lifetime; `extend` moves it, never past that end. The last line of stdout is JSON. Exit code 1: nothing to extend.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
deadline=$MUSICGEN_BOX_HOME/deadline
lifetime_end=$MUSICGEN_BOX_HOME/lifetime_end

# --- epoch FILE: its time, nothing if it holds none
epoch() {
  local at=
  if [ -r "$1" ]; then read -r at < "$1" || true; fi
  [[ $at =~ ^[0-9]{1,12}$ ]] && printf '%s' "$((10#$at))" || true
}

# --- write, then rename: the watchdog never reads half a number
put() {
  echo "$2" > "$1.tmp"
  mv -T "$1.tmp" "$1"
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
    echo "error: a lifetime of $life_s s and a deadline of $first_s s are no whole numbers; correct them" >&2
    exit 2
  fi
  # A reboot must not buy a second lifetime.
  if [ -z "$(epoch "$deadline")" ]; then
    now=$(date +%s)
    mkdir -p "$MUSICGEN_BOX_HOME"
    [ -n "$(epoch "$lifetime_end")" ] || put "$lifetime_end" $((now + life_s))
    end=$(epoch "$lifetime_end")
    put "$deadline" $((now + first_s < end ? now + first_s : end))
  fi
  show
}

extend() {
  local at end new clipped=false
  [[ ${1:-} =~ ^[0-9]{1,9}$ ]] || { echo "error: write: deadline.sh extend SECONDS" >&2 && exit 2; }
  at=$(epoch "$deadline")
  end=$(epoch "$lifetime_end")
  if [ -z "$at" ] || [ -z "$end" ]; then
    echo "error: no deadline is armed on this box; there is nothing to extend" >&2
    exit 1
  fi
  if [ "$at" -ge "$end" ]; then
    echo "error: the deadline is at the end of the lifetime given at launch already; start a new machine to go on" >&2
    exit 1
  fi
  new=$((at + $1))
  if [ "$new" -gt "$end" ]; then new=$end clipped=true; fi
  put "$deadline" "$new"
  show ",\"clipped\":$clipped"
}

case ${1:-} in
  arm) arm ;;
  extend) shift && extend "$@" ;;
  show) show ;;
  *) echo "error: write: deadline.sh arm | extend SECONDS | show" >&2 && exit 2 ;;
esac
