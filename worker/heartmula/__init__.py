"""HeartMuLa, a model that sings: from tags and lyrics to the tokens of many songs at once, and to audio."""

from worker.heartmula.engine import Engine

__all__ = ["Engine"]
