#!/usr/bin/env bash
# First boot of an EC2 worker, as root: arm the deadline, fetch the code, start the worker as a service.
# `inv launch` puts the values in capitals above this text and sends both as user data (under 16 KB).
# No secrets: the machine's role opens the bucket. The log goes to the console and, at the end, to the bucket.
#
# If anything fails, the machine switches off after $FAILED_GRACE_MIN minutes, in which SSH still works.

# --- the deadline, before anything can fail
lifetime_min=$(((${MUSICGEN_LIFETIME_S:-3600} + 59) / 60))
left_min=$(((${MUSICGEN_DEADLINE:-0} - $(date +%s) + 59) / 60))
if [ "$left_min" -lt 1 ] || [ "$left_min" -gt "$lifetime_min" ]; then
  left_min=$lifetime_min # this machine's clock is wrong: the lifetime starts now
fi
shutdown -P "+$left_min" "musicgen: the lifetime given at launch is over"

set -euo pipefail
umask 022
export HOME=/root DEBIAN_FRONTEND=noninteractive AWS_DEFAULT_REGION AWS_ENDPOINT_URL
root="${MUSICGEN_BOX_ROOT:=/opt/musicgen}"
home="${MUSICGEN_BOX_HOME:=/etc/musicgen}"
export MUSICGEN_BOX_ROOT MUSICGEN_BOX_HOME
log=/var/log/musicgen-bootstrap.log
[ -n "$AWS_ENDPOINT_URL" ] || unset AWS_ENDPOINT_URL

exec > >(tee -a "$log" | logger -t musicgen -s 2> /dev/console) 2>&1
mkdir -p "$root/releases" "$root/state" "$home"

keep_log() {
  python3 "$home/s3_object.py" put "$CODE_BUCKET" "$LOG_KEY" "$log" || true
}

finish() {
  local code="$1"
  set +e
  if [ "$code" -ne 0 ]; then
    echo "error: bootstrap failed (exit $code in line $line); this machine switches off in $FAILED_GRACE_MIN minutes"
    [ "$left_min" -lt "$FAILED_GRACE_MIN" ] || shutdown -P "+$FAILED_GRACE_MIN" "musicgen: bootstrap failed"
  fi
  sleep 1 # tee and logger are still writing
  keep_log
  exit "$code"
}
# EXIT, as neither an unset variable nor `exit` triggers ERR; ERR, as only it has the line.
line="?"
trap 'line=$LINENO' ERR
trap 'finish $?' EXIT

echo "--- deadline: $(date -u -d "@$MUSICGEN_DEADLINE" +%Y-%m-%dT%H:%M:%SZ), in at most $left_min min"
for name in deadline lifetime_end; do
  echo "$MUSICGEN_DEADLINE" > "$home/$name.tmp"
  mv "$home/$name.tmp" "$home/$name"
done
printf '%s\n' '#!/bin/sh' 'exec systemctl poweroff' > "$home/power_off"
chmod 0755 "$home/power_off"

# --- a reboot cancels `shutdown -P`, not this timer, which fires at once if its time has passed
cat > /etc/systemd/system/musicgen-deadline.service << 'UNIT'
[Unit]
Description=The lifetime given at launch is over

[Service]
Type=oneshot
ExecStart=/bin/systemctl poweroff
UNIT
cat > /etc/systemd/system/musicgen-deadline.timer << UNIT
[Unit]
Description=Deadline of this machine

[Timer]
OnCalendar=$(date -u -d "@$MUSICGEN_DEADLINE" '+%Y-%m-%d %H:%M:%S UTC')
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
UNIT
systemctl daemon-reload
systemctl enable --now musicgen-deadline.timer

# --- the code: a tree pinned by its SHA-256, or a commit
printf '%s' "$S3_OBJECT_PY" > "$home/s3_object.py"
release="$root/releases/$CODE_ID"
if [ -n "$CODE_GIT_URL" ]; then
  echo "--- code: $CODE_COMMIT from git"
  rm -rf "$release"
  git clone --quiet --no-checkout "$CODE_GIT_URL" "$release"
  git -C "$release" checkout --quiet --detach "$CODE_COMMIT"
  [ "$(git -C "$release" rev-parse HEAD)" = "$CODE_COMMIT" ]
else
  echo "--- code: s3://$CODE_BUCKET/$CODE_KEY"
  python3 "$home/s3_object.py" get "$CODE_BUCKET" "$CODE_KEY" "$root/code.tar.gz"
  echo "$CODE_SHA256  $root/code.tar.gz" | sha256sum --check --quiet -
  mkdir -p "$release"
  tar --extract --gzip --no-same-owner --file "$root/code.tar.gz" --directory "$release"
  rm "$root/code.tar.gz"
fi
ln -sfn "releases/$CODE_ID" "$root/current.tmp"
mv -T "$root/current.tmp" "$root/current"

# --- the worker's settings; 0600, as the user may add keys of their own
(umask 077 && printf '%s' "$WORKER_ENV" > "$home/worker.env.tmp")
mv "$home/worker.env.tmp" "$home/worker.env"

# --- the services; the unit's first run has the id of `inv launch`, a run after a reboot another
cat > "$home/start_worker" << SCRIPT
#!/usr/bin/env bash
options=($WORKER_OPTIONS)
[ -e "$root/state/$RUN_ID" ] || options=(--run-id "$RUN_ID" "\${options[@]}")
exec bash "$root/current/remote/job.sh" "\${options[@]}"
SCRIPT
cat > /etc/systemd/system/musicgen-watchdog.service << UNIT
[Unit]
Description=Switches this machine off when it is idle, stuck or past its deadline

[Service]
ExecStart=/bin/bash $root/current/remote/watchdog.sh run
Environment=MUSICGEN_BOX_ROOT=$root MUSICGEN_BOX_HOME=$home HOME=/root
Restart=always
RestartSec=10

[Install]
WantedBy=multi-user.target
UNIT
cat > /etc/systemd/system/musicgen-worker.service << UNIT
[Unit]
Description=MusicGen batch worker
After=network-online.target
Wants=network-online.target
OnFailure=musicgen-failed.service

[Service]
ExecStart=/bin/bash $home/start_worker
Environment=MUSICGEN_BOX_ROOT=$root MUSICGEN_BOX_HOME=$home HOME=/root
# With these codes the stop hook has run, or must not run (fab stop, a spot notice).
SuccessExitStatus=1 2 4 75
KillMode=mixed
TimeoutStopSec=150
Restart=no

[Install]
WantedBy=multi-user.target
UNIT
cat > /etc/systemd/system/musicgen-failed.service << UNIT
[Unit]
Description=The worker could not run, so this machine switches off

[Service]
Type=oneshot
# Not where the run has a reason to stay on: keep-alive, fab stop, a spot notice.
ExecStart=/bin/sh -c 'grep -qs "^skipped" $root/state/current/stop_hook || shutdown -P +$FAILED_GRACE_MIN'
UNIT
systemctl daemon-reload
systemctl enable --now musicgen-watchdog.service

# --- Python packages: done at once if the image has them
echo "--- install"
bash "$root/current/remote/install.sh"

# --- HeartMuLa's weights, which the worker does not fetch; not done again if the image has them
# shellcheck disable=SC1091
model=$(. "$home/worker.env" && printf %s "${MUSICGEN_MODEL:-}")
case $model in
  heartmula | heartmula-3b)
    echo "--- weights of $model"
    bash "$root/current/remote/busy.sh" models 21600 -- bash "$root/current/remote/models.sh" get "$model"
    ;;
esac

systemctl enable --now musicgen-worker.service
echo "--- bootstrap done"
