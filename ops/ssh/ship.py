"""Send a release to a box and make it the current one.

A release appears whole or not at all, and is not sent again while its files there are as they were sent. The
newest three are kept, and any that an unfinished run uses.
"""

from dataclasses import dataclass

from ops.release import Release
from ops.ssh.box import Box

KEEP = 3

# $1 root, $2 release name, $3 how many to keep, $4 home, $5 `send`: stdin has the tar stream.
# Exit code 3: the release is not there, or somebody has changed it.
_RECEIVE = r"""
set -euo pipefail
root=$1 name=$2 keep=$3
releases=$root/releases
mkdir -p "$releases"
# --- is_whole: its files give its name, as ops/release.py computes it; Python may have left compiled files
is_whole() {
  [ -d "$releases/$name" ] || return 1
  local sum
  sum=$(cd "$releases/$name" && find . -name __pycache__ -prune -o ! -type d -printf '%P\0' \
    | LC_ALL=C sort -z | xargs -r0 sha256sum --zero -- | sha256sum)
  [ "${sum:0:${#name}}" = "$name" ]
}
if [ "$5" = send ]; then
  new=$releases/.$name.$$
  trap 'rm -rf "$new"' EXIT
  mkdir "$new"
  tar -xzf - -C "$new"
  if [ -d "$releases/$name" ] && ! is_whole; then
    # a run may still have it as its working folder
    touch "$releases/$name"
    mv -T "$releases/$name" "$releases/.$name.changed.$$"
  fi
  mv -T "$new" "$releases/$name" 2> /dev/null || is_whole
else
  is_whole || exit 3
fi
touch "$releases/$name"
ln -sfn "releases/$name" "$root/current.$$"
mv -T "$root/current.$$" "$root/current"

# --- a release that a run without an exit code names is in use
used=" $name "
for run in "$root"/state/*/release; do
  [ -f "$run" ] && [ ! -e "${run%/release}/exit_code" ] && used+="$(basename "$(cat "$run")") "
done
find "$releases" -mindepth 1 -maxdepth 1 -name '.*' -mmin +60 -exec rm -rf {} +
n=0
while read -r release; do
  n=$((n + 1))
  [ "$n" -le "$keep" ] || [[ "$used" == *" $release "* ]] || rm -rf "${releases:?}/$release"
done < <(ls -1t "$releases")
# --- venv.stamp: the checksum of the requirements that the environment was made from
made_from=$(cut -d ' ' -f 1 "$4/venv.stamp" 2> /dev/null || true)
wanted=$(sha256sum "$root/current/requirements/worker.txt" 2> /dev/null | cut -d ' ' -f 1 || true)
[ "$made_from" = "$wanted" ] || echo needs-install
"""


@dataclass(frozen=True)
class ShippedRelease:
    """The release that is now the current one on the box.

    `unchanged`: it was there already. `needs_install`: the environment was made from other requirements,
    or is incomplete.
    """

    release: Release
    needs_install: bool
    unchanged: bool


def send(box: Box, release: Release) -> ShippedRelease:
    """Make it the box's current release. Can be run again after any failure: nothing incomplete is left."""
    words = (box.info.root, release.id, str(KEEP), box.info.home)
    ran = box.shell(_RECEIVE, *words, "", limit_s=600)
    if missing := ran.code == 3:
        ran = box.shell(_RECEIVE, *words, "send", stdin=release.archive, limit_s=600)
    if ran.code:
        raise box.write_problem(ran, "the release")
    return ShippedRelease(release, "needs-install" in ran.out, unchanged=not missing)
