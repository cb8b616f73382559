"""Unfinished songs as files that can be gone on with on another machine."""

import json
from dataclasses import asdict

from safetensors import SafetensorError
from safetensors.numpy import load, save

from worker.engine import Sampling, Song, Unfinished

_SCHEMA = 1


class Unusable(ValueError):
    """Not a song that can be gone on with. The text says why, in one line."""


def to_bytes(unfinished: Unfinished) -> bytes:
    """A safetensors file of the tokens, with all else as JSON in its header."""
    facts = vars(unfinished) | {
        "schema": _SCHEMA,
        "song": asdict(unfinished.song),
        "sampling": asdict(unfinished.sampling),
    }
    tokens = facts.pop("tokens")
    content: bytes = save({"tokens": tokens}, metadata={"unfinished": json.dumps(facts)})
    return content


def from_bytes(content: bytes) -> Unfinished:
    """Raises Unusable if the content is damaged."""
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"]["unfinished"])
        if (schema := facts.pop("schema")) != _SCHEMA:
            raise Unusable(f"it has schema {schema}, not {_SCHEMA}: another version wrote it")
        facts["song"], facts["sampling"] = Song(**facts["song"]), Sampling(**facts["sampling"])
        return Unfinished(tokens=load(content)["tokens"], **facts)
    except Unusable:
        raise
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unusable(f"it is damaged ({type(error).__name__})") from None
