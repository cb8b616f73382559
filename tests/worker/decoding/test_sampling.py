"""Random draws that depend on the song alone, and tokens chosen from logits with them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.decoding.sampling import draws, guide, pick
from worker.engine import Sampling

pytestmark = pytest.mark.xdist_group("engine")

SMALLEST, LARGEST = 0.0, 1 - 2.0**-24  # what a draw can be


def picked(logits, uniform, **how):
    """One token for each draw, all from the same logits."""
    uniform = torch.as_tensor(uniform, dtype=torch.float32)
    rows = torch.as_tensor(logits, dtype=torch.float32).expand(*uniform.shape, -1)
    return pick(rows, uniform, Sampling(**how))


def random_logits(rng, *shape):
    return torch.from_numpy(
        np.random.default_rng(rng.randrange(2**32)).normal(0, 3, shape).astype(np.float32)
    )


def random_draws(rng, *shape):
    return torch.from_numpy(np.random.default_rng(rng.randrange(2**32)).random(shape, np.float32))


# --- draws


@given(st.integers(0, 2**64 - 1), st.integers(0, 50), st.integers(0, 50), st.integers(1, 9))
def test_draws_do_not_depend_on_how_frames_are_split(seed, before, n_frames, n_codebooks):
    whole = draws(seed, 0, before + n_frames, n_codebooks)
    assert np.array_equal(whole[:before], draws(seed, 0, before, n_codebooks))
    assert np.array_equal(whole[before:], draws(seed, before, n_frames, n_codebooks))


@given(st.integers(0, 2**64 - 1), st.integers(0, 180_000), st.integers(1, 9))
def test_draws_are_at_least_0_and_under_1(seed, start, n_codebooks):
    drawn = draws(seed, start, 20, n_codebooks)
    assert drawn.shape == (20, n_codebooks) and drawn.dtype == np.float32
    assert drawn.min() >= 0 and drawn.max() < 1


@pytest.mark.parametrize("n_codebooks", [4, 8, 9])
def test_draws_of_a_song_hardly_repeat(n_codebooks):
    drawn = draws(1, 0, 500, n_codebooks)
    assert len(np.unique(drawn)) > 0.999 * drawn.size


def test_draws_of_other_seeds_differ():
    assert not (draws(1, 0, 100, 4) == draws(2, 0, 100, 4)).any()


def test_draws_never_change():
    """Frozen: other draws would change every song."""
    assert (draws(0, 0, 2, 4) * 2**24).astype(int).tolist() == GOLDEN[0]
    assert (draws(0x5C0FFEE0, 900, 2, 4) * 2**24).astype(int).tolist() == GOLDEN[1]


GOLDEN = [
    [[193722, 4052523, 1869415, 9469306], [8428531, 4657448, 15880378, 16543446]],
    [[9809039, 2557782, 5340099, 2776007], [3433589, 7803441, 4642372, 3305650]],
]


def test_draws_are_spread_evenly():
    counts = np.histogram(draws(3, 0, 10_000, 4), 20, (0, 1))[0]
    assert counts.min() > 1800 and counts.max() < 2200


# --- guidance


def test_guidance_of_1_is_the_conditional_half(rng):
    conditional, unconditional = random_logits(rng, 3, 8), random_logits(rng, 3, 8)
    assert torch.allclose(guide(conditional, unconditional, 1.0), conditional, atol=1e-5)


def test_guidance_of_0_is_the_unconditional_half(rng):
    conditional, unconditional = random_logits(rng, 3, 8), random_logits(rng, 3, 8)
    assert torch.equal(guide(conditional, unconditional, 0.0), unconditional)


# --- pick


def test_greedy_is_the_most_likely_token(rng):
    logits = random_logits(rng, 50, 4, 64)
    chosen = pick(logits, random_draws(rng, 50, 4), Sampling(greedy=True))
    assert torch.equal(chosen, logits.argmax(-1))


def test_top_1_is_greedy(rng):
    logits = random_logits(rng, 200, 64)
    assert torch.equal(pick(logits, random_draws(rng, 200), Sampling(top_k=1)), logits.argmax(-1))


@pytest.mark.parametrize("draw", [SMALLEST, 0.5, LARGEST])
@pytest.mark.parametrize("spread", [0.0, 1e-3, 3.0, 100.0])
def test_no_token_outside_the_top_k_is_chosen(rng, draw, spread):
    logits = random_logits(rng, 500, 64) * spread / 3
    best = logits.topk(5).values
    chosen = pick(logits, torch.full((500,), draw), Sampling(top_k=5))
    assert (logits.gather(1, chosen[:, None]) >= best[:, -1:]).all()


def test_smallest_and_largest_draw_choose_the_first_and_the_last_of_the_set():
    logits = [-9.0, 1.0, -9.0, 1.0, 1.0, -9.0]
    assert picked(logits, [SMALLEST, LARGEST], top_k=3).tolist() == [1, 4]


def test_token_of_probability_0_is_never_chosen():
    logits = [float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]
    assert picked(logits, [SMALLEST, 0.4999, 0.5, LARGEST], top_k=0).tolist() == [1, 1, 3, 3]


def test_tokens_tied_with_the_last_of_the_set_are_kept():
    evenly = (torch.arange(300) + 0.5) / 300
    chosen = picked([2.0, 1.0, 1.0, 1.0, 0.0], evenly, top_k=2)
    assert set(chosen.tolist()) == {0, 1, 2, 3}


def test_all_rows_together_are_each_row_alone(rng):
    logits, uniform = random_logits(rng, 40, 4, 64), random_draws(rng, 40, 4)
    together = pick(logits, uniform, Sampling(top_k=9))
    alone = [[pick(logits[i, k], uniform[i, k], Sampling(top_k=9)) for k in range(4)] for i in range(40)]
    assert together.tolist() == [[int(token) for token in row] for row in alone]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [6, 0])
def test_frequencies_follow_the_softmax(rng, top_k, temperature):
    n, logits = 20_000, random_logits(rng, 12) / 3
    kept = logits.where(logits >= logits.topk(top_k or 12).values[-1], float("-inf"))
    expected = n * (kept / temperature).softmax(-1).double()
    uniform = draws(rng.randrange(2**32), 0, n, 1)[:, 0]
    counts = picked(logits, uniform, top_k=top_k, temperature=temperature).bincount(minlength=12)
    deviation = ((counts - expected) ** 2 / expected.clamp(min=1e-9)).sum()
    assert deviation < 60  # chi-square with 11 degrees of freedom: once in 10^8


def test_top_k_of_0_keeps_the_whole_vocabulary():
    evenly = (torch.arange(640) + 0.5) / 640
    assert set(picked([0.0] * 64, evenly, top_k=0).tolist()) == set(range(64))


def test_top_k_over_the_vocabulary_is_the_whole_vocabulary(rng):
    logits, uniform = random_logits(rng, 100, 16), random_draws(rng, 100)
    assert torch.equal(pick(logits, uniform, Sampling(top_k=17)), pick(logits, uniform, Sampling(top_k=0)))


def test_low_temperature_is_nearly_greedy(rng):
    logits = random_logits(rng, 100, 16).round()  # at least 1 apart or tied
    chosen = pick(logits, random_draws(rng, 100), Sampling(temperature=0.01))
    assert torch.equal(logits.gather(1, chosen[:, None])[:, 0], logits.max(-1).values)


def test_scaling_logits_by_the_temperature_changes_nothing(rng):
    logits, uniform = random_logits(rng, 100, 16), random_draws(rng, 100)
    assert torch.equal(
        pick(logits * 2, uniform, Sampling(temperature=2.0)), pick(logits, uniform, Sampling(temperature=1.0))
    )


def test_logits_that_are_not_finite_give_tokens_that_can_be_embedded():
    """The song fails, not the step."""
    for value in (float("nan"), float("inf")):
        chosen = picked([value, 0.0, value, 1.0], [SMALLEST, 0.5, LARGEST], top_k=2)
        assert ((chosen >= 0) & (chosen < 4)).all()
