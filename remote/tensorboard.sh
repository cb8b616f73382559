#!/usr/bin/env bash
# TensorBoard on this box's own loopback, with the curves of the newest training or those in a folder.
#   bash remote/tensorboard.sh [FOLDER]    FOLDER: absolute, or below the workspace; ends when it is ended
# It prints its address, as TensorBoard does. The newest training is the newest run with a file logging_dir in its
# state folder; the file `python` beside it names the Python that the training runs in.
# Exit code 2: there is nothing to show, or no TensorBoard.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
. "$release/remote/state.sh"

# --- newest_training: its state folder; RUN_IDs begin with the time
newest_training() {
  local noted newest=
  for noted in "$state_root"/*/logging_dir; do
    if [ -s "$noted" ]; then newest=${noted%/*}; fi
  done
  printf '%s' "$newest"
}

has_tensorboard() {
  [ -x "$1" ] && "$1" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tensorboard") is None)' 2> /dev/null
}

run=$(newest_training)
folder=${1:-$([ -z "$run" ] || first_line "$run/logging_dir")}
[ -n "$folder" ] || fail 2 "no training has run on this box; name a folder with event files: fab tensorboard --logs FOLDER"
cd "$MUSICGEN_WORKSPACE" 2> /dev/null || cd "$MUSICGEN_BOX_ROOT"

for python in "$([ -z "$run" ] || first_line "$run/python")" "$MUSICGEN_BOX_HOME/venv/bin/python" "$(command -v python3)"; do
  if has_tensorboard "$python"; then break; fi
  python=
done
[ -n "$python" ] || fail 2 "there is no TensorBoard on this box; add tensorboard to the training's requirements, or install it there: pip install tensorboard"

if [ -z "$(find -L "$folder" -name 'events.out.tfevents.*' -print -quit 2> /dev/null)" ]; then
  echo "note: there is no event file in $folder yet; the page fills when the training has logged something"
fi
exec "$python" -m tensorboard.main --logdir "$folder" --host 127.0.0.1 --port 0
