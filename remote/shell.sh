#!/usr/bin/env bash
# A person's shell on this box, with the folders that every script has. `fab shell` opens it.
#   bash remote/shell.sh         without a terminal it reads commands from stdin
# A login shell's own files come first: the ~/.bashrc of RunPod's images sets other folders.

if ! (return 0 2> /dev/null) && [ -t 0 ]; then
  exec bash --rcfile "${BASH_SOURCE[0]}" -i # which sources this file
fi

# --- what a login shell reads
# shellcheck disable=SC1091
[ ! -r /etc/profile ] || . /etc/profile
for login_file in ~/.bash_profile ~/.bash_login ~/.profile; do
  if [ -r "$login_file" ]; then
    # shellcheck disable=SC1090
    . "$login_file"
    break
  fi
done
unset login_file

pods_key=${RUNPOD_API_KEY:-}
# shellcheck source=remote/env.sh disable=SC1091
. "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/env.sh"
[ -z "$pods_key" ] || export RUNPOD_API_KEY="$pods_key" # a person may use runpodctl
unset pods_key
make_places 2> /dev/null
[ -w "$TMPDIR" ] || unset TMPDIR # on EC2 it is root's, and people log in as another user

if ! (return 0 2> /dev/null); then exec bash; fi
