"""Unfinished songs as files that can be gone on with on another machine."""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from worker.engine import Sampling, Song, Tokens, Unfinished

_SCHEMA = 1


class Unusable(ValueError):
    """Not a song that can be gone on with. The text says why, in one line."""


def to_bytes(unfinished: Unfinished) -> bytes:
    """A safetensors file of the tokens, with all else as JSON and a checksum in its header."""
    facts = vars(unfinished) | {"song": asdict(unfinished.song), "sampling": asdict(unfinished.sampling)}
    tokens = np.ascontiguousarray(facts.pop("tokens"))  # safetensors would mix up a view's elements
    text = json.dumps({"schema": _SCHEMA, "sha256": _checksum(facts, tokens)} | facts)
    content: bytes = save({"tokens": tokens}, metadata={"unfinished": text})
    return content


def from_bytes(content: bytes) -> Unfinished:
    """Raises Unusable if the content is damaged."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"]["unfinished"])
        if (schema := facts.pop("schema")) != _SCHEMA:
            raise Unusable(f"it has schema {schema}, not {_SCHEMA}: another version wrote it")
        tokens = load(content)["tokens"]
        if facts.pop("sha256") != _checksum(facts, tokens):
            raise Unusable("it is damaged (the checksum differs)")
        facts["song"], facts["sampling"] = Song(**facts["song"]), Sampling(**facts["sampling"])
        return Unfinished(tokens=tokens, **facts)
    except Unusable:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"it is damaged ({type(error).__name__})") from None


def _checksum(facts: dict[str, Any], tokens: Tokens) -> str:
    """SHA-256 of all that counts. safetensors would not notice a wrong token."""
    described = f"{json.dumps(facts)} {tokens.dtype} {tokens.shape} ".encode()
    return hashlib.sha256(described + tokens.tobytes()).hexdigest()
