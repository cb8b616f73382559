"""Get a model set: what is missing of it, verified, resumable at any moment, complete in one step at the end.

    commits -> lists of files -> config.json is judged -> room -> downloads -> `.complete.json`

The commits are resolved once. A complete set keeps them although `main` moves; `remove` and `get` bring the
newer one. Without a network a complete set is there, and an incomplete one is one line. Only the marker makes
a set complete, and it is written last: a process that is killed at any moment leaves none.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeVar

from worker.amounts import count, size
from worker.errors import BadInput, DiskFull, UserError
from worker.models import cached, find, manifest, places, room, sets, verify
from worker.models.download import Source, download, unfinished
from worker.models.heartmula_tree import Unfit
from worker.models.hub import Away, Hub, NoCommit, Stopped
from worker.models.lease import FILE as LEASE
from worker.models.lease import Lease, held
from worker.models.manifest import FILE_NAME, MARKER, NEW, PLAN, UNFINISHED, File, Manifest, Pinned
from worker.models.sets import ModelSet, Part
from worker.songs import supported
from worker.store.files import disk_errors

Progress = Callable[[int, int, str], None]
Item = TypeVar("Item")

_FILES_AT_ONCE = 4
_LEFT_S = 600
_CONFIG, _INDEX = "config.json", ".safetensors.index.json"
# Weights in formats that are not loaded, and what makes a checkpoint of them.
_FOREIGN = "convert them: from_pretrained(MODEL).save_pretrained(FOLDER), and give that folder"


@dataclass(frozen=True)
class Got:
    """A set that can be loaded. `revision`: the hub's commit; `came_bytes`: those that this call has brought.

    `assurance`: verified now, verified then, or not verified.
    """

    name: str
    folder: Path
    revision: str
    n_bytes: int
    came_bytes: int
    assurance: str = "verified"

    def summary(self) -> str:
        """The set as a line."""
        came = f"{size(self.came_bytes)} came now" if self.came_bytes else "it was here already"
        return f"{self.name} is complete: {size(self.n_bytes)} in {self.folder}, {self.assurance}; {came}"


def _quiet(*_: object) -> None:
    pass


def get(
    name: str,
    env: Mapping[str, str] = os.environ,
    *,
    tell: Callable[[str], None] = _quiet,
    progress: Progress = _quiet,
    hub: Hub | None = None,
) -> Got:
    """Have a set complete on this machine. `progress`: bytes here, bytes in all, the file that came last.

    Calls `progress` from several threads, one after another. Raises BadInput for a name, settings or a
    model that will not do, DiskFull, and UserError for a hub or a disk that fails; run again, it resumes.
    """
    wanted = sets.find(name)
    folder = places.folder_of(wanted, env)
    with _explained(wanted, folder, env):
        if done := _complete(wanted, folder):
            return done
        fetch = _Fetch(wanted, folder, hub or Hub(env), places.hub_cache(env), tell, progress)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with held(Lease(folder), tell, is_over=lambda: bool(_complete(wanted, folder))) as is_ours:
                if done := _complete(wanted, folder):
                    return done
                if not is_ours:
                    raise UserError(f"another process has changed {folder} meanwhile; run it again")
                return fetch.run()
        except Away as away:
            if there := find.here(name, env):  # huggingface_hub's own
                return _as_cached(wanted, there)
            raise fetch.away(away) from None
        finally:
            _remove_empty(folder, wanted)


def _complete(wanted: ModelSet, folder: Path) -> Got | None:
    found = manifest.read(folder, MARKER)
    if found and found.name != wanted.name:
        raise BadInput(f"{folder} holds the model {found.name}, not {wanted.name}; name another folder")
    if not found or not find.of_set(wanted, folder, MARKER) or verify.quick(folder):
        return None
    then = f"verified at {found.verified_at}"
    return Got(wanted.name, folder, found.revision, found.n_bytes, 0, then)


def _as_cached(wanted: ModelSet, there: find.Here) -> Got:
    n_bytes = sum(path.stat().st_size for path in there.folder.iterdir() if path.is_file())
    return Got(
        wanted.name, there.folder, there.revision, n_bytes, 0, "not verified, as the hub cannot be reached"
    )


@contextmanager
def _explained(wanted: ModelSet, folder: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Raise errors of the disk as one line."""
    try:
        with disk_errors(folder):
            yield
    except DiskFull as error:
        raise room.full(str(error).partition(";")[0], wanted.name, env) from None


