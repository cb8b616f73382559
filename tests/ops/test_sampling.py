"""Flags of sampling: checked here, and passed to the worker as they were given."""

import pytest

from ops.sampling import SamplingFlags
from worker.errors import BadInput


def test_only_what_was_given_is_passed_on():
    assert SamplingFlags().flags("rehearsal") == []
    given = SamplingFlags(temperature="0.90", top_k="0", guidance_scale="2.5", stride="12")
    assert given.flags("rehearsal") == [
        "--temperature=0.90",
        "--top-k=0",
        "--guidance-scale=2.5",
        "--stride=12",
    ]


@pytest.mark.parametrize(
    ("flag", "text", "says"),
    [
        ("temperature", "0", "temperature must be over 0"),
        ("temperature", "hot", "--temperature 'hot' is not a number; write it like --temperature=1"),
        ("top_k", "2.5", "--top-k '2.5' is not a number"),
        ("top_k", "-1", "top k must be 0 or more"),
        ("guidance_scale", "inf", "guidance scale must be 0 or more"),
        ("stride", "30", "--stride must be from 1 to under 30"),
        ("stride", "x", "--stride 'x' is not a number"),
    ],
)
def test_wrong_value_is_named(flag, text, says):
    flags = SamplingFlags(**{flag: text})
    with pytest.raises(BadInput, match=says):
        flags.flags("rehearsal")


def test_stride_is_refused_where_there_are_no_windows():
    with pytest.raises(BadInput, match="HeartMuLa makes a song in one pass; leave --stride out"):
        SamplingFlags(stride="12").flags("heartmula")
