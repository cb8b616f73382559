"""Graphs of a step that is no model's; tests/worker/*/test_graphs.py have those of both families."""

import gc
import weakref

import pytest
import torch

from tests.worker.decoding.recorder import not_permitted
from worker.decoding import graphs
from worker.decoding.graphs import Graphs

CPU = torch.device("cpu")


class Stepper:
    """Notes the sizes of its steps, and how many slots advance in each."""

    def __init__(self, slots):
        self.graphs = Graphs(CPU, slots)
        self.running = torch.ones(slots, dtype=torch.bool)
        self.made = []

    def capture(self, of="one", buckets=(256, 512)):
        self.graphs.capture(of, buckets, self.advance, self.running)

    def step(self, bucket, n_slots):
        self.graphs.run(bucket, n_slots, self.advance)

    def advance(self, bucket, n_slots):
        self.made.append((bucket, n_slots, int(self.running.sum())))


@pytest.fixture
def recording(monkeypatch):
    """Sizes that were replayed, by a recorder whose graphs hold nothing, as CUDA's."""
    replayed = []

    def record(work):
        size = work.args
        work()
        return lambda: replayed.append(size)

    monkeypatch.setattr(graphs, "recorder", lambda _: record)
    return replayed


def test_without_graphs_a_step_is_what_it_is():
    stepper = Stepper(5)
    stepper.capture()
    stepper.step(256, 3)
    assert stepper.made == [(256, 3, 5)]


def test_no_slot_advances_while_graphs_are_captured_the_largest_first(recording):
    stepper = Stepper(5)
    stepper.running[1] = False
    stepper.capture()
    sizes = [(bucket, width) for width in (5, 4, 2, 1) for bucket in (512, 256)]
    assert stepper.made == [(*size, 0) for size in sizes]
    assert stepper.running.tolist() == [True, False, True, True, True]


def test_the_graph_of_the_fewest_slots_that_suffice_is_replayed(recording):
    stepper = Stepper(5)
    stepper.capture()
    for n_slots in range(1, 6):
        stepper.step(512, n_slots)
    assert recording == [(512, width) for width in (1, 2, 4, 4, 5)]


def test_graphs_are_captured_again_only_for_something_else(recording):
    stepper = Stepper(1)
    for of in ("one", "one", "other"):
        stepper.capture(of)
    assert len(stepper.made) == 2 * 2


def test_a_stepper_is_freed_although_it_has_graphs(recording):
    stepper = Stepper(2)
    stepper.capture()
    freed = weakref.ref(stepper)
    gc.disable()
    try:
        del stepper
        assert freed() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "fault", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory")]
)
def test_lack_of_memory_is_raised_and_the_slots_advance_as_before(monkeypatch, fault):
    def record(_):
        raise fault

    monkeypatch.setattr(graphs, "recorder", lambda _: record)
    stepper = Stepper(3)
    with pytest.raises(RuntimeError, match="out of memory"):
        stepper.capture()
    assert stepper.running.all()


def test_where_nothing_can_be_captured_the_step_itself_is_made_and_that_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(graphs, "recorder", lambda _: lambda _: not_permitted())
    stepper = Stepper(3)
    for of in ("one", "other"):
        stepper.capture(of)
    stepper.step(256, 3)
    assert stepper.made == [(256, 3, 3)]
    assert [record.message for record in caplog.records] == [
        "CUDA graphs cannot be captured (CUDA error: operation not permitted when stream is capturing): "
        "steps are slower from now on"
    ]
