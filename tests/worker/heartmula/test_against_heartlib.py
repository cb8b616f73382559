"""The engine makes the tokens that heartlib makes, from the same words and the same draws.

reference.npz holds what heartlib made (make_reference.py). Where HEARTLIB_PYTHON names an interpreter that
has heartlib, it is made anew and compared.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.worker.heartmula import songs
from tests.worker.heartmula.cases import CASES, POSITIONS, SHAPES, TEXTS, draws_of, tokenizers
from worker.decoding.sampling import draws, pick
from worker.engine import Sampling
from worker.heartmula.attention import rotations
from worker.heartmula.prompt import Prompter

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def reference():
    return dict(np.load(HERE / "reference.npz"))


@pytest.mark.parametrize("name", CASES)
def test_song_has_heartlibs_tokens(models, trees, reference, name):
    case = CASES[name]
    made = songs.alone(models[case.shape], songs.prompt_of(trees[case.shape], case), case)
    assert np.array_equal(made, reference[f"tokens/{name}"])


@pytest.mark.parametrize("name", CASES)
def test_song_has_heartlibs_tokens_without_c_kernels(plain_models, trees, reference, name):
    case = CASES[name]
    made = songs.alone(plain_models[case.shape], songs.prompt_of(trees[case.shape], case), case)
    assert np.array_equal(made, reference[f"tokens/{name}"])


def test_songs_are_more_than_one_token_again_and_again(reference):
    """Else the tests above would prove little."""
    for name, case in CASES.items():
        if case.n_frames > 1:
            assert len(np.unique(reference[f"tokens/{name}"])) > 30, name


@pytest.mark.parametrize("shape", SHAPES)
def test_song_ends_before_a_frame_with_an_end_token_but_not_at_its_first(reference, shape):
    early, later = reference[f"tokens/{shape}-ends"], reference[f"tokens/{shape}-ends-later"]
    last = CASES[f"{shape}-ends"].audio_eos
    assert 1 < early.shape[1] < 40
    assert early.max() < last
    assert 1 < later.shape[1] < 40
    assert later[:, 0].max() >= last > later[:, 1:].max()


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_song_is_that_of_the_best_token(models, trees, reference, shape):
    case = CASES[f"{shape}-greedy"]
    on = songs.stepper(models[shape], case)
    on.reset(Sampling(case.guidance, greedy=True))
    songs.begin(on, 0, songs.prompt_of(trees[shape], case), case)
    songs.advance(on, case.n_frames)
    assert np.array_equal(songs.finished(on, 0), reference[f"tokens/{shape}-greedy"])


@pytest.mark.parametrize("shape", SHAPES)
def test_tokens_are_drawn_with_heartlibs_probabilities(reference, shape):
    """Of evenly spaced draws each token gets its share."""
    case, n = CASES[f"{shape}-drawn"], 4000
    logits = torch.from_numpy(reference[f"sampling/{shape}/logits"])
    uniform = (torch.arange(n) + 0.5) / n
    sampling = Sampling(case.guidance, case.top_k, case.temperature)
    for row, wanted in zip(logits, reference[f"sampling/{shape}/probabilities"], strict=True):
        tokens = pick(row.expand(n, -1), uniform, sampling)
        share = np.bincount(tokens.numpy(), minlength=len(row)) / n
        assert (wanted > 0).sum() == case.top_k
        assert np.abs(share - wanted).max() <= 1.01 / n


@pytest.mark.parametrize("head", [128, 384])
def test_positions_turn_the_pairs_of_a_head_as_in_heartlib(reference, head):
    ours = torch.view_as_real(rotations(head, 8192)[POSITIONS]).numpy()
    assert np.allclose(ours, reference[f"rotation/{head}"], rtol=0, atol=1e-6)


def test_a_songs_draws_are_those_that_heartlib_was_given():
    case = CASES["test-drawn"]
    assert np.array_equal(draws(case.seed, 0, case.n_frames, 8), draws_of(case))


@pytest.mark.parametrize("tokenizer", [0, 1])
@pytest.mark.parametrize("text", range(len(TEXTS)))
def test_prompt_is_heartlibs(trees, reference, tokenizer, text):
    tree = trees["rehearsal"]
    path = tokenizers(tree.folder)[tokenizer]
    prompt = Prompter(path, tree.generation)(*TEXTS[text])
    kept = f"prompt/{tokenizer}/{text}"
    assert prompt.ids == tuple(reference[f"{kept}/ids"])
    assert prompt.reference == reference[f"{kept}/reference"]


@pytest.mark.skipif("HEARTLIB_PYTHON" not in os.environ, reason="HEARTLIB_PYTHON names no interpreter")
def test_kept_data_are_what_heartlib_makes_today(reference, tmp_path):
    out = tmp_path / "reference.npz"
    subprocess.run([os.environ["HEARTLIB_PYTHON"], str(HERE / "make_reference.py"), str(out)], check=True)
    made = dict(np.load(out))
    assert made.keys() == reference.keys()
    for name, array in made.items():
        if name.startswith("sampling/"):  # another CPU rounds otherwise
            assert np.allclose(array, reference[name], atol=1e-4), name
        else:
            assert np.array_equal(array, reference[name]), name