class _Fetch:
    """One call of `get`, by the holder of the lease."""

    def __init__(
        self,
        wanted: ModelSet,
        folder: Path,
        hub: Hub,
        cache: Path,
        tell: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self._wanted, self._folder, self._hub, self._cache = wanted, folder, hub, cache
        self._tell, self._progress = tell, progress
        self._lock = threading.Lock()
        self._here = self._came = self._total = 0
        self._brought: set[str] = set()

    def run(self) -> Got:
        plan, newest = self._kept_plan(), None
        if plan and plan.unfit:
            newest = self._resolved()
        if plan and newest in (None, plan):
            with suppress(NoCommit):  # its history was rewritten: the branch has another commit now
                return self._bring(plan)
        newest = newest or self._resolved()
        if plan:
            self._leave(plan, newest)
        return self._bring(manifest.propose(newest, self._folder))

    def away(self, reason: Away) -> UserError:
        """The hub cannot be reached and the set is not complete."""
        n_bytes = sum(path.lstat().st_size for path in find.files_of(self._wanted, self._folder))
        some = f"; {size(n_bytes)} of it are in {self._folder}" if n_bytes else ""
        what = "not complete" if n_bytes else "not on this machine"
        return BadInput(
            f"model {self._wanted.name} is {what} and the hub cannot be reached "
            f"({reason}{some}); check the network, or give a model folder"
        )

    def _kept_plan(self) -> Manifest | None:
        """That of a call that was killed, or of a complete set that was damaged since."""
        if manifest.read(self._folder, MARKER):
            manifest.reopen(self._folder)
        found = find.of_set(self._wanted, self._folder, PLAN)
        if not found:
            (self._folder / PLAN).unlink(missing_ok=True)  # another set's, or damaged
        return found

    def _leave(self, plan: Manifest, newest: Manifest) -> None:
        """Of an older plan, keep the files that the newest has too."""
        for path in {path for _, path, _ in plan.each()} - {path for _, path, _ in newest.each()}:
            (self._folder / path).unlink(missing_ok=True)
        (self._folder / PLAN).unlink(missing_ok=True)

    def _resolved(self) -> Manifest:
        """What the hub has now."""
        pinned = []
        for part in self._wanted.parts:
            commit = self._hub.commit(part.repo, part.revision)
            files = needed(part, self._hub.files(part.repo, commit))
            pinned.append(Pinned(part.repo, part.folder, commit, files))
        return Manifest(self._wanted.name, tuple(pinned))

    def _bring(self, plan: Manifest) -> Got:
        self._total, self._here = plan.n_bytes, 0
        self._brought.clear()
        sources = {
            path: Source(part.repo, part.commit, path.rpartition("/")[2], file)
            for part, path, file in plan.each()
        }
        # A file of the set that is a link is replaced.
        if others := [path for path in verify.links(self._folder) if path not in sources]:
            raise BadInput(
                f"{self._folder / others[0]} is a link, and a model is kept as real files; remove it"
            )
        try:
            self._judge(plan, sources)
        except BadInput:  # nothing is left of a model that will not do
            for path in (self._folder / PLAN, *(self._folder / each for each in self._brought)):
                path.unlink(missing_ok=True)
            raise
        there = [path for path, source in sources.items() if self._has_size(path, source.file)]
        if any(path not in self._brought for path in there):
            self._tell(f"checking {count(len(there), 'file')} that are here")
        right = self._checked(there, sources)
        missing = sorted(sources.keys() - right, key=lambda path: -sources[path].file.size)
        self._remove_left(missing, sources)
        self._here = sum(sources[path].file.size for path in right)
        self._each(missing, lambda path: self._take(path, sources[path]))
        missing = [path for path in missing if path not in self._brought]
        coming = sum(self._lacks(path, sources[path]) for path in missing)
        if coming:
            self._hub.check_online()
            room.check(self._folder, coming)
            self._tell(f"{size(coming)} of {size(plan.n_bytes)} are to come, into {self._folder}")
        self._each(missing, lambda path: self._download(path, sources[path]))
        self._refuse_unfit(plan)
        return self._completed(plan)

    def _refuse_unfit(self, plan: Manifest) -> None:
        """Raises BadInput if the files are the hub's own and no model. They are kept."""
        try:
            if self._wanted.whole:
                self._wanted.whole(self._folder, plan.unfit)
        except Unfit as error:
            manifest.condemn(plan, self._folder)
            raise BadInput(
                f"{error.what}; every file is as the hub has it, and is kept: run it again when the hub has "
                f"another release, or remove {self._wanted.name}"
            ) from None

    def _completed(self, plan: Manifest) -> Got:
        if manifest.read(self._folder, PLAN) != plan and not _complete(self._wanted, self._folder):
            raise UserError(f"another process has changed {self._folder} meanwhile; run it again")
        manifest.complete(plan, self._folder)
        if faults := verify.quick(self._folder):  # a disk that loses what was written
            raise UserError(f"{self._folder}: {faults[0]}; run it again")
        return Got(self._wanted.name, self._folder, plan.revision, plan.n_bytes, self._came)

    def _judge(self, plan: Manifest, sources: Mapping[str, Source]) -> None:
        """A few kB that are judged before the gigabytes: config.json, and the index of the weights."""
        for path, source in sources.items():
            first = source.name == _CONFIG or source.name.endswith(_INDEX)
            if first and not source.file.matches(self._folder / path) and not self._take(path, source):
                self._download(path, source)
        for part, pinned in zip(self._wanted.parts, plan.parts, strict=True):
            below = self._folder / pinned.folder
            if part.judge:
                part.judge(supported.read_config(below), f"model {pinned.repo}")
            for name in verify.absent_weights(below):
                if name not in pinned.files:
                    raise BadInput(f"model {pinned.repo} lacks {name}, which its index names; use another")

    def _has_size(self, path: str, file: File) -> bool:
        there = self._folder / path
        return not there.is_symlink() and there.is_file() and there.stat().st_size == file.size

    def _checked(self, there: list[str], sources: Mapping[str, Source]) -> set[str]:
        """Those of the files that have the right checksum; what this call has brought was verified then."""
        right = set(self._brought)

        def check(path: str) -> None:
            if path not in right and sources[path].file.matches(self._folder / path):
                right.add(path)

        self._each(there, check)
        return right

    def _lacks(self, path: str, source: Source) -> int:
        there = unfinished(self._folder / path, source.commit)
        return source.file.size - min(source.file.size, there[0][0] if there else 0)

    def _remove_left(self, missing: Iterable[str], sources: Mapping[str, Source]) -> None:
        """Delete unfinished files that nobody owns and that are not what is to come next.

        Those of the small files here, and of files from the cache, are seconds old while they are written.
        """
        kept = {
            path for name in missing for _, path in unfinished(self._folder / name, sources[name].commit)[:1]
        }
        with suppress(OSError):  # without a lease, on a full disk, nothing says what the disk's clock is at
            old_s = (self._folder / LEASE).stat().st_mtime - _LEFT_S
            for path in find.files_of(self._wanted, self._folder):
                if path.suffix == NEW and path.lstat().st_mtime < old_s:
                    path.unlink(missing_ok=True)
        for path in find.files_of(self._wanted, self._folder):
            if path.suffix == UNFINISHED and path not in kept:
                path.unlink(missing_ok=True)

    def _tell_of(self, path: str) -> Callable[[int], None]:
        def told(n_bytes: int) -> None:
            with self._lock:
                self._here += n_bytes
                self._progress(self._here, self._total, path)

        return told

    def _take(self, path: str, source: Source) -> bool:
        """True if the file was in huggingface_hub's cache and is in the set now."""
        if not cached.take(source, self._folder / path, self._cache):
            return False
        with self._lock:
            self._brought.add(path)
        self._tell_of(path)(source.file.size)
        return True

    def _download(self, path: str, source: Source) -> None:
        lacking = self._lacks(path, source)
        download(self._hub, source, self._folder / path, self._tell_of(path))
        with self._lock:
            self._brought.add(path)
            self._came += lacking

    def _each(self, items: Iterable[Item], work: Callable[[Item], object]) -> None:
        """Work on all, some at once. The first failure stops the others and is raised."""
        waiting, failures = deque(items), list[BaseException]()

        def run() -> None:
            while waiting and not self._hub.stop.is_set():
                with suppress(IndexError):  # another thread took the last
                    item = waiting.popleft()
                    try:
                        work(item)
                    except BaseException as error:
                        failures.append(error)
                        self._hub.stop.set()

        n_threads = min(_FILES_AT_ONCE, len(waiting))
        threads = [threading.Thread(target=run, daemon=True) for _ in range(n_threads)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)  # with a limit, so that Ctrl-C comes through on Windows
        except BaseException:
            self._hub.stop.set()
            raise
        self._hub.stop.clear()  # all have ended
        for failure in failures:
            if not isinstance(failure, Stopped):
                raise failure


def needed(part: Part, listing: Mapping[str, File]) -> dict[str, File]:
    """Of a repository's files, those that its part of a set needs. Raises BadInput if one is lacking."""
    found = {
        name: file
        for name, file in sorted(listing.items())
        if FILE_NAME.fullmatch(name) and any(fnmatchcase(name, pattern) for pattern in part.files)
    }
    for index in [name for name in found if name.endswith(_INDEX)]:
        whole = index.removesuffix(_INDEX)
        if any(fnmatchcase(name, f"{whole}-*-of-*.safetensors") for name in found):
            found.pop(f"{whole}.safetensors", None)  # the same weights once more
    for pattern in part.needs:
        if any(fnmatchcase(name, pattern) for name in found):
            continue
        other = next((name for name in sorted(listing) if name.endswith(".bin")), None)
        if pattern.endswith("safetensors") and other:
            raise BadInput(f"model {part.repo} has its weights in {other} only; {_FOREIGN}")
        raise BadInput(f"model {part.repo} has no {pattern}; check the name")
    return found


def _remove_empty(folder: Path, wanted: ModelSet) -> None:
    """After a refusal nothing is left."""
    for empty in (*(folder / part.folder for part in wanted.parts if part.folder), folder):
        with suppress(OSError):
            empty.rmdir()
