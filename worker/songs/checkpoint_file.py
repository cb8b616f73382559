"""Unfinished songs as files that another machine can resume: `checkpoints/NAME_HASH.safetensors`."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from worker.engine import Sampling, Song, Tokens, Unfinished
from worker.errors import BadInput

_SCHEMA = 1


class Unusable(ValueError):
    """A damaged checkpoint: nothing can be resumed from it. The text says why, in one line."""


class OtherSettings(ValueError):
    """A good checkpoint of a song that was begun with other settings. The text names the difference."""


def checkpoint_key(stem: str) -> str:
    """Where the checkpoint of NAME_HASH lies."""
    return f"checkpoints/{stem}.safetensors"


def tokens_key(stem: str) -> str:
    """Where the tokens of the finished song NAME_HASH lie, in the same form as a checkpoint."""
    return f"tokens/{stem}.safetensors"


def to_bytes(unfinished: Unfinished) -> bytes:
    """A safetensors file of the tokens, with all else as JSON and a checksum in its header."""
    song = {name: value for name, value in asdict(unfinished.song).items() if value or name != "lyrics"}
    facts = vars(unfinished) | {"song": song, "sampling": asdict(unfinished.sampling)}
    tokens = np.ascontiguousarray(facts.pop("tokens"))  # safetensors would mix up a view's elements
    text = json.dumps({"schema": _SCHEMA, "sha256": _checksum(facts, tokens)} | facts)
    content: bytes = save({"tokens": tokens}, metadata={"unfinished": text})
    return content


def from_bytes(content: bytes) -> Unfinished:
    """Raises Unusable if the content is damaged, OtherSettings if another version wrote it."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"]["unfinished"])
        if (schema := facts.pop("schema")) != _SCHEMA:
            raise OtherSettings(f"checkpoint schema {schema}, not {_SCHEMA}")
        tokens = load(content)["tokens"]
        if facts.pop("sha256") != _checksum(facts, tokens):
            raise Unusable("it is damaged (the checksum differs)")
        facts["song"], facts["sampling"] = Song(**facts["song"]), Sampling(**facts["sampling"])
        return Unfinished(tokens=tokens, **facts)
    except (Unusable, OtherSettings):
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, BadInput) as error:
        raise Unusable(f"it is damaged ({type(error).__name__})") from None


def _checksum(facts: dict[str, Any], tokens: Tokens) -> str:
    """SHA-256 of all that counts. safetensors would not notice a wrong token."""
    described = f"{json.dumps(facts)} {tokens.dtype} {tokens.shape} ".encode()
    return hashlib.sha256(described + tokens.tobytes()).hexdigest()
