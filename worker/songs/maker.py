"""What makes the songs of one output: `place.json`, written before the first song is begun.

A song's name does not hold its model, so all songs of an output are made by one model, in one
revision, with one sampling: two lists or two workers with different settings would mix them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from worker.errors import BadInput
from worker.family import Family, Sampling, Solver
from worker.songs.families import HEARTMULA, HEARTMULA_NAMES, MUSICGEN
from worker.songs.model_names import HUB_ID, REHEARSAL
from worker.songs.records import Record, Survey
from worker.store.base import Missing, Store, json_bytes

KEY = "place.json"
SCHEMA = 1
START_OVER = "--start-over"
# A stride is rounded to frames.
_FRAME_S = 0.02


@dataclass(frozen=True)
class Maker:
    """Everything that a song's sound depends on besides its own line, its seed and rounding."""

    model: str
    revision: str
    sampling: Sampling
    window_s: float
    stride_s: float
    solver: Solver | None = None  # of the codec, where it has one

    @classmethod
    def of(cls, described: Mapping[str, Any], sampling: Sampling, solver: Solver | None) -> "Maker":
        """That of a loaded engine (`Engine.describe`)."""
        return cls(
            model=str(described["model"]),
            revision=str(described["revision"]),
            sampling=sampling,
            window_s=float(described["window_s"]),
            stride_s=float(described["stride_s"]),
            solver=solver,
        )

    @classmethod
    def of_record(cls, record: Record) -> "Maker | None":
        """That of a finished song; None if its record holds another kind of sampling."""
        try:
            sampling = Sampling(**record.sampling)  # type: ignore[arg-type]
            solver = _solver(record.solver, record.window_s)
        except (TypeError, BadInput):
            return None
        return cls(record.model, record.revision, sampling, record.window_s, record.stride_s, solver)

    def to_json(self) -> bytes:
        return json_bytes({"schema": SCHEMA} | asdict(self))

    @classmethod
    def from_json(cls, content: bytes) -> "Maker | None":
        """None if it is damaged. Raises BadInput if a later version wrote it."""
        try:
            found = json.loads(content)
            is_later = found["schema"] > SCHEMA
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        if is_later:
            raise BadInput(f"{KEY} has schema {found['schema']}; update this program, it reads {SCHEMA}")
        try:
            return cls(
                model=str(found["model"]),
                revision=str(found["revision"]),
                sampling=Sampling(**found["sampling"]),
                window_s=float(found["window_s"]),
                stride_s=float(found["stride_s"]),
                solver=_solver(found.get("solver"), found["window_s"]),
            )
        except (ValueError, KeyError, TypeError, BadInput):
            return None

    def differences(self, other: "Maker") -> list[str]:
        """What differs, ours last: `stride 18 s, not 12 s`."""
        pairs = [
            ("model", self.model, other.model),
            ("revision", self.revision, other.revision),
            *(
                (name.replace("_", " "), value, getattr(other.sampling, name))
                for name, value in asdict(self.sampling).items()
            ),
            ("window", f"{self.window_s:g} s", f"{other.window_s:g} s"),
            ("stride", f"{self.stride_s:g} s", f"{other.stride_s:g} s"),
        ]
        if self.solver and other.solver:  # else their windows differ
            pairs += [
                ("codec steps", self.solver.steps, other.solver.steps),
                ("codec guidance", self.solver.guidance, other.solver.guidance),
            ]
        return [f"{name} {theirs}, not {ours}" for name, theirs, ours in pairs if theirs != ours]


def checked_sampling(
    family: Family = MUSICGEN,
    *,
    guidance_scale: float | None = None,
    top_k: float | None = None,
    temperature: float | None = None,
    stride_s: float | None = None,
) -> Sampling:
    """The family's sampling with these values. Raises BadInput for one out of range, the stride's too."""
    if stride_s is not None and family.stride_s is None:
        raise BadInput(f"{family.name} makes a song in one pass; leave --stride out")
    if stride_s is not None and not 1 <= stride_s < 30:
        raise BadInput("--stride must be from 1 to under 30 seconds; the default is 18")
    if top_k is not None and top_k > family.n_tokens:
        raise BadInput(
            f"top k {int(top_k):,} is over {family.name}'s {family.n_tokens:,} tokens; write 0 to take all"
        )
    usual = family.sampling
    return Sampling(
        usual.guidance_scale if guidance_scale is None else guidance_scale,
        usual.top_k if top_k is None else int(top_k),
        usual.temperature if temperature is None else temperature,
    )


