"""`inv demo`: the repository's list, each family into an output of its own, and what to do next."""

import pytest

from ops import demo
from tests.songs import finish, listed
from worker.errors import BadInput
from worker.store.open import open_store


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository whose list is made already, by either model: the worker needs no torch."""
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    for name in ("HOURLY_COST_USD", "RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("rain, piano ; 1 ; rain\n")
    (rain,) = listed("rain, piano ; 1 ; rain")
    for model, folder in (("rehearsal", "demo"), ("heartmula-rehearsal", "demo-heartmula")):
        finish(open_store(str(tmp_path / "out" / folder)), rain, model=model)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "folder", "then"),
    [
        ("rehearsal", "demo", "inv generate --model facebook/musicgen-small --only dance_test"),
        ("heartmula-rehearsal", "demo-heartmula", "inv generate --model heartmula --only dance_test"),
    ],
)
def test_each_model_has_its_own_output_and_says_what_to_do_for_music(root, capfd, model, folder, then):
    assert demo.run(model, None) == 0
    said = capfd.readouterr()
    assert f"songs, records and cost_report.csv are in {root / 'out' / folder}\n" in said.out
    assert "1 done already, 0 kept, 0 failed" in said.out
    assert then in said.err


def test_model_that_is_no_rehearsal_is_refused_with_those_that_are():
    with pytest.raises(BadInput, match="not 'heartmula'; write --model rehearsal or --model heartmula-re"):
        demo.run("heartmula", None)
