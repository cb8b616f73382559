#!/usr/bin/env bash
# TensorBoard on this box's own loopback, with the curves of the newest training or those in a folder.
#   bash remote/tensorboard.sh [FOLDER]    FOLDER: absolute, or below the workspace; ends when it is ended
# It prints its address, as TensorBoard does. The newest training is the newest run with a file `curves` in its state
# folder: the folders that it may write event files to, one a line. Python: that of the training's environment, else
# any other here that has TensorBoard.
# Exit code 2: there is nothing to show, or no TensorBoard.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
. "$release/remote/state.sh"

has_events() {
  [ -n "$(find -L "$1" -name 'events.out.tfevents.*' -print -quit 2> /dev/null)" ]
}

# --- folder_of_newest: the first folder of the newest training that has event files, else its first
folder_of_newest() {
  local noted newest='' folder
  for noted in "$state_root"/*/curves; do # RUN_IDs begin with the time
    if [ -s "$noted" ]; then newest=$noted; fi
  done
  [ -n "$newest" ] || return 0
  while read -r folder; do
    if has_events "$folder"; then
      printf '%s' "$folder"
      return
    fi
  done < "$newest"
  first_line "$newest"
}

has_tensorboard() {
  [ -x "$1" ] && "$1" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tensorboard") is None)' 2> /dev/null
}

folder=${1:-$(folder_of_newest)}
[ -n "$folder" ] || fail 2 "no training has run on this box; name a folder with event files: fab tensorboard --logs FOLDER"
cd "$MUSICGEN_WORKSPACE" 2> /dev/null || cd "$MUSICGEN_BOX_ROOT"

for python in "$MUSICGEN_BOX_HOME"/training/*/bin/python "$MUSICGEN_BOX_HOME/venv/bin/python" "$(command -v python3)"; do
  if has_tensorboard "$python"; then break; fi
  python=
done
[ -n "$python" ] || fail 2 "there is no TensorBoard on this box; add tensorboard to the training's requirements, or install it there: pip install tensorboard"

if ! has_events "$folder"; then
  echo "note: there is no event file in $folder yet; the page fills when the training has logged something"
fi
exec "$python" -m tensorboard.main --logdir "$folder" --host 127.0.0.1 --port 0
