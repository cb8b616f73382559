"""Which folder a HeartMuLa's name means, and that its tree is checked."""

import pytest

from worker.errors import BadInput
from worker.models import manifest, sets, tiny_heartmula
from worker.models.heartmula import tree_of
from worker.models.heartmula_tree import CODEC, FETCH
from worker.models.manifest import Manifest


@pytest.mark.parametrize("name", ["heartmula", "heartmula-3b"])
def test_name_means_the_folder_of_its_setting(built, name):
    tree = tree_of(name, {"MUSICGEN_HEARTMULA_DIR": str(built / "single")})
    assert tree.folder == built / "single"


def test_without_the_setting_it_is_in_the_folder_of_all_models(tree, tmp_path):
    (tmp_path / "heartmula-3b").symlink_to(tree)
    assert tree_of("heartmula", {"MUSICGEN_MODELS_DIR": str(tmp_path)}).folder == tmp_path / "heartmula-3b"


def test_folder_is_its_own(built):
    assert tree_of(str(built / "shards"), {}).folder == built / "shards"


def test_what_is_missing_is_named_with_the_command_that_fetches_it(tree):
    (tree / CODEC / "model.safetensors").unlink()
    with pytest.raises(BadInput) as caught:
        tree_of("heartmula", {"MUSICGEN_HEARTMULA_DIR": str(tree)})
    assert str(caught.value) == f"{tree / CODEC} lacks model.safetensors; {FETCH}"


def test_absent_folder_is_named_with_the_command_that_fetches_it(tmp_path):
    with pytest.raises(
        BadInput, match=r"there is no folder .*/ckpt; fetch it: `inv models --get heartmula-3b`"
    ):
        tree_of("heartmula", {"MUSICGEN_HEARTMULA_DIR": str(tmp_path / "ckpt")})


def test_old_codec_beside_the_model_that_was_fetched_is_refused(tmp_path):
    tiny_heartmula.build(tmp_path, flag=())
    env = {"MUSICGEN_HEARTMULA_DIR": str(tmp_path)}
    assert tree_of("heartmula", env)  # somebody else's files: which release they are is not known
    file = {"a.json": manifest.File(1, "sha256", "0" * 64)}
    parts = tuple(
        manifest.Pinned(part.repo, part.folder, "0" * 40, file) for part in sets.find("heartmula").parts
    )
    manifest.complete(Manifest("heartmula-3b", parts), tmp_path)
    with pytest.raises(BadInput, match="looks like a codec from before"):
        tree_of("heartmula", env)


def test_set_has_a_short_name():
    assert sets.find("heartmula") is sets.find("heartmula-3b")
