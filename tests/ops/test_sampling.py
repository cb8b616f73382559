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
        (
            "codec_steps",
            "20",
            "--codec-steps and --codec-guidance are for HeartMuLa; leave them out for a MusicGen",
        ),
        ("codec_guidance", "2", "are for HeartMuLa; leave them out"),
    ],
)
def test_wrong_value_is_named(flag, text, says):
    flags = SamplingFlags(**{flag: text})
    with pytest.raises(BadInput, match=says):
        flags.flags("rehearsal")


@pytest.mark.parametrize(
    ("flag", "text", "says"),
    [
        ("codec_steps", "0", "codec steps must be from 1 to 1000; HeartMuLa's default is 10"),
        ("codec_steps", "1001", "codec steps must be from 1 to 1000"),
        ("codec_steps", "2.5", "--codec-steps '2.5' is not a number"),
        ("codec_guidance", "nan", "codec guidance must be from 0 to 100; HeartMuLa's default is 1.25"),
        ("codec_guidance", "inf", "codec guidance must be from 0 to 100"),
        ("codec_guidance", "-1", "codec guidance must be from 0 to 100"),
        ("codec_guidance", "strong", "--codec-guidance 'strong' is not a number"),
    ],
)
def test_wrong_value_for_the_codec_is_named(flag, text, says):
    with pytest.raises(BadInput, match=says) as caught:
        SamplingFlags(**{flag: text}).flags("heartmula")
    assert "\n" not in str(caught.value)


def test_settings_of_the_codec_are_passed_on_for_a_model_that_has_them():
    given = SamplingFlags(codec_steps="25", codec_guidance="1.5")
    assert given.flags("heartmula") == ["--codec-steps=25", "--codec-guidance=1.5"]


def test_stride_is_refused_where_there_are_no_windows():
    with pytest.raises(BadInput, match="HeartMuLa makes a song in one pass; leave --stride out"):
        SamplingFlags(stride="12").flags("heartmula")
