#!/usr/bin/env bash
# Where everything on this box is. The other scripts source it; it changes no file.
#   bash -s < remote/env.sh      prints it as JSON, also on a box without a release
# Variables that are set win over the platform's, and those over what is detected.

# --- take_settings FILE NAMES [over]: export the assignments whose names match; `over`: also if they are set
take_settings() {
  local line name value
  [ -r "$1" ] || return 0
  while IFS= read -r line; do
    [[ $line =~ ^(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$ ]] || continue
    name=${BASH_REMATCH[2]} value=${BASH_REMATCH[3]%$'\r'}
    # shellcheck disable=SC2053  # $2 is a pattern
    [[ $name == $2 ]] || continue
    [ -z "${!name+set}" ] || [ "${3:-}" = over ] || continue
    case $value in
      \'*\' | \"*\") value=${value:1:${#value}-2} ;;
    esac
    export "$name=$value"
  done < <(tr '\0' '\n' 2> /dev/null < "$1") # first: covers a file that cannot be opened
}

# --- a systemd unit has no HOME
if [ -z "${HOME:-}" ]; then
  HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
  export HOME
fi

# --- the platform's variables, which an SSH session does not inherit. RunPod's images write /etc/rp_environment
# without escaping, so it is not sourced; some leave out all but RUNPOD_*, and cut a value at its first `=`.
if [ -z "${MUSICGEN_PLATFORM_ENV:-}" ]; then
  MUSICGEN_PLATFORM_ENV=/proc/1/environ
  if [ -r /etc/rp_environment ] && ! grep -qsz '^RUNPOD_POD_ID=' /proc/1/environ; then
    MUSICGEN_PLATFORM_ENV=/etc/rp_environment
  fi
fi
# Not its cache folders (UV_CACHE_DIR, PIP_CACHE_DIR): they are on the slow network volume.
# Nor the pod's API key: only stop_hook.sh takes it, for the executable that switches the box off.
take_settings "$MUSICGEN_PLATFORM_ENV" \
  '@(RUNPOD_POD_ID|MUSICGEN_*|HOURLY_COST_USD|CUDA_*|NVIDIA_*|LD_LIBRARY_PATH)'
take_settings "$MUSICGEN_PLATFORM_ENV" '@(UV|PIP)_*@(INDEX*|FIND_LINKS|CONSTRAINT|CERT|HOST)'

unset RUNPOD_API_KEY

# --- the kind of box
if [ -z "${MUSICGEN_PLATFORM:-}" ]; then
  MUSICGEN_PLATFORM=other
  if [ -n "${RUNPOD_POD_ID:-}" ]; then
    MUSICGEN_PLATFORM=runpod
  elif grep -qs 'Amazon EC2' /sys/class/dmi/id/sys_vendor; then
    MUSICGEN_PLATFORM=ec2
  fi
fi
case $MUSICGEN_PLATFORM in
  runpod) box_root=/workspace/musicgen box_home=$HOME/.musicgen ;;
  ec2) box_root=/opt/musicgen box_home=/etc/musicgen ;;
  *) box_root=$HOME/musicgen box_home=$HOME/.musicgen ;;
esac
export MUSICGEN_PLATFORM MUSICGEN_PLATFORM_ENV
# A pod has a stop hook, unless its owner names another or none (empty).
if [ "$MUSICGEN_PLATFORM" = runpod ]; then export MUSICGEN_STOP_HOOK="${MUSICGEN_STOP_HOOK-remote/stop_pod.py}"; fi
# The root may be a network volume: releases, state, weights. The home is this box's own disk.
export MUSICGEN_BOX_ROOT="${MUSICGEN_BOX_ROOT:-$box_root}"
export MUSICGEN_BOX_HOME="${MUSICGEN_BOX_HOME:-$box_home}"
unset box_root box_home

# --- weights are few large files and kept; packages are many small files, slow on a network volume
export HF_HOME="$MUSICGEN_BOX_ROOT/cache/huggingface"
export XDG_CACHE_HOME="$MUSICGEN_BOX_HOME/cache"
export UV_CACHE_DIR="${UV_CACHE_DIR:-$MUSICGEN_BOX_HOME/cache/uv}"
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$MUSICGEN_BOX_HOME/cache/pip}"
export UV_PYTHON_INSTALL_DIR="$MUSICGEN_BOX_HOME/python"
# Images set it; older hub clients then fail without a package that they lack.
unset HF_HUB_ENABLE_HF_TRANSFER

# --- take_deployed: the settings of worker.env win over all, as what the user deployed last. They are read as
# text, never executed; only the worker's session gets the secrets.
take_deployed() {
  take_settings "$MUSICGEN_BOX_HOME/worker.env" '@(MUSICGEN_!(BOX_*|PLATFORM*)|UV_*|PIP_*)' over
}

# --- fail CODE MESSAGE
fail() {
  echo "error: $2" >&2
  exit "$1"
}

# --- use_scratch: TMPDIR on this box's own disk, unless only the root has room for a large wheel
use_scratch() {
  local need_kb=$((10 * 1024 * 1024)) free_home free_root
  mkdir -p "$MUSICGEN_BOX_HOME" "$MUSICGEN_BOX_ROOT"
  free_home=$(df -Pk "$MUSICGEN_BOX_HOME" | awk 'NR == 2 {print $4}')
  free_root=$(df -Pk "$MUSICGEN_BOX_ROOT" | awk 'NR == 2 {print $4}')
  TMPDIR=$MUSICGEN_BOX_HOME/tmp
  if [ "$free_home" -lt "$need_kb" ] && [ "$free_root" -gt "$free_home" ]; then
    TMPDIR=$MUSICGEN_BOX_ROOT/tmp
  fi
  mkdir -p "$TMPDIR"
  export TMPDIR
}

# --- run, not sourced: print it
if ! (return 0 2> /dev/null); then
  python=$(python3 -c 'import platform; print("\"%s\"" % platform.python_version())' 2> /dev/null) || python=null
  printf '{"platform":"%s","root":"%s","home":"%s","user":"%s","python":%s}\n' \
    "$MUSICGEN_PLATFORM" "$MUSICGEN_BOX_ROOT" "$MUSICGEN_BOX_HOME" "$(id -un)" "$python"
fi
