"""worker/songs/maker.py: one output, one model, one sampling, whoever comes first."""

import json
import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.songs import Recording, finish, listed
from worker.engine import Sampling, Solver
from worker.errors import BadInput
from worker.songs import maker, records
from worker.songs.families import HEARTMULA
from worker.songs.maker import KEY, Maker

RAIN, SUN = listed("rain ; 1 ; rain", "sun ; 1 ; sun")
OURS = Maker("rehearsal", "0123456789ab", Sampling(), 30.0, 18.0)


def settle(store, ours=OURS, start_over=False):
    maker.settle(store, ours, records.survey(store, []), start_over=start_over)


def refuse(store, model):
    maker.refuse_other_model(records.survey(store, [RAIN]).makers, model, store.location)


def test_empty_output_takes_any_model(store):
    refuse(store, "facebook/musicgen-medium")


def test_output_of_the_same_model_is_not_refused(store):
    finish(store, RAIN)
    refuse(store, "rehearsal")
    settle(store)


@pytest.mark.parametrize("finished", [RAIN, SUN], ids=["of this list", "of another list"])
def test_other_model_is_refused_with_the_output_and_the_remedy(store, finished):
    finish(store, finished)
    with pytest.raises(BadInput, match="rehearsal, not facebook/musicgen-medium; give another") as caught:
        refuse(store, "facebook/musicgen-medium")
    assert str(caught.value).startswith(store.location)


def test_other_revision_of_the_model_is_refused(store):
    finish(store, RAIN)
    with pytest.raises(BadInput, match="another revision of rehearsal"):
        settle(store, replace(OURS, revision="ba9876543210"))