def checked_solver(
    family: Family, *, codec_steps: float | None = None, codec_guidance: float | None = None
) -> Solver | None:
    """The solver of the family's codec with these values. Raises BadInput for one out of range, or where
    the codec has none."""
    usual = family.solver
    if usual is None:
        if codec_steps is not None or codec_guidance is not None:
            raise BadInput(
                f"--codec-steps and --codec-guidance are for HeartMuLa; leave them out for a {family.name}"
            )
        return None
    return Solver(
        usual.steps if codec_steps is None else int(codec_steps),
        usual.guidance if codec_guidance is None else codec_guidance,
    )


def _solver(found: Mapping[str, Any] | None, window_s: float) -> Solver | None:
    """As a file holds it. HeartMuLa's, whose songs have no windows, did not always: it was heartlib's."""
    if found:
        return Solver(**found)
    return None if window_s else HEARTMULA.solver


def model_name(model: str) -> str:
    """The name that records hold: the hub id, or a folder's own name, the same on every machine.

    Raises BadInput if it can be neither; whether the model can be loaded is another matter.
    """
    if model in HEARTMULA_NAMES:
        return HEARTMULA_NAMES[model]
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.resolve().name
    if model != REHEARSAL and not HUB_ID.fullmatch(model):
        raise BadInput(
            f"no model folder at {model}; give a folder, a Hugging Face id, heartmula or rehearsal"
        )
    return model


def refuse_other_model(makers: Iterable[str], model: str, location: str) -> None:
    """Before a model is loaded: the records of this output name `makers`. Raises BadInput."""
    for maker in makers:
        if maker != model:
            raise BadInput(
                f"{location} holds songs made by {maker}, not {model}; give another output folder or prefix"
            )


def refuse_other_sampling(
    store: Store, family: Family = MUSICGEN, solver: Solver | None = None, **values: float
) -> None:
    """Before a machine is rented: raise BadInput if this output is for songs of another sampling, stride or
    solver.

    `values`: those of `checked_sampling`.
    """
    sampling = checked_sampling(family, **values)
    stride_s = values.get("stride_s", family.stride_s)
    try:
        there = Maker.from_json(store.read(KEY))
    except Missing:
        return
    if there:
        ours = replace(there, sampling=sampling)
        if stride_s is not None and abs(there.stride_s - stride_s) >= _FRAME_S:
            ours = replace(ours, stride_s=stride_s)
        if there.solver and solver:
            ours = replace(ours, solver=solver)
        if ours != there:
            raise _refusal(store, ours, there, is_empty=False)


def refuse_started_over(store: Store, ours: Maker) -> None:
    """Right before a song is stored: raise BadInput if another run has started the output over meanwhile."""
    try:
        there = Maker.from_json(store.read(KEY))
    except Missing:
        return
    if there and (differences := there.differences(ours)):
        raise BadInput(
            f"{store.location} was started over with {'; '.join(differences)} while this run was at work; "
            "its unfinished songs are not stored; use those settings or another output"
        )


def settle(store: Store, maker: Maker, found: Survey, *, start_over: bool) -> None:
    """Make this output `maker`'s, or check that it is. Of two workers with different makers one wins.

    Raises BadInput that names each difference. `start_over` allows another maker where no song is
    finished yet. An output older than its `place.json` is that of its records.
    """
    for model, revision in found.makers.items():
        if (model, revision) != (maker.model, maker.revision):
            what = model if model != maker.model else f"another revision of {model}"
            of = "" if model != maker.model else f" ({revision}, not {maker.revision})"
            raise BadInput(
                f"{store.location} holds songs made by {what}{of}; give another output folder or prefix"
            )
    content = maker.to_json()
    while True:
        try:
            there, etag = store.read_tagged(KEY)
        except Missing:
            _refuse_others(store, maker, found.records.values())
            if store.create(KEY, content):
                return
            continue
        found_maker = Maker.from_json(there)
        if found_maker == maker:
            return
        if found_maker is None:
            _refuse_others(store, maker, found.records.values())
        else:
            # Asked again: another worker may have finished one while the model was loading.
            is_empty = not found.makers and not store.list("records/")
            if not (start_over and is_empty):
                raise _refusal(store, maker, found_maker, is_empty=is_empty)
        if store.replace(KEY, content, etag):
            return


def _refuse_others(store: Store, maker: Maker, finished: Iterable[Record]) -> None:
    """Raises BadInput if there are finished songs, and none is `maker`'s."""
    makers = [its for record in finished if (its := Maker.of_record(record))]
    if makers and maker not in makers:
        raise _refusal(store, maker, makers[0], is_empty=False)


def _refusal(store: Store, maker: Maker, other: Maker, *, is_empty: bool) -> BadInput:
    way_out = f", or {START_OVER} to begin its unfinished songs again" if is_empty else ""
    return BadInput(
        f"{store.location} is for songs made with {'; '.join(other.differences(maker))}; "
        f"use those settings, give another output folder or prefix{way_out}"
    )
