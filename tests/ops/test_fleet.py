"""Status, logs and kill-all over several clouds: one hides nothing of another."""

import json
import threading
from dataclasses import dataclass, field

import pytest

from ops import clouds, fleet
from ops.cloud import Doomed, Ended, Inventory
from ops.settings import Settings
from tests.fakes import s3
from worker.errors import BadInput, UserError
from worker.store.open import open_store

SETTINGS = Settings.load(env={"MUSICGEN_MODEL": "rehearsal"})
DOWN = UserError("it does not answer; run it again")


@dataclass
class Rented:
    """A cloud with these machines, each with its run. `down`: what it raises in place of an answer."""

    name: str
    machines: dict[str, str] = field(default_factory=dict)
    has_regions: bool = False
    lacks: str = ""
    down: Exception | None = None
    protected: bool = False
    before_the_end: object = lambda: None

    @property
    def kind(self):
        return self.name.lower()

    def owns(self, text):
        return text in self.machines

    def may_be_host(self, text):
        return False

    def not_set_up(self, settings):
        return self.lacks

    def answer(self):
        if self.down:
            raise self.down
        return [{"what": "machine", "id": each} for each in self.machines]

    def inventory(self, settings, region, tell):
        rows = self.answer()
        return Inventory(rows=rows, tables=[rows] if rows else [], closing=f"{len(rows)} machines")

    def doomed(self, settings, region, tell):
        return Doomed(rows=self.answer(), closing="nothing here")

    def end_all(self, settings, region, tell):
        self.before_the_end()
        ended = self.answer()
        if self.protected:
            return Ended(0, "", ["x did not end"])
        self.machines.clear()
        return Ended(len(ended), "nothing is left")

    def runs(self, settings, output, tell):
        self.answer()
        return {run: machine for machine, run in self.machines.items()}

    def console(self, settings, machine):
        return f"the console of {machine}\n"


@pytest.fixture
def rent(monkeypatch, tmp_path):
    """Put these clouds into the table."""
    monkeypatch.chdir(tmp_path)

    def rent(*there):
        monkeypatch.setattr(clouds, "CLOUDS", there)
        return there

    return rent


def status(json=False, region=""):
    return fleet.show_status(SETTINGS, region, json=json)


def kill_all(region="", dry_run=False, json=False):
    return fleet.kill_all(SETTINGS, region, dry_run=dry_run, yes=True, json=json)


def test_machines_of_all_clouds_are_one_list(rent, capsys):
    rent(Rented("A", {"a1": "r1"}), Rented("B", {"b1": "r2"}))
    assert status(json=True)
    assert [(row["cloud"], row["id"]) for row in json.loads(capsys.readouterr().out)] == [
        ("A", "a1"),
        ("B", "b1"),
    ]


def test_cloud_that_does_not_answer_is_a_warning_and_the_others_are_shown(rent, capsys):
    rent(Rented("A", {"a1": "r1"}, down=DOWN), Rented("B", {"b1": "r2"}))
    assert not status()
    said = capsys.readouterr()
    assert "b1" in said.out and "B: 1 machines" in said.err
    assert "warning: could not ask A: it does not answer" in said.err


def test_no_cloud_that_answers_is_an_error_with_each_of_them(rent):
    rent(Rented("A", down=DOWN), Rented("B", down=DOWN))
    with pytest.raises(UserError, match=r"A: it does not answer; run it again\nB: it does"):
        status()


def test_error_of_the_only_cloud_keeps_its_exit_code(rent):
    rent(Rented("A", down=BadInput("no keys; set them")))
    with pytest.raises(BadInput, match=r"^no keys; set them$"):
        status()


@pytest.mark.parametrize("command", [status, kill_all])
def test_cloud_that_is_not_set_up_is_named_and_not_asked(rent, capsys, command):
    rent(Rented("A"), Rented("B", lacks="B_KEY is not set", down=DOWN))
    assert command()
    assert "B was not asked: B_KEY is not set" in capsys.readouterr().err


def test_where_no_cloud_is_set_up_each_says_what_is_missing(rent):
    lacks = "no keys; set them"
    rent(Rented("A", lacks=lacks, down=BadInput(lacks)))
    with pytest.raises(BadInput, match=lacks):
        status()


