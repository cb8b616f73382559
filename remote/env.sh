#!/usr/bin/env bash
# Where everything on this box is. The other scripts source it; it changes no file.
#   bash -s < remote/env.sh      prints it as JSON, also on a box without a release
# Variables that are set win over the platform's, and those over what is detected; not so folders of an image.

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

# --- packages are many small files, slow on a network volume, where an image may have their caches
export XDG_CACHE_HOME="$MUSICGEN_BOX_HOME/cache"
export UV_CACHE_DIR="$MUSICGEN_BOX_HOME/cache/uv"
export PIP_CACHE_DIR="$MUSICGEN_BOX_HOME/cache/pip"
export UV_PYTHON_INSTALL_DIR="$MUSICGEN_BOX_HOME/python"
# Images set these. With the first, older hub clients fail without a package that they lack; the second is read
# by nothing any more; the others would move parts of the cache out of HF_HOME.
unset HF_HUB_ENABLE_HF_TRANSFER TRANSFORMERS_CACHE HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_XET_CACHE

# --- free_kb FOLDER: free space where it is, or will be; 0 if that is unknown
free_kb() {
  local folder=$1 free=
  while [ ! -e "${folder:-/}" ]; do
    case $folder in */*) folder=${folder%/*} ;; *) folder=. ;; esac
  done
  { read -r _ && read -r _ _ _ free _; } < <(df -Pk "${folder:-/}" 2> /dev/null) || true
  [[ $free =~ ^[0-9]+$ ]] || free=0
  echo "$free"
}

# --- find_places: what is large goes to the volume at the workspace, as it outlives the pod; where there is none, to
# the root. Temporary files go to this box's own disk, unless only the other has room for a large wheel.
# Lines of worker.env win, in every script alike; what an image sets does not.
find_places() {
  local volume=$MUSICGEN_BOX_ROOT cache=$MUSICGEN_BOX_ROOT/cache/huggingface need_kb=$((10 * 1024 * 1024)) free_home
  if [ -d "$MUSICGEN_WORKSPACE" ] && [ -w "$MUSICGEN_WORKSPACE" ]; then
    volume=$MUSICGEN_WORKSPACE cache=$MUSICGEN_WORKSPACE/.cache/huggingface
  fi
  unset HF_HOME HF_DATASETS_CACHE TMPDIR
  take_settings "$MUSICGEN_BOX_HOME/worker.env" \
    '@(HF_HOME|HF_DATASETS_CACHE|TMPDIR|MUSICGEN_MODELS_DIR|MUSICGEN_HEARTMULA_DIR)' over
  export HF_HOME="${HF_HOME:-$cache}"
  export HF_DATASETS_CACHE="${HF_DATASETS_CACHE:-$HF_HOME}"
  export MUSICGEN_MODELS_DIR="${MUSICGEN_MODELS_DIR:-$volume/models}"
  export MUSICGEN_HEARTMULA_DIR="${MUSICGEN_HEARTMULA_DIR:-$volume/ckpt}"
  export MUSICGEN_DATA_DIR="$volume/data" # of trainings
  if [ -z "${TMPDIR:-}" ]; then
    TMPDIR=$MUSICGEN_BOX_HOME/tmp free_home=$(free_kb "$MUSICGEN_BOX_HOME")
    if [ "$free_home" -lt "$need_kb" ] && [ "$(free_kb "$volume")" -gt "$free_home" ]; then TMPDIR=$volume/tmp; fi
  fi
  export TMPDIR
}
export MUSICGEN_WORKSPACE="${MUSICGEN_WORKSPACE:-/workspace}"
find_places

# --- make_places: make the folders that a program needs; for whatever starts one. Weights in the cache of earlier
# releases, under the root, are renamed into today's, and a link stays for those releases.
make_places() {
  local old new
  mkdir -p "$TMPDIR" "$HF_HOME" || return
  for old in "$MUSICGEN_BOX_ROOT"/cache/huggingface/hub/models--*; do
    new=$HF_HOME/hub/${old##*/}
    if [ -d "$old" ] && [ ! -L "$old" ] && [ ! -e "$new" ]; then
      [ "$(stat -c %d "$old")" = "$(stat -c %d "$HF_HOME")" ] || continue # another disk: it would be a copy
      mkdir -p "$HF_HOME/hub"
      mv -T "$old" "$new" && ln -sr "$new" "$old" || true
    fi
  done
}

# --- take_deployed: the settings of worker.env win over all, as what the user deployed last. They are read as
# text, never executed; only the worker's session gets the secrets.
take_deployed() {
  take_settings "$MUSICGEN_BOX_HOME/worker.env" \
    '@(MUSICGEN_!(BOX_*|PLATFORM*|WORKSPACE|MODELS_DIR|HEARTMULA_DIR)|UV_*|PIP_*)' over
}

# --- fail CODE MESSAGE
fail() {
  echo "error: $2" >&2
  exit "$1"
}

# --- json_string TEXT: quoted, or null if it is empty
json_string() {
  local text=$1
  if [ -z "$text" ]; then
    printf null
    return
  fi
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  printf '"%s"' "${text//[[:cntrl:]]/ }"
}

# --- run, not sourced: print it
if ! (return 0 2> /dev/null); then
  python=$(python3 -c 'import platform; print(platform.python_version())' 2> /dev/null) || python=''
  printf '{"platform":%s,"root":%s,"home":%s,"user":%s,"python":%s,' "$(json_string "$MUSICGEN_PLATFORM")" \
    "$(json_string "$MUSICGEN_BOX_ROOT")" "$(json_string "$MUSICGEN_BOX_HOME")" "$(json_string "$(id -un)")" \
    "$(json_string "$python")"
  printf '"HF_HOME":%s,"HF_DATASETS_CACHE":%s,"TMPDIR":%s,"MUSICGEN_MODELS_DIR":%s,"MUSICGEN_HEARTMULA_DIR":%s}\n' \
    "$(json_string "$HF_HOME")" "$(json_string "$HF_DATASETS_CACHE")" "$(json_string "$TMPDIR")" \
    "$(json_string "$MUSICGEN_MODELS_DIR")" "$(json_string "$MUSICGEN_HEARTMULA_DIR")"
fi
