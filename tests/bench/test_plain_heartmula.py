"""The loop that the engine is compared with makes heartlib's songs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.plain_heartmula import PlainLoop
from tests.worker.heartmula import cases, songs
from worker.models import heartmula_tree

REFERENCE = Path(songs.__file__).with_name("reference.npz")


@pytest.mark.parametrize("shape", cases.SHAPES)
def test_plain_loop_makes_heartlibs_tokens(tmp_path, shape):
    case = cases.CASES[f"{shape}-greedy"]
    tree = heartmula_tree.check(cases.build(tmp_path, shape))
    tree = replace(tree, generation=replace(tree.generation, audio_eos_id=case.audio_eos))
    plain = PlainLoop(tree, torch.device("cpu"), torch.float32)
    made = plain.tokens(songs.prompt_of(tree, case), case.n_frames)
    assert np.array_equal(made, np.load(REFERENCE)[f"tokens/{shape}-greedy"])
