"""The flags that say how tokens are chosen: the same ones for every task that starts a worker."""

from dataclasses import dataclass

from worker.errors import BadInput
from worker.store.base import Store

HELP = {
    "temperature": "Higher is more random (default: 1)",
    "top_k": "Tokens to choose from, 0: all (default: 250; HeartMuLa: 50)",
    "guidance_scale": "How closely to follow the prompt (default: 3; HeartMuLa: 1.5)",
    "stride": "Seconds between the 30 s windows of a long song (MusicGen alone; default: 18)",
}


@dataclass(frozen=True)
class SamplingFlags:
    """Texts as a user gave them, empty for the default. Flags of the worker follow from them."""

    temperature: str = ""
    top_k: str = ""
    guidance_scale: str = ""
    stride: str = ""

    def check(self, model: str) -> None:
        """Raises BadInput for a value that is not a number, is out of range, or not for this model."""
        from worker.songs import families, maker  # here: `inv --list` stays under 1 s

        maker.checked_sampling(families.of(model), **self._numbers())

    def refuse_other(self, store: Store, model: str) -> None:
        """Raises BadInput if the songs of this output are made with other sampling."""
        from worker.songs import families, maker

        maker.refuse_other_sampling(store, families.of(model), **self._numbers())

    def _numbers(self) -> dict[str, float]:
        texts = vars(self) | {"stride_s": self.stride}
        return {name: _number(name, text) for name, text in texts.items() if text and name != "stride"}

    def flags(self, model: str) -> list[str]:
        """For `python -m worker` with this model. Raises BadInput."""
        self.check(model)
        return [f"--{name.replace('_', '-')}={text}" for name, text in vars(self).items() if text]


def _number(name: str, text: str) -> float:
    try:
        return int(text) if name == "top_k" else float(text)
    except ValueError:
        flag = f"--{name.removesuffix('_s').replace('_', '-')}"
        raise BadInput(f"{flag} {text!r} is not a number; write it like {flag}=1") from None