def test_model_folder_is_known_by_its_own_name_wherever_it_lies(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    names = [maker.model_name(text) for text in (str(tmp_path / "mine"), "../mine/", ".")]
    assert names == ["mine"] * 3
    assert maker.model_name("facebook/musicgen-small") == "facebook/musicgen-small"


# --- sampling, before a model is loaded


def test_output_of_another_sampling_or_stride_is_refused_and_its_own_is_not(store):
    store.write(KEY, replace(OURS, sampling=Sampling(temperature=0.9), stride_s=12.34).to_json())
    maker.refuse_other_sampling(store, temperature=0.9, stride_s=12.345)  # the same frame
    with pytest.raises(BadInput, match=r"made with temperature 0\.9, not 1\.0; stride 12\.34 s, not 18 s;"):
        maker.refuse_other_sampling(store)


def test_output_of_other_codec_settings_is_refused_and_its_own_is_not(store):
    singer = replace(OURS, sampling=HEARTMULA.sampling, window_s=0.0, stride_s=0.0, solver=Solver(25))
    store.write(KEY, singer.to_json())
    maker.refuse_other_sampling(store, HEARTMULA, Solver(25))
    with pytest.raises(BadInput, match=r"made with codec steps 25, not 10; codec guidance 1\.25, not 2\.0;"):
        maker.refuse_other_sampling(store, HEARTMULA, Solver(guidance=2.0))


def test_output_that_is_older_than_the_codec_settings_had_the_defaults():
    facts = json.loads(replace(OURS, solver=Solver()).to_json())
    del facts["solver"]
    assert Maker.from_json(json.dumps(facts).encode()) == OURS  # MusicGen's codec has none
    singer = json.dumps(facts | {"window_s": 0.0, "stride_s": 0.0}).encode()
    assert Maker.from_json(singer).solver == HEARTMULA.solver == Solver(10, 1.25)


def test_output_without_songs_takes_any_sampling(store):
    maker.refuse_other_sampling(store, top_k=5)


# --- place.json


@given(
    st.builds(
        Maker,
        st.text(),
        st.text(),
        st.builds(Sampling),
        st.floats(1, 60),
        st.floats(1, 60),
        st.none() | st.builds(Solver, st.integers(1, 1000), st.floats(0, 100)),
    )
)
def test_what_is_written_comes_back(ours):
    assert Maker.from_json(ours.to_json()) == ours


def test_first_run_makes_the_output_its_own_and_the_next_changes_nothing(store):
    settle(store)
    watched = Recording(store)
    settle(watched)
    assert Maker.from_json(store.read(KEY)) == OURS
    assert watched.changes == []


OTHERS = {
    "model rehearsal, not other": replace(OURS, model="other"),
    "revision 0123456789ab, not fff": replace(OURS, revision="fff"),
    "temperature 1.0, not 1.5": replace(OURS, sampling=Sampling(temperature=1.5)),
    "top k 250, not 50": replace(OURS, sampling=Sampling(top_k=50)),
    "guidance scale 3.0, not 2.0": replace(OURS, sampling=Sampling(guidance_scale=2.0)),
    "stride 18 s, not 12 s": replace(OURS, stride_s=12.0),
}


@pytest.mark.parametrize("says", OTHERS)
def test_other_settings_are_refused_and_named(store, says):
    settle(store)
    with pytest.raises(BadInput) as caught:
        settle(store, OTHERS[says])
    assert f"is for songs made with {says}; use those settings" in str(caught.value)
    assert str(caught.value).endswith("or --start-over to begin its unfinished songs again")
    assert Maker.from_json(store.read(KEY)) == OURS


def test_output_without_a_finished_song_can_start_over(store):
    settle(store)
    other = replace(OURS, stride_s=12.0)
    settle(store, other, start_over=True)
    assert Maker.from_json(store.read(KEY)) == other


def test_output_with_a_finished_song_cannot_start_over(store):
    settle(store)
    finish(store, RAIN)
    with pytest.raises(BadInput) as caught:
        settle(store, replace(OURS, stride_s=12.0), start_over=True)
    assert "--start-over" not in str(caught.value)
    assert Maker.from_json(store.read(KEY)) == OURS


def test_output_cannot_start_over_once_another_worker_has_finished_a_song_meanwhile(store):
    settle(store)
    before = records.survey(store, [])
    finish(store, RAIN)
    with pytest.raises(BadInput) as caught:
        maker.settle(store, replace(OURS, stride_s=12.0), before, start_over=True)
    assert "--start-over" not in str(caught.value)
    assert Maker.from_json(store.read(KEY)) == OURS


@pytest.mark.parametrize("place", [None, b"damaged"])
def test_output_that_is_older_than_its_place_is_that_of_its_songs(store, place):
    finish(store, RAIN, stride_s=12.0)
    if place:
        store.write(KEY, place)
    with pytest.raises(BadInput, match="stride 12 s, not 18 s; use those settings"):
        settle(store)
    settle(store, replace(OURS, stride_s=12.0))
    finish(store, SUN, stride_s=18.0)  # of a time when they could be mixed
    settle(store, replace(OURS, stride_s=12.0))


def test_older_output_of_several_settings_takes_any_of_them(store):
    finish(store, RAIN, stride_s=12.0)
    finish(store, SUN, sampling={"mood": "blue"})
    settle(store, replace(OURS, stride_s=12.0))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"schema": 1, "model": "x"}'])
def test_damaged_place_is_written_anew(store, content):
    store.write(KEY, content)
    settle(store)
    assert Maker.from_json(store.read(KEY)) == OURS


def test_place_of_a_later_version_is_refused(store):
    store.write(KEY, json.dumps({"schema": 2}).encode())
    with pytest.raises(BadInput, match="schema 2; update this program"):
        settle(store)


def test_of_two_different_makers_at_once_one_is_refused(store):
    gate, results = threading.Barrier(2), {}

    def start(name):
        gate.wait()
        try:
            settle(store, replace(OURS, model=name))
            results[name] = None
        except BadInput as error:
            results[name] = str(error)

    threads = [threading.Thread(target=start, args=[name]) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = [name for name, error in results.items() if error]
    (winner,) = {"one", "two"} - {refused}
    assert Maker.from_json(store.read(KEY)).model == winner
    assert f"model {winner}, not {refused}" in results[refused]
    settle(store, replace(OURS, model=winner))  # for ever
