"""NaN and infinity are found in every type of weight, at every position, in little memory."""

import struct
import tracemalloc

import numpy as np
import pytest

from tests.worker.models.files import written
from worker.models import finite
from worker.models.finite import first_not_finite
from worker.models.safetensors_file import Damaged, read_header

BAD = [float("nan"), float("inf"), float("-inf")]
# The largest, the smallest, both zeros: of bf16, as it is fp32's upper half, too.
FINE = [0.0, -0.0, 1.5, -65504.0, 6e-8]
PER_CHUNK = 16


def stored(dtype, values):
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return np.array(values, {"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


@pytest.fixture
def found(tmp_path, monkeypatch):
    """The first tensor that is not finite in a file of the given ones, read in small chunks."""

    def look(dtype, tensors):
        item = 4 if dtype == "F32" else 2
        monkeypatch.setattr(finite, "CHUNK_BYTES", PER_CHUNK * item)
        rows = {name: (dtype, [len(values)], stored(dtype, values)) for name, values in tensors.items()}
        path = written(tmp_path / "model.safetensors", rows)
        return first_not_finite(path, read_header(path))

    return look


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_finite_weights_pass(found, dtype):
    assert found(dtype, {"a": FINE * 20, "b": [], "c": FINE}) is None


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("position", [0, PER_CHUNK - 1, PER_CHUNK, 99])
def test_one_bad_number_names_its_tensor(found, dtype, bad, position):
    values = FINE * 20
    values[position] = bad
    assert found(dtype, {"a": FINE, "b": values, "c": [bad]}) == "b"


@pytest.mark.parametrize(
    ("dtype", "largest"), [("F16", 0x7BFF), ("BF16", 0x7F7F), ("F32", 0x7F7F_FFFF), ("F32", 0x0000_0001)]
)
def test_extreme_finite_numbers_pass(tmp_path, dtype, largest):
    content = largest.to_bytes(4 if dtype == "F32" else 2, "little")
    path = written(tmp_path / "model.safetensors", {"a": (dtype, [1], content)})
    assert first_not_finite(path, read_header(path)) is None


def test_flags_are_no_numbers(tmp_path):
    path = written(tmp_path / "model.safetensors", {"a": ("BOOL", [2], b"\1\1")})
    assert first_not_finite(path, read_header(path)) is None


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(finite, "CHUNK_BYTES", 1 << 16)
    path = written(tmp_path / "model.safetensors", {"a": ("F32", [1 << 20], bytes(4 << 20))})
    tensors = read_header(path)
    tracemalloc.start()
    first_not_finite(path, tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_file_that_became_shorter_is_damaged(tmp_path):
    path = written(tmp_path / "model.safetensors", {"a": ("F32", [4], bytes(16))})
    tensors = read_header(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Damaged, match="shorter"):
        first_not_finite(path, tensors)
