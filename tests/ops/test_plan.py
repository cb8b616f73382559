"""The plan: what a list and a place amount to, before anything is started."""

import pytest

from ops.plan import closing_line, plan_songs
from tests.songs import finish, listed
from worker.errors import BadInput
from worker.songs.jobs import BadPrompts

LINES = ["rain; on a window ; 12.5 ; rain", "sun ; 240 ; sun ; seed=7", "fog ; 2.5 ; fog"]
RAIN, SUN, FOG = listed(*LINES)


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(LINES), "utf-8")
    return tmp_path / "prompts.txt"


def test_every_song_has_a_row_in_file_order(prompts, store):
    songs = plan_songs(prompts, store.location, "rehearsal")
    assert [(s.song, s.duration_s, s.seed, s.prompt) for s in songs] == [
        (job.song, job.seconds, job.seed, job.prompt) for job in (RAIN, SUN, FOG)
    ]


def test_states_are_done_kept_and_to_make(prompts, store):
    finish(store, RAIN)
    store.write(SUN.song, b"made by something else")
    states = [song.state for song in plan_songs(prompts, store.location, "rehearsal")]
    assert states[0::2] == ["done", "to make"]
    assert states[1].startswith("kept: it has no record")


def test_only_the_chosen_songs_are_planned(prompts, store):
    assert [song.song for song in plan_songs(prompts, store.location, "rehearsal", ["fog"])] == [FOG.song]


def test_planning_writes_nothing(prompts, tmp_path):
    plan_songs(prompts, str(tmp_path / "out"), "rehearsal")
    assert not (tmp_path / "out").exists()


def test_place_of_another_model_is_refused(prompts, store):
    finish(store, RAIN)
    with pytest.raises(BadInput, match="songs made by rehearsal, not facebook/musicgen-small"):
        plan_songs(prompts, store.location, "facebook/musicgen-small")


def test_wrong_lines_are_all_told(prompts, tmp_path):
    prompts.write_text("one\ntwo ; 0 ; two\n")
    with pytest.raises(BadPrompts) as caught:
        plan_songs(prompts, str(tmp_path / "out"), "rehearsal")
    assert [problem.startswith(f"{prompts}:{n}: ") for n, problem in enumerate(caught.value.problems, 1)]


def test_closing_line_sums_what_is_to_be_made(prompts, store):
    finish(store, RAIN)
    songs = plan_songs(prompts, store.location, "rehearsal")
    assert closing_line(songs, "out") == (
        "2 of 3 songs to make, 4 min 2 s of audio, into out; 1 done already"
    )
