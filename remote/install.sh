#!/usr/bin/env bash
# Phase 2 on the box: system packages, uv, and the worker's environment (environment.sh). Running it again is quick.
#   bash remote/install.sh
# The last line of stdout is JSON.
# Exit codes: 1 a step failed, 2 a program is missing and cannot be installed, 4 another install or the worker runs.
set -euo pipefail

release=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd -P)
. "$release/remote/env.sh"
take_deployed
. "$release/remote/state.sh"
. "$release/remote/environment.sh"

requirements=${MUSICGEN_REQUIREMENTS:-$release/requirements/worker.txt}

# A training has an environment of its own.
before_change() {
  if run_is_on && [ "$(job_of "$(newest_run)")" = worker ]; then
    fail 4 "the worker is running, and its environment would change; stop it first"
  fi
}

begin_install "$MUSICGEN_BOX_HOME/install.log"
[ -r "$requirements" ] || fail 2 "there is no $requirements; deploy first"
install_tools
install_environment "$MUSICGEN_BOX_HOME/venv" "$requirements" "$python"
installed "$MUSICGEN_BOX_HOME/venv"
