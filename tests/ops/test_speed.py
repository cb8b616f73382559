"""How fast music is made: measured by the runs with an output, else an estimate for the family."""

import json

import pytest

from ops import speed
from ops.speed import Speed


def summarized(store, run, device, rate):
    summary = {"run_id": run, "real_time_factor": rate, "engine": {"device": device}}
    store.write(f"runs/{run}/summary.json", json.dumps(summary).encode())


def test_speed_is_that_of_the_newest_run_with_this_output(store):
    assert speed.of("heartmula", store) == speed.assumed("heartmula")
    summarized(store, "2025", "Tesla T4", 4.0)
    summarized(store, "2026", "cpu", 0.5)
    summarized(store, "2027", "cpu", 0.0)
    assert speed.of("heartmula", store) == Speed(0.5, "as in run 2026 on cpu")
    assert speed.of("heartmula", store, gpu_only=True) == Speed(4.0, "as in run 2025 on Tesla T4")


@pytest.mark.parametrize(
    ("model", "rate"), [("facebook/musicgen-large", 1.5), ("heartmula", 1.0), ("heartmula-3b", 1.0)]
)
def test_each_family_has_a_figure_that_is_called_an_estimate(model, rate):
    assert speed.assumed(model).rate == rate
    assert "an estimate" in speed.assumed(model).basis and "never measured" in speed.assumed(model).basis


@pytest.mark.parametrize("model", ["rehearsal", "heartmula-rehearsal"])
def test_rehearsals_of_both_families_are_as_fast(model):
    assert speed.assumed(model) == Speed(20.0, "assumed for two CPU cores")
