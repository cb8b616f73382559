"""What is on this machine, found without a network: a model for the worker, and the list of all sets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from worker.errors import BadInput, UserError
from worker.models import manifest, places, sets, verify
from worker.models.manifest import MARKER, NEW, PLAN, UNFINISHED, Manifest
from worker.models.sets import ModelSet


class Here(NamedTuple):
    """A model that can be loaded: its folder, and the hub's commit of its files."""

    folder: Path
    revision: str


@dataclass(frozen=True)
class Found:
    """A set, and what there is of it.

    `state`: complete, damaged (it was complete), incomplete, absent, or unknown; `note`: what is wrong.
    `n_bytes`: on this disk; `about_bytes`: of the whole set, None if not known. `verified_at`: "" unless
    complete.
    """

    name: str
    state: str
    n_bytes: int
    about_bytes: float | None
    revision: str
    verified_at: str
    licence: str
    folder: str
    note: str


def here(name: str, env: Mapping[str, str]) -> Here | None:
    """The complete set of this name, else a whole snapshot in huggingface_hub's cache; None if neither."""
    try:
        wanted = sets.find(name)
    except BadInput:
        return None
    return complete(wanted, env) or _snapshot(wanted, env)


def complete(wanted: ModelSet, env: Mapping[str, str]) -> Here | None:
    """The set, if it is complete and looks whole."""
    folder = places.folder_of(wanted, env)
    found = of_set(wanted, folder, MARKER)
    return Here(folder, found.revision) if found and not verify.quick(folder) else None


def of_set(wanted: ModelSet, folder: Path, name: str) -> Manifest | None:
    """The MARKER or PLAN in this folder, if it is that of the set as the table has it now."""
    found = manifest.read(folder, name)
    ours = [(part.repo, part.folder) for part in wanted.parts]
    fits = found and found.name == wanted.name and [part[:2] for part in found.parts] == ours
    return found if fits else None


def inventory(env: Mapping[str, str]) -> list[Found]:
    """Every set of the table, then every other one that lies in the folder of models."""
    wanted = list(sets.NAMED.values())
    known = {places.folder_of(each, env) for each in wanted}
    root = places.models_folder(env)
    others = sorted(path for path in root.glob("*--*") if path.is_dir() and path not in known)
    for path in others:
        try:
            wanted.append(sets.find(path.name.replace("--", "/", 1)))
        except BadInput:
            continue
    return [look(each, env) for each in wanted]


def look(wanted: ModelSet, env: Mapping[str, str]) -> Found:
    """One set, and what there is of it; `unknown` if its folder cannot be read."""
    folder = places.folder_of(wanted, env)
    try:
        return _look(wanted, folder, env)
    except (UserError, OSError) as error:
        note = str(error) if isinstance(error, UserError) else f"{folder} cannot be read ({error.strerror})"
        return Found(
            name=wanted.name,
            state="unknown",
            n_bytes=0,
            about_bytes=wanted.about_bytes,
            revision="",
            verified_at="",
            licence=wanted.licence,
            folder=str(folder),
            note=note,
        )


def _look(wanted: ModelSet, folder: Path, env: Mapping[str, str]) -> Found:
    marker = manifest.read(folder, MARKER)
    known = marker or manifest.read(folder, PLAN)
    n_bytes, note = _bytes_of(wanted, folder), ""
    if marker:
        faults = verify.quick(folder)
        state, note = ("damaged", str(faults[0])) if faults else ("complete", "")
    elif n_bytes:
        state, note = (
            "incomplete",
            "the hub's files are no model; get its next release" if known and known.unfit else "",
        )
    elif there := _snapshot(wanted, env):
        state, note = "absent", f"huggingface_hub has it in {there.folder}"
    else:
        state = "absent"
    return Found(
        name=wanted.name,
        state=state,
        n_bytes=n_bytes,
        about_bytes=known.n_bytes if known else wanted.about_bytes,
        revision=known.revision if known else "",
        verified_at=marker.verified_at if marker and state == "complete" else "",
        licence=wanted.licence,
        folder=str(folder),
        note=note,
    )


def files_of(wanted: ModelSet, folder: Path) -> list[Path]:
    """Every file that belongs to a set, unfinished ones too; other people's files in its folder do not."""
    found = {
        path
        for part in wanted.parts
        for pattern in (*part.files, f".*{UNFINISHED}", f".*{NEW}")
        for path in (folder / part.folder).glob(pattern)
        if not path.name.startswith(".") or path.suffix in (UNFINISHED, NEW)
    }
    return sorted(path for path in found if path.is_symlink() or path.is_file())


def _bytes_of(wanted: ModelSet, folder: Path) -> int:
    return sum(path.lstat().st_size for path in files_of(wanted, folder))


def _snapshot(wanted: ModelSet, env: Mapping[str, str]) -> Here | None:
    """A snapshot that huggingface_hub has fetched whole, that of `main` if there are several."""
    if len(wanted.parts) != 1:
        return None
    repo = places.hub_cache(env) / f"models--{places.folder_name(wanted.name)}"
    try:
        newest = (repo / "refs" / wanted.parts[0].revision).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        newest = ""
    snapshots = sorted((repo / "snapshots").glob("*"), key=lambda path: (path.name != newest, path.name))
    return next((Here(path, path.name) for path in snapshots if _is_whole(path)), None)


def _is_whole(snapshot: Path) -> bool:
    # A file is linked there when it is complete; of several, some may still be to come.
    weights = list(snapshot.glob("*.safetensors"))
    return (
        bool(weights)
        and (snapshot / "config.json").is_file()
        and not verify.absent_weights(snapshot)
        and all(map(verify.has_stated_length, weights))
    )
