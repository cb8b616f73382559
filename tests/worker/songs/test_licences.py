"""The licence of a model's weights, and what commercial use needs."""

import pytest

from worker.errors import BadInput
from worker.models import sets
from worker.songs import licences
from worker.songs.licences import APACHE, NON_COMMERCIAL, UNKNOWN


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("facebook/musicgen-medium", NON_COMMERCIAL),
        ("facebook/musicgen-stereo-large", NON_COMMERCIAL),
        ("heartmula", APACHE),
        ("heartmula-3b", APACHE),
        ("rehearsal", APACHE),
        ("someone/musicgen-tune", UNKNOWN),
    ],
)
def test_licence_is_known_by_the_name(model, licence):
    assert licences.licence_of(model) == licence


def test_folder_of_a_musicgen_does_not_say_its_licence(tmp_path):
    assert licences.licence_of(str(tmp_path)) == UNKNOWN
    (tmp_path / "gen_config.json").write_text("{}")
    assert licences.licence_of(str(tmp_path)) == APACHE


def test_list_of_models_says_the_same():
    assert {name: licences.licence_of(name) for name in sets.NAMED} == {
        name: each.licence for name, each in sets.NAMED.items()
    }


@pytest.mark.parametrize(
    ("model", "why"),
    [("facebook/musicgen-small", "which forbids"), ("someone/tune", "which is not known to allow")],
)
def test_commercial_use_is_refused_unless_the_licence_allows_it(model, why):
    with pytest.raises(BadInput, match=f"{model} have the licence .*, {why} commercial use; use heartmula"):
        licences.refuse_commercial_use(model)
    licences.refuse_commercial_use("heartmula")
