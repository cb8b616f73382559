"""HeartMuLa's benchmark to its end, with the rehearsal's sizes."""

import math
from functools import partial

import pytest
import torch

from bench import heartmula_cases, roofline
from bench.heartmula_cases import Bench
from bench.heartmula_models import SIZES, Size
from bench.plain_heartmula import PlainLoop
from worker.models import tiny_heartmula
from worker.models.heartmula_shapes import mula_shapes

pytestmark = pytest.mark.xdist_group("engine")


@pytest.fixture(scope="module")
def bench():
    """The cases, of which the machine's limits are measured hastily."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "tiny", Size(tiny_heartmula.MULA_CONFIG, tiny_heartmula.CODEC_CONFIG))
        patch.setattr(roofline, "gemm_flops", partial(roofline.gemm_flops, size=64))
        patch.setattr(roofline, "read_bandwidth", partial(roofline.read_bandwidth, n_bytes=1 << 16))
        patch.setattr(heartmula_cases, "LATE", 300)
        yield Bench("tiny", "cpu", repetitions=2, frames=6, slots=5)


def test_every_case_gives_figures(bench):
    for case in Bench.CASES:
        made = list(getattr(bench, case)())
        assert made, case
        assert all(figure.case == case and figure.value.least > 0 for figure in made)


def of_engine(figures):
    """What the engine's figures say of its tokens."""
    return [figure.note for figure in figures if figure.what.startswith("engine, fp32")]


def test_engine_makes_the_plain_loops_tokens_with_any_number_of_slots(bench):
    assert [note.rpartition("; ")[2] for note in of_engine(bench.songs())] == [
        "tokens equal to the plain loop's: all"
    ] * 3


def test_other_tokens_than_the_plain_loops_are_noticed(bench, monkeypatch):
    made = PlainLoop.tokens
    monkeypatch.setattr(PlainLoop, "tokens", lambda *given: 1 - made(*given))
    assert all("NOT all" in note for note in of_engine(bench.songs()))


@pytest.mark.parametrize("size", ["tenth", "3B"])
def test_weights_that_a_frame_reads_are_those_of_the_checkpoint(size):
    config = SIZES[size].mula

    def weights(*names):
        shapes = mula_shapes(config).items()
        return sum(math.prod(shape) for name, shape in shapes if name.startswith(names) and len(shape) > 1)

    heads = weights("codebook0_head", "audio_head")
    depth = weights("decoder.", "projection")
    read = weights("backbone.") + heads + 7 * depth
    assert roofline.frame_bytes(config, torch.bfloat16) == 2 * read


def test_tenth_has_a_tenth_of_the_real_models_layers():
    tenth, real = (roofline.frame_bytes(SIZES[size].mula, torch.float32) for size in ("tenth", "3B"))
    assert 0.09 < tenth / real < 0.12
