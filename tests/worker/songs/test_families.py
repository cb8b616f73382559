"""What is known of a model family before a model is loaded."""

import sys

import pytest

from tests.songs import listed
from worker.engine import Sampling
from worker.errors import BadInput
from worker.songs import families, maker
from worker.songs.families import HEARTMULA, MUSICGEN
from worker.songs.job import Job


@pytest.mark.parametrize("model", ["heartmula", "heartmula-3b", "heartmula-rehearsal"])
def test_heartmula_has_its_names(model):
    assert families.of(model) is HEARTMULA


@pytest.mark.parametrize(
    "model", ["rehearsal", "facebook/musicgen-small", "someone/heartmula", "no/such/folder"]
)
def test_whatever_else_is_a_musicgen(model):
    assert families.of(model) is MUSICGEN


def test_folder_is_of_the_family_whose_files_it_holds(tmp_path):
    assert families.of(str(tmp_path)) is MUSICGEN
    (tmp_path / "gen_config.json").write_text("{}")
    assert families.of(str(tmp_path)) is HEARTMULA


@pytest.mark.parametrize("held", ["HeartMuLa-oss-3B", "HeartCodec-oss"])
def test_folder_that_lacks_one_of_heartmulas_files_is_heartmulas_still(tmp_path, held):
    """Then the file that is missing is named, and not one that only a MusicGen has."""
    (tmp_path / held).mkdir()
    assert families.of(str(tmp_path)) is HEARTMULA


@pytest.mark.skipif(sys.platform == "win32", reason="there both may be paths")
@pytest.mark.parametrize("model", ["~nobody-of-this-name/model", "m" * 300], ids=["home", "long"])
def test_what_cannot_be_a_path_is_refused_in_one_line(model):
    with pytest.raises(BadInput, match=r"^model .* cannot be looked for .*; give a folder, .*heartmula"):
        families.of(model)


def test_records_have_one_name_for_both_names_of_heartmula():
    assert maker.model_name("heartmula") == maker.model_name("heartmula-3b") == "heartmula-3b"
    assert maker.model_name("heartmula-rehearsal") == "heartmula-rehearsal"


def test_each_family_has_its_own_sampling():
    assert maker.checked_sampling(MUSICGEN) == Sampling(3.0, 250, 1.0)
    assert maker.checked_sampling(HEARTMULA) == Sampling(1.5, 50, 1.0)
    assert maker.checked_sampling(HEARTMULA, top_k=0, temperature=0.5) == Sampling(1.5, 0, 0.5)


@pytest.mark.parametrize(("family", "n_tokens"), [(MUSICGEN, 2048), (HEARTMULA, 8197)])
def test_more_tokens_than_there_are_cannot_be_chosen_from(family, n_tokens):
    assert maker.checked_sampling(family, top_k=n_tokens).top_k == n_tokens
    with pytest.raises(BadInput, match=rf"over {family.name}'s {n_tokens:,} tokens; write 0 to take all"):
        maker.checked_sampling(family, top_k=n_tokens + 1)


def test_musicgen_cannot_sing_and_the_model_that_can_is_named():
    sung = Job("calm", 30.0, "sung", {"lyrics": "words.txt"})
    with pytest.raises(BadInput, match=r"MusicGen cannot sing; remove lyrics= from sung.*--model heartmula"):
        families.refuse_unfit([sung], MUSICGEN)
    families.refuse_unfit([sung], HEARTMULA)


def test_heartmula_cannot_continue_a_song():
    jobs = listed("calm ; 30 ; first", "calm ; 60 ; second ; continue=first")
    families.refuse_unfit(jobs, MUSICGEN)
    with pytest.raises(BadInput, match="HeartMuLa cannot continue a song; remove continue= from second"):
        families.refuse_unfit(jobs, HEARTMULA)


def test_output_of_a_family_without_a_stride_is_compared_by_its_sampling(store):
    made = maker.Maker("heartmula-3b", "0", HEARTMULA.sampling, 0.0, 0.0, HEARTMULA.solver)
    store.write(maker.KEY, made.to_json())
    maker.refuse_other_sampling(store, HEARTMULA)
    with pytest.raises(BadInput, match="top k 50, not 250"):
        maker.refuse_other_sampling(store, HEARTMULA, top_k=250)
