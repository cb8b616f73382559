"""The flags that say how tokens are chosen and become sound: the same for every task that starts a worker."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.errors import BadInput
from worker.store.base import Store

HELP = {
    "temperature": "Higher is more random (default: 1)",
    "top_k": "Tokens to choose from, 0: all (default: 250; HeartMuLa: 50)",
    "guidance_scale": "How closely to follow the prompt (default: 3; HeartMuLa: 1.5)",
    "codec_steps": "Steps from tokens to sound (HeartMuLa alone; default: 10)",
    "codec_guidance": "How closely the sound follows the tokens (HeartMuLa alone; default: 1.25)",
    "stride": "Seconds between the 30 s windows of a long song (MusicGen alone; default: 18)",
}
# As worker/songs/maker.py calls them.
_OF_TOKENS, _OF_SOUND = (
    ("temperature", "top_k", "guidance_scale", "stride_s"),
    ("codec_steps", "codec_guidance"),
)
_WHOLE = ("top_k", "codec_steps")


@dataclass(frozen=True)
class SamplingFlags:
    """Texts as a user gave them, empty for the default. Flags of the worker follow from them."""

    temperature: str = ""
    top_k: str = ""
    guidance_scale: str = ""
    stride: str = ""
    codec_steps: str = ""
    codec_guidance: str = ""

    def check(self, model: str) -> None:
        """Raises BadInput for a value that is not a number, is out of range, or not for this model."""
        from worker.songs import families, maker  # here: `inv --list` stays under 1 s

        family = families.of(model)
        maker.checked_sampling(family, **self._numbers(_OF_TOKENS))
        maker.checked_solver(family, **self._numbers(_OF_SOUND))

    def refuse_other(self, store: Store, model: str) -> None:
        """Raises BadInput if the songs of this output are made with other sampling."""
        from worker.songs import families, maker

        family = families.of(model)
        solver = maker.checked_solver(family, **self._numbers(_OF_SOUND))
        maker.refuse_other_sampling(store, family, solver, **self._numbers(_OF_TOKENS))

    def _numbers(self, names: Sequence[str]) -> dict[str, float]:
        texts = vars(self) | {"stride_s": self.stride}
        return {name: _number(name, texts[name]) for name in names if texts[name]}

    def flags(self, model: str) -> list[str]:
        """For `python -m worker` with this model. Raises BadInput."""
        self.check(model)
        return [f"--{name.replace('_', '-')}={text}" for name, text in vars(self).items() if text]


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name in _WHOLE else float(text)
    except ValueError:
        flag = f"--{name.removesuffix('_s').replace('_', '-')}"
        raise BadInput(f"{flag} {text!r} is not a number; write it like {flag}=1") from None
