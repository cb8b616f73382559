"""Headers of safetensors files: what is read is what was written, and damage is noticed."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from tests.worker.models.files import written
from worker.models.safetensors_file import Damaged, read_header

ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array(True),
    "empty": np.zeros((0, 4), np.float16),
    "z": np.arange(4, dtype=np.int64),
}
CONTENT = save(ARRAYS, metadata={"format": "pt"})
ONE = {"a": ("F32", [2], bytes(8))}


def whole(begin=0, end=8, **facts):
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]} | facts}).encode()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("file") / "model.safetensors"


def test_each_tensor_is_found_where_its_bytes_are(path):
    path.write_bytes(CONTENT)
    tensors = read_header(path)
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        found = tensors[name]
        assert found.shape == array.shape
        assert CONTENT[found.start : found.start + found.n_bytes] == array.tobytes()


def test_types_have_the_names_of_the_format(path):
    path.write_bytes(CONTENT)
    types = {name: tensor.dtype for name, tensor in read_header(path).items()}
    assert types == {"a.weight": "F32", "b": "BOOL", "empty": "F16", "z": "I64"}


@given(st.integers(0, len(CONTENT) - 1))
def test_file_that_ends_anywhere_earlier_is_damaged(path, length):
    path.write_bytes(CONTENT[:length])
    with pytest.raises(Damaged):
        read_header(path)


def test_truncated_file_is_reported_with_both_sizes(path):
    path.write_bytes(written(path, {"a": ("U8", [1_000_000], bytes(1_000_000))}).read_bytes()[:500_000])
    with pytest.raises(Damaged, match=r"is truncated \(0.5 MB of 1.0 MB\)"):
        read_header(path)


def test_file_with_more_behind_its_tensors_is_damaged(path):
    path.write_bytes(CONTENT + b"\0")
    with pytest.raises(Damaged, match="longer than its header says"):
        read_header(path)


def test_page_saved_under_the_name_of_a_file_is_none(path):
    path.write_text("<!doctype html><title>404</title>", "utf-8")
    with pytest.raises(Damaged, match="is not a safetensors file"):
        read_header(path)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"\xff{}",
        b'{"a": ',
        b"[" * 100_000,
        b'{"a": 1}',
        b'{"a": {"dtype": "F32", "shape": [2]}}',
        whole(dtype="F31"),
        whole(dtype=["F32"]),
        whole(shape=2),
        whole(shape=[3]),
        whole(shape=[-2]),
        whole(shape=[2.0]),
        whole(shape=["2"]),
        whole(shape=[True, 2]),
        whole(data_offsets=[0]),
        whole(begin=-8, end=0),
        whole(begin=8, end=16),
        whole(begin=8, end=0),
        whole()[:-1] + b", " + whole()[1:],
    ],
)
def test_damaged_header_is_refused(path, header):
    written(path, ONE, header)
    with pytest.raises(Damaged):
        read_header(path)


def test_tensors_that_overlap_are_refused(path):
    facts = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    written(path, ONE, json.dumps({"a": facts, "b": facts}).encode())
    with pytest.raises(Damaged, match="overlap"):
        read_header(path)
