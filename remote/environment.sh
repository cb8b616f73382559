#!/usr/bin/env bash
# Building a Python environment on this box: functions for any script that sources it after state.sh; install.sh does.
# An environment is on the box's own disk, as it has many small files. The image's torch is used if it is the
# pinned version, which saves gigabytes; with MUSICGEN_TORCH=image whatever its version, with =pinned never.
# Indexes: PIP_* and UV_* variables of the environment, the platform or worker.env.
# Each step prints `--- STEP`; the first that fails prints its last lines.

range='>=3.11,<3.14' # the Pythons that the pins are made for

# --- begin_install LOG: makes the folders; one installation at a time; the watchdog counts it as work
begin_install() {
  log=$1
  make_folders
  exec 8>> "$MUSICGEN_BOX_HOME/install.lock"
  flock --nonblock 8 || fail 4 "another install is running on this box; wait for it"
  be_busy install 3600 || true
  : > "$log"
}

# --- step NAME COMMAND...: run it, with its output to stdout and the log
step() {
  local name=$1 own=$MUSICGEN_BOX_HOME/install.step code free
  shift
  echo "--- $name" | tee -a "$log"
  set +e
  (
    set -e
    "$@"
  ) 2>&1 < /dev/null | tee "$own"
  code=${PIPESTATUS[0]}
  set -e
  cat "$own" >> "$log" || true
  [ "$code" -ne 0 ] || return 0
  tail -n 20 "$own" >&2
  if grep -qiE 'no space left on device|disk quota exceeded|os error (28|122)' "$own"; then
    free=$(df -Ph "$MUSICGEN_BOX_HOME" "$MUSICGEN_BOX_ROOT" | awk 'NR > 1 {printf "; %s has %s free", $6, $4}')
    fail 1 "step '$name' failed: the disk is full$free; free some space or take a larger disk"
  fi
  fail 1 "step '$name' failed (exit $code); its last lines are above, the whole log is $log"
}

make_folders() {
  # One message for all, as when the disk is full or read-only.
  { mkdir -p "$MUSICGEN_BOX_HOME" "$MUSICGEN_BOX_ROOT/releases" "$MUSICGEN_BOX_ROOT/state" && make_places; } \
    || fail 1 "cannot create the box's folders; is one of $MUSICGEN_BOX_ROOT, $MUSICGEN_BOX_HOME, $HF_HOME, $TMPDIR full, or another user's?"
  chmod 700 "$MUSICGEN_BOX_HOME"
}

# --- the packages that apt has to install
missing_packages() {
  command -v tmux > /dev/null || echo tmux
  if ! has_uv && ! pip --version > /dev/null; then echo python3-pip; fi
}

install_packages() {
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
  # The updates of a fresh machine may still hold apt's lock.
  "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=600 -q update
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -o DPkg::Lock::Timeout=600 -qy install --no-install-recommends "$@"
}

has_uv() { PATH=$PATH:$MUSICGEN_BOX_HOME/uv/bin command -v uv > /dev/null; }

# The image's own python3 may have no pip; apt's pip belongs to the system's Python.
pip() {
  local program
  for program in python3 /usr/bin/python3; do
    if "$program" -m pip --version > /dev/null 2>&1; then
      "$program" -m pip "$@"
      return
    fi
  done
  return 1
}

# --target leaves the image's Python as it is, also where that refuses packages (PEP 668)
install_uv() { pip install --quiet --upgrade --target "$MUSICGEN_BOX_HOME/uv" uv; }

# --- install_tools: tmux, uv and a Python; sets `python`
install_tools() {
  local packages why=''
  mapfile -t packages < <(missing_packages)
  if [ "${#packages[@]}" -gt 0 ]; then
    command -v apt-get > /dev/null || why="there is no apt-get"
    [ "$(id -u)" -eq 0 ] || sudo -n true 2> /dev/null || why="this user is not root and may not use sudo"
    [ -z "$why" ] || fail 2 "${packages[*]} missing, and $why; install by hand, then run this again"
    step "system packages: ${packages[*]}" install_packages "${packages[@]}"
  fi
  has_uv || step "uv" install_uv
  set_up_uv

  python=$(find_python)
  if [ -z "$python" ]; then
    step "Python" uv python install 3.12
    python=$(find_python)
  fi
}

