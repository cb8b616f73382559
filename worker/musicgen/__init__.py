"""MusicGen: a checkpoint's weights, and the engine that generates songs from them."""

from worker.musicgen.engine import Engine

__all__ = ["Engine"]
