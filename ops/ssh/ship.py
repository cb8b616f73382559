"""Send a release to a box and make it the current one.

A release appears whole or not at all. The newest three are kept, and any that an unfinished run uses.
"""

from dataclasses import dataclass

from ops.release import Release
from ops.ssh.box import Box
from worker.errors import UserError

KEEP = 3

# $1 root, $2 release name, $3 how many to keep, $4 home. stdin: the tar stream.
_RECEIVE = r"""
set -euo pipefail
root=$1 name=$2 keep=$3
releases=$root/releases
mkdir -p "$releases"
if [ -d "$releases/$name" ]; then
  cat > /dev/null
else
  new=$releases/.$name.$$
  trap 'rm -rf "$new"' EXIT
  mkdir "$new"
  tar -xzf - -C "$new"
  mv -T "$new" "$releases/$name" 2> /dev/null || [ -d "$releases/$name" ]
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

    `needs_install`: the environment there was made from other requirements, or is incomplete.
    """

    release: Release
    needs_install: bool


def send(box: Box, release: Release) -> ShippedRelease:
    """Make it the box's current release. Can be run again after any failure: nothing incomplete is left."""
    words = (box.info.root, release.id, str(KEEP), box.info.home)
    ran = box.shell(_RECEIVE, *words, stdin=release.archive, limit_s=600)
    if ran.code:
        if "No space left" in ran.err or "Disk quota" in ran.err:
            raise UserError(f"the disk of {box.label} is full; free space (fab shell), then run: fab deploy")
        raise UserError(f"the box could not unpack the release ({ran.reason()}); run: fab deploy")
    return ShippedRelease(release, "needs-install" in ran.out)
