"""Tiny checkpoints, prompts and songs that this engine and heartlib are given alike. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.models import tiny_heartmula
from worker.models.heartmula_config import FLAVOURS, Flavour, MulaConfig

# A second shape, with other groups of heads than the rehearsal's, and more layers.
FLAVOURS["test-backbone"] = Flavour(3, 6, 2, 48, 80, 8192)
FLAVOURS["test-depth"] = Flavour(2, 4, 4, 32, 48, 2048)
SHAPES = {
    "rehearsal": tiny_heartmula.MULA_CONFIG,
    "test": MulaConfig("test-backbone", "test-depth", tiny_heartmula.MULA_CONFIG.text_vocab_size, 100),
}
NEVER = 10_000  # no token ends a song


@dataclass(frozen=True)
class Case:
    """A song. `seed` is that of its draws."""

    shape: str
    n_frames: int
    guidance: float
    top_k: int
    temperature: float = 1.0
    seed: int = 0
    audio_eos: int = NEVER
    tags: str = "Piano,Happy"
    lyrics: str = "[Verse]\nLa la, the SUN\n\n[Chorus]\nOh\n"


# Tokens so late in the vocabulary that a song may last some frames before there is one.
LAST = {"rehearsal": 63, "test": 98}
CASES = {
    f"{shape}-{name}": Case(shape, **facts)
    for shape in SHAPES
    for name, facts in {
        "greedy": {"n_frames": 20, "guidance": 1.5, "top_k": 1},
        "greedy-unguided": {"n_frames": 20, "guidance": 1.0, "top_k": 1},
        "drawn": {"n_frames": 60, "guidance": 1.5, "top_k": 20, "seed": 1},
        "drawn-strongly": {"n_frames": 20, "guidance": 4.0, "top_k": 7, "temperature": 1.3, "seed": 2},
        "drawn-unguided": {"n_frames": 20, "guidance": 1.0, "top_k": 50, "temperature": 0.9, "seed": 3},
        "drawn-below-one": {"n_frames": 20, "guidance": 0.5, "top_k": 50, "seed": 4},
        "one-frame": {"n_frames": 1, "guidance": 1.5, "top_k": 20, "seed": 5},
        "long-prompt": {"n_frames": 10, "guidance": 1.5, "top_k": 20, "seed": 6, "lyrics": "la\n" * 900},
        "ends": {"n_frames": 40, "guidance": 1.5, "top_k": 20, "seed": 7, "audio_eos": LAST[shape]},
    }.items()
}
# Their first frames hold a token that ends a song, and they go on.
CASES |= {
    "rehearsal-ends-later": Case("rehearsal", 40, 1.5, 20, seed=13, audio_eos=LAST["rehearsal"]),
    "test-ends-later": Case("test", 40, 1.5, 20, seed=15, audio_eos=LAST["test"]),
}

POSITIONS = [0, 1, 2, 7, 100, 2047, 8191]
TEXTS = [
    ("piano,happy", "[verse]\nla la\n"),
    ("Piano,HAPPY", "[Intro]\n\n[Verse]\nÄrger ÉTÉ ΣΑΣ İ\n"),
    ("<tag>rock</tag>", "oh"),
    ("<TAG>rock", "</tag> in the lyrics <tag>"),
    ("", " "),
    ("雨,<|end_of_text|>", "<|begin_of_text|>no<|end_of_text|>"),
]


def build(folder: Path, shape: str) -> Path:
    """Write a checkpoint of this shape: the whole tree, with a codec that does not matter."""
    tiny_heartmula.build(folder, mula=SHAPES[shape])
    return folder


def tokenizers(folder: Path) -> list[Path]:
    """The checkpoint's tokenizer, and one that puts <bos> before each text, as the real one does."""
    plain = folder / "tokenizer.json"
    content = json.loads(plain.read_text("utf-8"))
    bos = "<|begin_of_text|>"
    number = tiny_heartmula.GENERATION.text_bos_id
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [number], "tokens": [bos]}},
    }
    beginning = folder / "beginning.json"
    beginning.write_text(json.dumps(content), "utf-8")
    return [plain, beginning]


def draws_of(case: Case) -> np.ndarray:
    """The song's draws, [n_frames, codebooks], from numpy's Philox itself."""
    words = np.random.Philox(key=case.seed).random_raw(case.n_frames * 8).reshape(case.n_frames, 8)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
