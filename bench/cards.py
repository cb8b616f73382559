"""How many songs at once fit on GPUs that are for rent, by arithmetic: a section of docs/benchmarks.md."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench import models
from bench.memory import Needs, module_bytes
from worker.decoding import device
from worker.musicgen import windows
from worker.musicgen.layers import Shape

# What CUDA, cuBLAS and cuDNN themselves take.
CONTEXT_BYTES = 700_000_000
_MIB = 1 << 20
WINDOW = round(windows.WINDOW_S * 50)  # frames

_CONTEXT, _SPARE, _MOST = CONTEXT_BYTES / 1e9, device.SPARE_BYTES / 1e9, device.MAX_SLOTS["cuda"]
HEAD = f"""## Songs at once on a GPU

By arithmetic, **not measured**: the slots that fit beside the weights, the CUDA context (assumed:
{_CONTEXT:g} GB), and {_SPARE:g} GB for steps and decoding. The first number is in bf16 (fp16 on a T4),
the default; the second in fp32, where it differs. By itself the engine takes {_MOST} slots at most.
"""
_PRECISIONS = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Card:
    """A GPU and its memory as nvidia-smi shows it."""

    name: str
    mib: int

    @property
    def n_bytes(self) -> int:
        return self.mib * _MIB


CARDS = (
    Card("T4, 16 GB", 15_360),
    Card("A10G, 24 GB", 23_028),
    Card("L4, 24 GB", 23_034),
    Card("RTX 4090, 24 GB", 24_564),
    Card("A100, 40 GB", 40_960),
    Card("A40, 48 GB", 46_068),
    Card("L40S, 48 GB", 46_068),
    Card("A100, 80 GB", 81_920),
    Card("H100, 80 GB", 81_559),
)
MODELS = tuple((size, channels) for channels in (1, 2) for size in models.SIZES)


@functools.cache
def needs(size: str, channels: int, dtype: torch.dtype) -> Needs:
    """Of `facebook/musicgen-{size}`, or of its stereo variant."""
    hidden, n_layers, n_heads, ffn = models.SIZES[size]
    shape = Shape(n_layers, n_heads, hidden // n_heads, 4 * channels, 2048, channels)
    n_columns = windows.n_columns(WINDOW, shape.n_codebooks, channels)
    return Needs.of(shape, ffn, n_columns, dtype, _beside() + _projection_bytes(hidden))


def slots(card: Card, needed: Needs) -> int:
    """The slots that the engine chooses by default on this card with nothing else on it; 0: none fits."""
    free = card.n_bytes - CONTEXT_BYTES - needed.decoder - needed.beside - device.SPARE_BYTES
    return max(0, device.slots_in(free, needed.cache, "cuda"))


def section() -> str:
    """Both tables, as Markdown: slots of each card, and the bytes that they follow from."""
    lines = [HEAD, *_head("slots")]
    lines += [_row(card.name, functools.partial(_slots_cell, card)) for card in CARDS]
    lines += ["", *_head("GB")]
    lines.append(_row("decoder", lambda needed: f"{needed.decoder / 1e9:.2f}"))
    lines.append(_row("text encoder and codec, fp32", lambda needed: f"{needed.beside / 1e9:.2f}"))
    lines.append(_row("a slot", lambda needed: f"{needed.cache / 1e9:.2f}"))
    return "\n".join([*lines, ""])


def _slots_cell(card: Card, needed: Needs) -> str:
    return str(slots(card, needed) or "-")


def _head(first: str) -> list[str]:
    names = [f"{size}, stereo" if channels == 2 else size for size, channels in MODELS]
    return [f"| {first} | {' | '.join(names)} |", "|---|" + "---|" * len(names)]


def _row(first: str, cell: Callable[[Needs], str]) -> str:
    """One line of a table: for each model what the cell is in each precision."""
    cells = [list(dict.fromkeys(cell(needs(*model, dtype)) for dtype in _PRECISIONS)) for model in MODELS]
    return f"| {first} | {' | '.join(' / '.join(both) for both in cells)} |"


@functools.cache
def _beside() -> int:
    """Bytes of text encoder and codec, which all sizes share, fp32."""
    with torch.device("meta"):
        return module_bytes(models.text_encoder_and_codec())


def _projection_bytes(hidden: int) -> int:
    """Bytes of the layer between text encoder and decoder, with its bias."""
    return 4 * (int(models.TEXT.d_model) + 1) * hidden
