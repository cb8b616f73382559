#!/bin/sh
# First process of a pod's container: arm its end, start the watchdog, then become the image's own start, $0.
#   sh -c "SCRIPTS=H4sI...; <this file>" /start.sh
# `inv pod.create` sends it in its request, so that no pod is ever without an end, whatever becomes of the sender.
# SCRIPTS: the scripts of ops/runpod/container.py as a tar, in gzip and base64.
# Plain sh, as an image may have nothing else; without single quotes, as RunPod may split it as a shell does.
# The disk is empty at each start of the container, so the end is a time of day: MUSICGEN_LIFETIME_END.

home=${MUSICGEN_BOX_HOME:-${HOME:-/root}/.musicgen}
boot=$home/boot
given_end=${MUSICGEN_LIFETIME_END:-}
started=$(date +%s)
note() { echo "musicgen: $*"; }

# --- the last resort, before anything that can fail. deadline.sh writes lifetime_end, where a person began another
# lifetime; a pod that starts after its end has ten minutes for that. The watchdog comes before: it stops the
# worker, too.
lifetime_end() {
  end=${given_end:-0}
  [ "$end" -gt "$started" ] || end=$((started + ${MUSICGEN_END_GRACE_S:-600}))
  moved=$(cat "$home/lifetime_end" 2> /dev/null)
  case $moved in
    "" | *[!0-9]*) ;;
    *) end=$moved ;;
  esac
}

# limited SECONDS COMMAND...: its exit code; `timeout` may be missing. What hangs must not keep the next way waiting.
limited() {
  limit_s=$1
  shift
  "$@" < /dev/null &
  tried=$!
  (
    sleep "$limit_s"
    kill -9 "$tried"
  ) > /dev/null 2>&1 &
  killer=$!
  wait "$tried"
  code=$?
  kill "$killer" 2> /dev/null
  return "$code"
}

# stop_pod.py has a limit of its own, which is 280 s.
stop_pod() {
  note "the lifetime of this pod is over; stopping it"
  try_s=${MUSICGEN_END_TRY_S:-60}
  limited $((try_s + 300)) python3 "$boot/remote/stop_pod.py" && return
  limited "$try_s" runpodctl pod stop "$RUNPOD_POD_ID" > /dev/null 2>&1 && return
  limited "$try_s" runpodctl stop pod "$RUNPOD_POD_ID" > /dev/null 2>&1 && return
  note "STILL BILLING: this pod could not be stopped; stop it in the console of RunPod"
}

(
  lifetime_end
  # `inv pod.create` looks for this line in the log of the container: it proves that the image has run this script.
  note "deadline armed, ends at $(date -u -d "@$end" +%Y-%m-%dT%H:%M:%SZ 2> /dev/null || echo "$end")"
  while :; do
    lifetime_end
    [ "$(date +%s)" -lt $((end + ${MUSICGEN_END_MARGIN_S:-120})) ] || stop_pod
    sleep "${MUSICGEN_END_POLL_S:-15}"
  done
) &
timer=$!

# --- the watchdog and its scripts
mkdir -p "$boot"
chmod 700 "$home"
echo "$timer" > "$boot/timer" # for `inv pod.create`, where it cannot read the log
echo "$SCRIPTS" | base64 -d | tar -xzf - -C "$boot" || note "error: cannot unpack the watchdog; only the end above is armed"
(
  # 4: one is running, as fab has started it.
  while bash "$boot/remote/watchdog.sh" run < /dev/null || [ $? -ne 4 ]; do sleep 60; done
) &

# --- RunPod starts a container again when its command ends. After the end it must not: it would have its ten
# minutes again and again.
if [ ! -x "$0" ]; then
  note "error: this image has no $0, which starts the SSH server; set RUNPOD_IMAGE to an image of RunPod"
  wait
fi
[ "${given_end:-0}" -le "$started" ] || exec "$0"
"$0" &
wait
