"""The licence of a model's weights, which also says what songs made with them may be used for.

Judged by the model's name, before anything is fetched or rented.
"""

import re

from worker.errors import BadInput
from worker.songs import adapter, families
from worker.songs.model_names import REHEARSAL

NON_COMMERCIAL, APACHE, UNKNOWN = "CC-BY-NC 4.0", "Apache-2.0", "unknown"

_METAS = re.compile(r"facebook/(musicgen|audiogen|magnet|jasco)-.*", re.I)


def licence_of(model: str) -> str:
    """That of a model as it is given: a name or a folder. Of an adapter, that of its base model.

    UNKNOWN for other people's models, and for folders of a MusicGen: they do not say what they were made of.
    """
    if families.of(model) is families.HEARTMULA or model == REHEARSAL:
        return APACHE  # the rehearsal's random weights are this project's own
    return NON_COMMERCIAL if _METAS.fullmatch(adapter.base_model(model)) else UNKNOWN


def refuse_commercial_use(model: str) -> None:
    """Raises BadInput unless the model's weights may be used commercially."""
    licence = licence_of(model)
    if licence == APACHE:
        return
    why = "which is not known to allow" if licence == UNKNOWN else "which forbids"
    raise BadInput(
        f"the weights of {model} have the licence {licence}, {why} commercial use; use heartmula ({APACHE}), "
        "or take away --commercial and MUSICGEN_COMMERCIAL"
    )
