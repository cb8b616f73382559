"""`python -m bench.gpu` to its end without a GPU, and what it does when time is short or something fails."""

import json
from dataclasses import replace

import pytest
import torch

from bench import report
from bench.figures import Fault, Figure, Kept
from bench.gpu import __main__ as command
from bench.gpu import heartmula
from bench.gpu.cases import CASES, PRETENDED, Gpu, promise
from bench.gpu.limit import LeftOut, Measurement, within
from bench.timing import Spread
from worker.heartmula.codec import Segments

pytestmark = pytest.mark.xdist_group("engine")

TINY = replace(
    PRETENDED,
    **{"n_songs": 2, "n_frames": 4, "slots": (2, 1), "most_slots": 3, "early": 4, "late": 40, "n_steps": 2},
    **{"repetitions": 1, "read_bytes": 1 << 16, "decoded_frames": 100, "beside_s": 0.05},
)


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    """Runs the command with --pretend at the least scale; -> (exit code, what it kept)."""
    monkeypatch.setattr(command, "PRETENDED", TINY)
    monkeypatch.setattr(command, "PRETENDED_FILE", tmp_path / "pretended.json")

    def run(*arguments):
        code = command.main(["--pretend", *arguments])
        return code, json.loads((tmp_path / "pretended.json").read_text("utf-8"))

    return run


def test_every_case_gives_figures_when_pretended(pretended):
    before = report.PAGE.read_bytes()
    code, kept = pretended()
    assert code == 0
    assert {row["case"] for row in kept["rows"]} == set(CASES) == set(kept["measured"])
    assert all(row["value"]["median"] >= 0 or "slower" in row["what"] for row in kept["rows"])
    assert report.PAGE.read_bytes() == before


def test_every_case_of_heartmula_gives_figures_when_pretended(pretended, monkeypatch):
    least = {"slots": (2, 1), "n_steps": 2, "repetitions": 1, "segments": Segments(4, 3)}
    monkeypatch.setattr(heartmula, "PRETENDED", replace(heartmula.PRETENDED, **least))
    code, kept = pretended("--size", "heartmula-3b")
    assert code == 0
    assert {row["case"] for row in kept["rows"]} == set(heartmula.CASES) == set(kept["measured"])
    assert all(row["value"]["median"] > 0 for row in kept["rows"])


def test_fault_is_kept_as_a_row_and_the_rest_is_measured(pretended, monkeypatch, capsys):
    def fails():
        raise torch.OutOfMemoryError("out of memory\nand more")
        yield

    def two_of_them(self):
        return [Measurement("memory", "most slots", fails), Measurement("parity", "greedy", self._parity)]

    monkeypatch.setattr(Gpu, "measurements", two_of_them)
    code, kept = pretended()
    assert code == 1
    assert [(row["case"], row["note"]) for row in kept["rows"] if row["value"] is None] == [
        ("memory", "failed: OutOfMemoryError: out of memory")
    ]
    assert [row["case"] for row in kept["rows"] if row["value"]] == ["parity"] * 2
    assert "2 figures" in (said := capsys.readouterr().out) and ", 1 failed, 0 left out" in said


def test_without_a_gpu_one_line_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main([]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "error: there is no GPU that torch can use; run this on a rented machine, "
        "or rehearse it with --pretend\n"
    )


# --- the time limit


class Clock:
    """A clock that measurements move on."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def takes(self, what, seconds):
        def run():
            self.now_s += seconds
            yield Figure("case", what, "s", Spread.of([seconds]))

        return Measurement("case", what, run)


def outcome(limit_s, *lengths):
    """For each measurement that takes so long: True if it was made."""
    clock = Clock()
    all_of_them = [clock.takes(str(i), length) for i, length in enumerate(lengths)]
    return [isinstance(made, Figure) for made in within(limit_s, all_of_them, lambda: None, clock)]


def test_what_may_not_end_in_time_is_left_out():
    assert outcome(100, 40, 10, 20, 35, 5) == [True, True, True, False, False]


def test_everything_is_measured_while_time_is_left():
    assert outcome(200, 40, 40, 40, 40) == [True] * 4


def test_line_of_what_is_left_out_names_it():
    assert LeftOut("speed", "bf16, 8 slots", 12.4).line() == "speed  bf16, 8 slots: left out, 12 s are left"


def test_what_a_failed_measurement_left_is_freed_before_the_next():
    done = []

    def fails():
        yield Figure("case", "before", "s", Spread.of([1.0]))
        done.append("failed")
        raise ValueError("no")

    def works():
        done.append("next")
        yield Figure("case", "after", "s", Spread.of([1.0]))

    plan = [Measurement("case", "a", fails), Measurement("case", "b", works)]
    made = list(within(100, plan, lambda: done.append("freed")))
    assert done == ["failed", "freed", "next"]
    assert [(f.what, isinstance(f, Fault)) for f in made] == [
        ("before", False),
        ("a", True),
        ("after", False),
    ]


# --- what is kept


def test_figures_of_other_cases_stay_when_some_are_measured_again(tmp_path):
    kept = Kept(tmp_path / "card.json", "a card", ("parity", "speed"))
    one, other = Figure("parity", "a", "%", Spread.of([1.0])), Figure("speed", "b", "x", Spread.of([2.0]))
    kept.replace({"speed", "parity"}, [other, one], {"date": "before"})
    kept.replace({"speed"}, [replace(other, what="c")], {"date": "after"})
    content = json.loads(kept.path.read_text("utf-8"))
    assert [row["what"] for row in content["rows"]] == ["a", "c"]
    assert content["measured"] == {"speed": {"date": "after"}, "parity": {"date": "before"}}


def test_row_without_a_value_says_why():
    row = {"what": "fp16, 32 slots", "value": None, "note": "failed: no", "at_least": None}
    assert report.row(row) == "| fp16, 32 slots | failed: no | | | |"


@pytest.mark.parametrize(
    ("across", "other", "again", "holds"),
    [
        (100, 100, 100, "the same bytes at any slot count"),
        (99, 100, 100, "the same bytes in any order, at one slot count"),
        (99, 99, 100, "the same bytes for the same songs in the same order"),
        (100, 100, 99, "none"),
    ],
)
def test_promise_that_holds_follows_from_what_was_equal(across, other, again, holds):
    assert promise(across, other, again) == holds


def test_page_says_what_results_and_arithmetic_say_today():
    assert report.PAGE.read_text("utf-8") == report.page(), "write it anew: python -m bench.report"