set_up_uv() {
  PATH=$PATH:$MUSICGEN_BOX_HOME/uv/bin
  # uv does not read pip's variables, nor lists with spaces
  if [ -n "${PIP_FIND_LINKS:-}" ]; then export UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS// /,}}"; fi
  if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$PIP_INDEX_URL}}"; fi
  if [ -n "${PIP_EXTRA_INDEX_URL:-}" ]; then export UV_INDEX="${UV_INDEX:-$PIP_EXTRA_INDEX_URL}"; fi
  [ "$(stat -c %d "$MUSICGEN_BOX_HOME")" = "$(stat -c %d "$(dirname "$UV_CACHE_DIR")" 2> /dev/null)" ] \
    || export UV_LINK_MODE=copy # hard links work only within one disk
}

# --- the Python of the environment: the image's own, which may have torch, if the pins are made for it
find_python() {
  local program
  for program in python3 python3.13 python3.12 python3.11; do
    if "$program" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null; then
      "$program" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  PATH=$PATH:$MUSICGEN_BOX_HOME/uv/bin uv python find "$range" 2> /dev/null || true
}

# --- version_of PYTHON PACKAGE, without importing it
version_of() {
  "$1" -c 'import importlib.metadata as m, sys; print(m.version(sys.argv[1]))' "$2" 2> /dev/null || true
}

# --- choose_torch PYTHON PINS: "image V", "pinned V" or "none"
choose_torch() {
  local pinned image
  pinned=$(sed -nE 's/^torch==([^ ;]+).*/\1/p' "$2" | head -n 1)
  image=$(version_of "$1" torch)
  case ${MUSICGEN_TORCH:-auto} in
    auto) if [ -n "$pinned" ] && [ "${image%%+*}" = "$pinned" ]; then echo "image $image" && return; fi ;;
    image) if [ -n "$image" ]; then echo "image $image" && return; fi ;;
  esac
  if [ -n "$pinned" ]; then echo "pinned $pinned"; else echo none; fi
}

# --- wanted TORCH PINS: the pins to install; not those of torch and its CUDA packages where the image's torch is used
wanted() {
  case $1 in
    image*) grep -vE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==' "$2" ;;
    *) cat "$2" ;;
  esac
}

make_environment() {
  local venv=$1 torch=$2 options=(--quiet --python "$3")
  case $torch in image*) options+=(--system-site-packages) ;; esac
  rm -rf "${venv:?}"
  uv venv "${options[@]}" "$venv"
}

# Exactly the pins, which are complete: nothing is resolved, and packages no longer listed are removed.
fill_environment() {
  wanted "$2" "$3" > "$MUSICGEN_BOX_HOME/wanted.txt"
  uv pip sync --python "$1/bin/python" "$MUSICGEN_BOX_HOME/wanted.txt"
}

try_environment() {
  [ "$2" = none ] || "$1/bin/python" -c 'import torch; print("torch", torch.__version__, torch.__file__)'
}

# --- install_environment VENV PINS PYTHON: what VENV.stamp says that it was made from is not made again. Where
# something will change, `before_change` is called first, which may refuse it. Sets `torch` and `changed`.
install_environment() {
  local venv=$1 pins=$2 stamp=$1.stamp choice
  torch=$(choose_torch "$3" "$pins")
  choice="$(sha256sum < "$pins") $3 $("$3" -V) $torch"
  changed=false
  if [ "$(cat "$stamp" 2> /dev/null)" != "$choice" ] || ! "$venv/bin/python" -c '' 2> /dev/null; then
    changed=true
    before_change
    rm -f "$stamp"
    step "environment ($torch)" make_environment "$venv" "$torch" "$3"
    step "packages" fill_environment "$venv" "$torch" "$pins"
    step "first import" try_environment "$venv" "$torch"
    write_whole "$stamp" "$choice"
  else
    echo "--- environment is up to date"
  fi
}

# --- installed VENV: the line of JSON at the end
installed() {
  printf '{"ok":true,"changed":%s,"python":%s,"torch":%s,"seconds":%s}\n' \
    "$changed" "$(json_string "$1/bin/python")" "$(json_string "$torch")" "$SECONDS"
}
