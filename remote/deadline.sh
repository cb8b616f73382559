#!/usr/bin/env bash
# This box's deadline: an absolute time in a file on its own disk, which watchdog.sh watches.
#   MUSICGEN_LIFETIME_S=14400 [MUSICGEN_DEADLINE_S=7200] bash remote/deadline.sh arm
#   MUSICGEN_LIFETIME_END=1764288000 bash remote/deadline.sh arm
#   bash remote/deadline.sh renew SECONDS | extend SECONDS | show
# `arm` comes first at boot; running it again changes nothing. MUSICGEN_LIFETIME_END (seconds since 1970) is the end
# of the lifetime, which a box that has lost its disk keeps; with MUSICGEN_LIFETIME_S, too, the earlier one holds.
# A box that starts after its deadline gets ten minutes to extend it; after its lifetime, to begin a new one, which
# `extend` and `renew` do then.
# `renew` is for a person's own command: it arms a box that has neither variable for SECONDS, and lets a lifetime
# that is over begin anew. The deadline may be earlier than the end of the lifetime; `extend` moves it, never past
# that end. The last line of stdout is JSON. Exit codes: 1 nothing to extend, 2 a wrong argument.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
. "$release/remote/state.sh"
deadline=$MUSICGEN_BOX_HOME/deadline
lifetime_end=$MUSICGEN_BOX_HOME/lifetime_end
armed=$MUSICGEN_BOX_HOME/armed # in which boot, and with which MUSICGEN_LIFETIME_END
over=$MUSICGEN_BOX_HOME/lifetime_over # exists while only the ten minutes are left
grace_s=600
now=$(date +%s)

# --- epoch FILE: the time in it; empty if there is none
epoch() {
  local at
  at=$(first_line "$1")
  [[ $at =~ ^[0-9]{1,12}$ ]] && printf '%s' "$((10#$at))" || true
}

# --- this_boot: of the machine and, in a container, of the container
this_boot() {
  local fields
  read -r fields < /proc/1/stat
  fields=${fields##*) } # the program's name may have spaces
  # shellcheck disable=SC2086  # words: the twentieth is when process 1 began
  set -- $fields
  printf '%s-%s' "$(first_line /proc/sys/kernel/random/boot_id)" "${20}"
}

show() {
  local at end left=null is_over=false
  at=$(epoch "$deadline")
  end=$(epoch "$lifetime_end")
  [ -z "$at" ] || left=$((at - now))
  [ ! -e "$over" ] || is_over=true
  printf '{"deadline":%s,"lifetime_end":%s,"left_s":%s,"lifetime_over":%s%s}\n' \
    "${at:-null}" "${end:-null}" "$left" "$is_over" "${1:-}"
}

# --- begin END [FIRST_S]: a lifetime until END, and a first deadline in FIRST_S, never past END
begin() {
  local first=$1
  if [ -n "${2:-}" ] && [ $((now + 10#$2)) -lt "$1" ]; then first=$((now + 10#$2)); fi
  write_whole "$lifetime_end" "$1"
  write_whole "$deadline" "$first"
  rm -f "$over"
}

arm() {
  local given=${MUSICGEN_LIFETIME_END:-} life_s=${MUSICGEN_LIFETIME_S:-} first_s=${MUSICGEN_DEADLINE_S:-}
  local end boot old_boot='' old_given='' begins=''
  [ -n "$given$life_s" ] || fail 2 "set MUSICGEN_LIFETIME_S, the seconds that this box may live"
  if ! [[ ${life_s:-0} =~ ^[0-9]{1,9}$ && ${first_s:-0} =~ ^[0-9]{1,9}$ ]]; then
    fail 2 "a lifetime of $life_s s and a deadline of $first_s s are not whole numbers; correct them"
  fi
  [[ ${given:-0} =~ ^[0-9]{1,12}$ ]] || fail 2 "MUSICGEN_LIFETIME_END=$given is not in seconds since 1970; correct it"
  boot=$(this_boot)
  mkdir -p "$MUSICGEN_BOX_HOME"
  read -r old_boot old_given 2> /dev/null < "$armed" || true
  end=$(epoch "$lifetime_end")
  # A reboot must not buy a second lifetime; who starts a box again may give it a new end.
  if [ -n "$given" ] && [ "$given" != "$old_given" ]; then
    end=$((10#$given)) begins=1
    # Where this clock is slow, the end would be too far away.
    if [ -n "$life_s" ] && [ $((now + 10#$life_s)) -lt "$end" ]; then end=$((now + 10#$life_s)); fi
  elif [ -z "$(epoch "$deadline")" ]; then
    begins=1
    [ -n "$end" ] || end=$((now + 10#$life_s))
  fi
  if [ "$boot" != "$old_boot" ] && [ "${end:-0}" -le "$now" ]; then
    # At once: whoever reads meanwhile that the lifetime is over would switch the box off.
    begin $((now + grace_s))
    touch "$over"
  else
    [ -z "$begins" ] || begin "$end" "$first_s"
    if [ "$boot" != "$old_boot" ] && [ "$(epoch "$deadline")" -le "$now" ]; then begin "$end" "$grace_s"; fi
  fi
  write_whole "$armed" "$boot $given"
}

renew() {
  local end
  [[ ${1:-} =~ ^[0-9]{1,9}$ ]] || fail 2 "write: deadline.sh renew SECONDS"
  [ -n "${MUSICGEN_LIFETIME_END:-}" ] || MUSICGEN_LIFETIME_S=${MUSICGEN_LIFETIME_S:-$1}
  arm
  end=$(epoch "$lifetime_end")
  if [ -e "$over" ] || [ "${end:-0}" -le "$now" ]; then
    begin $((now + 10#${MUSICGEN_LIFETIME_S:-$1})) "${MUSICGEN_DEADLINE_S:-}"
  fi
  show
}

extend() {
  local at end new clipped=false
  [[ ${1:-} =~ ^[0-9]{1,9}$ ]] || fail 2 "write: deadline.sh extend SECONDS"
  at=$(epoch "$deadline")
  end=$(epoch "$lifetime_end")
  if [ -z "$at" ] || [ -z "$end" ]; then
    fail 1 "this box has no deadline; there is nothing to extend"
  fi
  if [ -e "$over" ]; then
    begin $((now + 10#$1))
    show ',"clipped":false'
    return
  fi
  if [ "$at" -ge "$end" ]; then
    [ "$MUSICGEN_PLATFORM" = ec2 ] || fail 1 "the deadline is already at the end of the lifetime; after it, a new one begins: fab run"
    fail 1 "the deadline is already at the end of the lifetime given at launch; rent a new machine to continue"
  fi
  new=$((at + 10#$1))
  if [ "$new" -gt "$end" ]; then new=$end clipped=true; fi
  write_whole "$deadline" "$new"
  show ",\"clipped\":$clipped"
}

case ${1:-} in
  arm) arm && show ;;
  renew) shift && renew "$@" ;;
  extend) shift && extend "$@" ;;
  show) show ;;
  *) fail 2 "write: deadline.sh arm | renew SECONDS | extend SECONDS | show" ;;
esac