def test_region_ends_nothing_where_there_are_none(rent, capsys):
    _, other = rent(Rented("A", {"a1": "r1"}, has_regions=True), Rented("B", {"b1": "r2"}))
    assert kill_all(region="us-east-1")
    assert list(other.machines) == ["b1"] and "B was not asked: --region" in capsys.readouterr().err


def test_all_of_all_clouds_is_ended(rent, capsys):
    there = rent(Rented("A", {"a1": "r1"}), Rented("B", {"b1": "r2", "b2": "r3"}))
    assert kill_all()
    assert not any(cloud.machines for cloud in there)
    assert "A: ended 1; nothing is left\nB: ended 2; nothing is left\n" in capsys.readouterr().err


def test_one_that_hangs_keeps_no_other_from_its_end(rent):
    other_ended = threading.Event()
    a = Rented("A", {"a1": "r1"}, before_the_end=lambda: other_ended.wait(60) or pytest.fail("it never came"))
    b = Rented("B", {"b1": "r2"}, before_the_end=other_ended.set)
    rent(a, b)
    assert kill_all()


@pytest.mark.parametrize("broken", [{"down": DOWN}, {"protected": True}])
def test_what_one_sees_is_ended_whatever_the_other_answers(rent, broken):
    _, other = rent(Rented("A", {"a1": "r1"}, **broken), Rented("B", {"b1": "r2"}))
    with pytest.raises(UserError, match=r"could not ask A: .*; something may be left|x did not end"):
        kill_all()
    assert other.machines == {}


def test_nothing_seen_is_not_nothing_left_where_one_does_not_answer(rent, capsys):
    rent(Rented("A", down=DOWN), Rented("B"))
    assert not kill_all()
    assert "warning: could not ask A" in capsys.readouterr().err


def test_dry_run_ends_nothing(rent, capsys):
    (cloud,) = rent(Rented("A", {"a1": "r1"}))
    assert kill_all(dry_run=True, json=True)
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == ["a1"]
    assert cloud.machines


BUG = ZeroDivisionError("a\nbug")


def test_fault_of_ours_in_one_cloud_is_one_line_and_hides_nothing_of_another(rent, capsys):
    rent(Rented("A", down=BUG), Rented("B", {"b1": "r2"}))
    assert not status()
    said = capsys.readouterr()
    assert "b1" in said.out and "B: 1 machines" in said.err
    assert "warning: could not ask A: this program failed (ZeroDivisionError: a bug); look in" in said.err


def test_fault_of_ours_in_one_cloud_keeps_no_other_from_its_end(rent):
    _, other = rent(Rented("A", {"a1": "r1"}, down=BUG), Rented("B", {"b1": "r2"}))
    with pytest.raises(UserError, match=r"could not ask A: this program failed .*; something may be left"):
        kill_all()
    assert other.machines == {}


def test_cloud_that_cannot_say_whether_it_is_set_up_hides_nothing_of_another(rent, capsys):
    a, _ = rent(Rented("A", down=BUG), Rented("B", {"b1": "r2"}))
    a.not_set_up = lambda settings: 1 / 0
    assert not status()
    said = capsys.readouterr()
    assert "b1" in said.out and "warning: could not ask A: this program failed" in said.err


def test_fault_of_ours_in_the_only_cloud_is_not_swallowed(rent):
    rent(Rented("A", down=BUG))
    with pytest.raises(ZeroDivisionError):
        status()


@pytest.mark.parametrize(("run", "shown"), [("", "the console of b1\n"), ("20251122T195059Z-ab12", "old\n")])
def test_log_of_a_run_is_found_whichever_cloud_it_runs_in(rent, capsys, s3_url, run, shown):
    bucket = s3.fresh_bucket(s3_url)
    open_store(f"s3://{bucket}").write("runs/20251122T195059Z-ab12/worker.log", b"old\n")
    rent(Rented("A", down=DOWN), Rented("B", {"b1": "20261122T195059Z-ab12"}))
    fleet.show_logs(Settings.load(env={"MUSICGEN_S3_BUCKET": bucket}), run, "", 0)
    assert capsys.readouterr().out == shown


def test_console_of_what_no_cloud_has_is_bad_input(rent):
    rent(Rented("A"))
    with pytest.raises(BadInput, match="nothing is not the id of a machine"):
        fleet.show_logs(SETTINGS, "", "nothing", 0)
