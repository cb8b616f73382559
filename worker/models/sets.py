"""Which model sets there are: one table. A set is one folder of real files, from one or more repositories.

A name is a set's own, a short alias, or any Hugging Face id, which is then expected to be a MusicGen.
Touches no disk and no network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker.errors import BadInput
from worker.models import heartmula_tree
from worker.models.heartmula_config import CodecConfig, MulaConfig, parse
from worker.songs import supported
from worker.songs.families import HEARTMULA_NAMES
from worker.songs.licences import APACHE, NON_COMMERCIAL
from worker.songs.model_names import HUB_ID

# What transformers needs of a checkpoint. Repositories hold the same weights in other formats beside these.
_CHECKPOINT = ("*.json", "*.safetensors", "spiece.model")
_WEIGHTS = "*.safetensors"

Judge = Callable[[object, str], None]


@dataclass(frozen=True)
class Part:
    """One repository of a set, and where its files lie below the set's folder.

    `files`: patterns of the names that are fetched, of the repository's own folder alone; each of `needs`
    must match one. `judge`: raises BadInput for a config.json of something that cannot run here.
    """

    repo: str
    folder: str = ""
    files: tuple[str, ...] = _CHECKPOINT
    needs: tuple[str, ...] = ("config.json", _WEIGHTS)
    judge: Judge | None = None
    revision: str = "main"  # resolved to a commit once, which the set then keeps


@dataclass(frozen=True)
class ModelSet:
    """A named set. `about_bytes`: for plans, None if not known. `setting`: what may name its folder.

    `whole`: raises Unfit unless the files in a folder make one model; with True it reads every weight.
    """

    name: str
    parts: tuple[Part, ...]
    licence: str
    about_bytes: float | None = None
    setting: str | None = None
    whole: Callable[[Path, bool], object] | None = None


def _musicgen(repo: str, licence: str, about_bytes: float | None = None) -> ModelSet:
    return ModelSet(repo, (Part(repo, judge=supported.judge),), licence, about_bytes)


# In fp32, by the number of parameters; a stereo MusicGen has twice the codebooks.
_MUSICGEN_BYTES = {
    "musicgen-small": 2.4e9,
    "musicgen-medium": 8.0e9,
    "musicgen-large": 13.7e9,
    "musicgen-stereo-small": 2.4e9,
    "musicgen-stereo-medium": 8.1e9,
    "musicgen-stereo-large": 13.8e9,
}
_OTHER_RELEASE = "update this program, or try again when the hub has another release"
_HEARTMULA_RELEASE = "HeartMuLa/HeartMuLa-oss-3B-happy-new-year"


def _judge_heartmula(kind: type[MulaConfig] | type[CodecConfig], model_type: str) -> Judge:
    def judge(config: object, model: str) -> None:
        found = config.get("model_type") if isinstance(config, dict) else None
        if not isinstance(config, dict) or found != model_type:
            raise BadInput(f"{model} describes a {found!r} model, not {model_type}; {_OTHER_RELEASE}")
        try:
            parse(kind, config)
        except ValueError as error:
            raise BadInput(f"{model} cannot run here: {error}; {_OTHER_RELEASE}") from None

    return judge


def _whole_heartmula(folder: Path, finite: bool) -> object:
    return heartmula_tree.check(folder, model=_HEARTMULA_RELEASE, finite=finite)


_HEARTMULA = ModelSet(
    "heartmula-3b",
    (
        Part("HeartMuLa/HeartMuLaGen", "", *2 * (("gen_config.json", "tokenizer.json"),)),
        # Whatever the release, the folder's name is the one that its loader expects.
        Part(_HEARTMULA_RELEASE, heartmula_tree.MULA, judge=_judge_heartmula(MulaConfig, "heartmula")),
        Part(
            "HeartMuLa/HeartCodec-oss-20260123",
            heartmula_tree.CODEC,
            judge=_judge_heartmula(CodecConfig, "heartcodec"),
        ),
    ),
    APACHE,
    22.4e9,
    "MUSICGEN_HEARTMULA_DIR",
    _whole_heartmula,
)

NAMED: dict[str, ModelSet] = {
    **{
        f"facebook/{alias}": _musicgen(f"facebook/{alias}", NON_COMMERCIAL, n_bytes)
        for alias, n_bytes in _MUSICGEN_BYTES.items()
    },
    _HEARTMULA.name: _HEARTMULA,
}


def full_name(name: str) -> str:
    """`musicgen-small` -> `facebook/musicgen-small`, `heartmula` -> `heartmula-3b`; others as they are."""
    if name in _MUSICGEN_BYTES:
        return f"facebook/{name}"
    return HEARTMULA_NAMES.get(name, name)


def find(name: str) -> ModelSet:
    """The set of this name. Raises BadInput for what cannot be one, or is known not to run."""
    name = full_name(name)
    if name in NAMED:
        return NAMED[name]
    if not HUB_ID.fullmatch(name):
        known = ", ".join(each.rpartition("/")[2] for each in NAMED)
        raise BadInput(f"there is no model {name}; name one of {known}, or a Hugging Face id like owner/name")
    supported.refuse_by_name(name)
    return _musicgen(name, f"see huggingface.co/{name}")
