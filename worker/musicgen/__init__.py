"""MusicGen: a checkpoint's weights, and the engine that makes songs with them."""

from worker.musicgen.engine import Engine

__all__ = ["Engine"]
