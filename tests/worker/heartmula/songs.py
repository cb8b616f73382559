"""Songs driven through a stepper by hand, as a scheduler would."""

from collections.abc import Iterable
from unittest import mock

import numpy as np
import torch

from tests.worker.heartmula.cases import Case, draws_of
from worker.decoding.kernels import NoCompiler
from worker.engine import Sampling
from worker.heartmula.layers import Placement
from worker.heartmula.model import Model
from worker.heartmula.prompt import Prompt, Prompter
from worker.heartmula.stepper import Stepper
from worker.heartmula.weights import Weights
from worker.models.heartmula_tree import Tree

N_COLUMNS = 3000
NOTHING = np.zeros((8, 0), np.int16)


def model(
    tree: Tree, dtype: torch.dtype = torch.float32, compiled: bool = True, device: str = "cpu"
) -> Model:
    """The tree's language model, all of whose tokens are codes.

    `compiled`: with C kernels where they can be built.
    """
    parts = (tree.mula, tree.mula.audio_vocab_size, Weights(tree.mula_weights))
    placement = Placement(torch.device(device), dtype)
    if compiled:
        return Model(*parts, placement)
    without = NoCompiler("left out")
    with (
        mock.patch("worker.heartmula.attention.build", side_effect=without),
        mock.patch("worker.heartmula.gate.build", side_effect=without),
        mock.patch("worker.decoding.linear.has_kernel", return_value=False),
    ):
        return Model(*parts, placement)


def stepper(model: Model, case: Case, slots: int = 1, n_columns: int = N_COLUMNS) -> Stepper:
    """A stepper with the case's sampling."""
    made = Stepper(model, slots, n_columns, case.audio_eos)
    made.reset(Sampling(case.guidance, case.top_k, case.temperature))
    return made


def prompt_of(tree: Tree, case: Case) -> Prompt:
    """The case's words as positions."""
    return Prompter(tree.folder / "tokenizer.json", tree.generation)(case.tags, case.lyrics)


def begin(on: Stepper, slot: int, prompt: Prompt, case: Case, known=NOTHING, chunk: int = 64) -> None:
    """Open a song and fill it, chunk by chunk on a grid."""
    on.set_text(slot, prompt)
    n = on.open(slot, known, draws_of(case))
    for start in range(0, n, chunk):
        on.fill(slot, start, min(start + chunk, n))
    on.start(slot)


def advance(on: Stepper, steps: int, n_slots: int | None = None) -> None:
    """Make so many frames of the first slots, or of all."""
    for _ in range(steps):
        on.step(on.n_columns, n_slots or on.slots)


def finished(on: Stepper, slot: int) -> np.ndarray:
    """A song that has ended, [codebooks, n]."""
    state = on.progress(slot + 1)[slot]
    assert not state.is_running
    assert not on.is_broken(slot)
    return on.read(slot, state.n_made)


def alone(model: Model, prompt: Prompt, case: Case, known=NOTHING, chunk: int = 64) -> np.ndarray:
    """The song in a stepper of its own."""
    on = stepper(model, case)
    begin(on, 0, prompt, case, known, chunk)
    advance(on, case.n_frames - known.shape[1])
    return finished(on, 0)


def varied(n: int, **facts) -> Iterable[Case]:
    """n songs of different words, lengths and draws."""
    for i in range(n):
        yield Case("rehearsal", 6 + i % 5, 1.5, 20, seed=100 + i, lyrics="la " * (3 * i), **facts)
