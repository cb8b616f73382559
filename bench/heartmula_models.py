"""HeartMuLas with random weights, in the sizes that are measured: as fast as real ones of that size."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from worker.heartmula.pretrained import Pretrained
from worker.models import heartmula_tree, tiny_heartmula
from worker.models.heartmula_config import FLAVOURS, CodecConfig, Flavour, MulaConfig

# A tenth of the weights of llama-3B and llama-300M, with as many heads to a key and value head.
FLAVOURS["tenth-backbone"] = Flavour(20, 9, 3, 1152, 3072, 8192)
FLAVOURS["tenth-depth"] = Flavour(2, 6, 3, 1152, 3072, 2048)
_CODES = 8192


@dataclass(frozen=True)
class Size:
    """A language model and its codec."""

    mula: MulaConfig
    codec: CodecConfig


def _mula(backbone: str, depth: str) -> MulaConfig:
    """With codes only: no token ends a song. And with the few text tokens of the builder's tokenizer."""
    return MulaConfig(backbone, depth, tiny_heartmula.MULA_CONFIG.text_vocab_size, _CODES)


SIZES = {
    # The codec has a third of the real one's widths.
    "tenth": Size(
        _mula("tenth-backbone", "tenth-depth"), CodecConfig(num_attention_heads=8, init_channel=20)
    ),
    "3B": Size(_mula("llama-3B", "llama-300M"), CodecConfig()),
}


@contextmanager
def built(name: str) -> Iterator[Pretrained]:
    """A size of SIZES in a temporary folder, while it is loaded; always the same."""
    size = SIZES[name]
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        tiny_heartmula.build(Path(temporary), mula=size.mula, codec=size.codec, shards=10)
        yield Pretrained(heartmula_tree.check(Path(temporary)), f"heartmula-{name}, random weights", "0")
