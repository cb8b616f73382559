#!/usr/bin/env bash
# Turn a fresh Deep Learning machine into the worker's image: packages, weights, a test on the GPU.
# `inv image` puts the values in capitals above this text and sends both as user data (under 16 KB).
# No secrets: the machine's role opens the bucket. Takes about 20 minutes for musicgen-medium.
#
# Whatever happens, the machine shuts down, which stops it. `inv image` makes the image if $RESULT_KEY in the
# bucket has "ok": true, and always terminates the machine.

# --- the deadline of this machine, before anything can fail
shutdown -P "+${BUILD_LIMIT_MIN:-90}" "musicgen: the image took too long"

set -euo pipefail
umask 022
export HOME=/root DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a AWS_DEFAULT_REGION AWS_ENDPOINT_URL
root="${MUSICGEN_BOX_ROOT:=/opt/musicgen}"
home="${MUSICGEN_BOX_HOME:=/etc/musicgen}"
export MUSICGEN_BOX_ROOT MUSICGEN_BOX_HOME
[ -n "$AWS_ENDPOINT_URL" ] || unset AWS_ENDPOINT_URL
work="$(mktemp -d)"
log="$work/image.log"
exec > >(tee -a "$log" | logger -t musicgen-image -s 2> "${CONSOLE:-/dev/console}") 2>&1
mkdir -p "$root/releases" "$home"
printf '%s' "$S3_OBJECT_PY" > "$work/s3_object.py"

step="start"
begin() {
  step="$1"
  echo "--- $step"
}

# --- the result for `inv image`, then shut down
finish() {
  local code="$1" ok=false driver torch
  set +e
  [ "$code" -ne 0 ] || ok=true
  driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2> /dev/null | head -n 1)"
  torch="$("$home/venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2> /dev/null)"
  printf '{"schema":1,"ok":%s,"step":"%s","exit_code":%d,"driver":"%s","torch":"%s"}\n' \
    "$ok" "$step" "$code" "$driver" "$torch" > "$work/result.json"
  sleep 1 # tee and logger are still writing
  python3 "$work/s3_object.py" put "$CODE_BUCKET" "$LOG_KEY" "$log"
  python3 "$work/s3_object.py" put "$CODE_BUCKET" "$RESULT_KEY" "$work/result.json"
  rm -rf "$work"
  shutdown -P now
  exit "$code"
}
trap 'finish $?' EXIT

begin code
python3 "$work/s3_object.py" get "$CODE_BUCKET" "$CODE_KEY" "$work/code.tar.gz"
echo "$CODE_SHA256  $work/code.tar.gz" | sha256sum --check --quiet -
release="$root/releases/$CODE_ID"
mkdir -p "$release"
tar --extract --gzip --no-same-owner --file "$work/code.tar.gz" --directory "$release"
ln -sfn "releases/$CODE_ID" "$root/current"

begin system
# The driver fits one kernel: after an update of either, the machine may have no GPU.
dpkg-query --show --showformat '${Package}\n' \
  | { grep -E '^(nvidia|libnvidia|cuda|linux-(image|headers|modules|aws))' || true; } > "$work/held"
[ ! -s "$work/held" ] || xargs apt-mark hold < "$work/held"
# cloud-init's updates may still hold apt's lock.
apt-get -o DPkg::Lock::Timeout=600 update
apt-get -o DPkg::Lock::Timeout=600 --yes -o Dpkg::Options::=--force-confold upgrade
apt-get -o DPkg::Lock::Timeout=600 --yes install git tmux

begin install
bash "$root/current/remote/install.sh"

begin model
# The weights, verified, stay in the worker's folder of models on this image; two seconds of music test the GPU.
# shellcheck source=remote/env.sh disable=SC1091
source "$root/current/remote/env.sh"
make_places
printf 'calm piano ; 2 ; image_test\n' > "$work/prompts.txt"
(
  cd "$root/current"
  case $MODEL in
    heartmula | heartmula-3b) "$home/venv/bin/python" -B remote/models.py get "$MODEL" ;; # not by the worker
  esac
  "$home/venv/bin/python" -m worker --prompts "$work/prompts.txt" --output "$work/songs" \
    --model "$MODEL" ${DEVICE:+--device "$DEVICE"}
)

begin clean
# A machine of this image gets its own code, settings and deadline at its first boot.
rm -rf "$root/releases" "$root/current" "$root/state" "$home/worker.env" "$home/cache" "$TMPDIR"
apt-get clean
begin ready
