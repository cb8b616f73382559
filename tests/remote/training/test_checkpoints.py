"""remote/training/checkpoints.py, on real checkpoints of Trainer: what is half written or missing is seen."""

import json
import os
import shutil

import pytest

from remote.training import checkpoints

pytestmark = pytest.mark.xdist_group("training")
# What resuming reads; the others are the model's and the arguments' descriptions.
NEEDED = ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.fixture
def output(trained, tmp_path):
    """A copy of the output folder of a real training: checkpoints 20, 30 and 40."""
    return shutil.copytree(trained / "checkpoints" / "example", tmp_path / "output")


def steps(output, **options):
    return [(one.step, one.why_not) for one in checkpoints.find(output, **options)]


def test_real_checkpoints_are_valid_and_the_newest_comes_first(output):
    assert steps(output) == [(40, ""), (30, ""), (20, "")]
    assert checkpoints.newest(checkpoints.find(output)).folder == output / "checkpoint-40"


def test_there_is_none_in_a_folder_that_is_not_there(tmp_path):
    assert checkpoints.find(tmp_path / "none") == []
    assert checkpoints.newest([]) is None


@pytest.mark.parametrize("name", NEEDED)
def test_checkpoint_without_one_of_its_files_is_named_and_the_one_before_taken(output, name):
    (output / "checkpoint-40" / name).unlink()
    found = checkpoints.find(output)
    assert (found[0].step, found[0].why_not) == (40, f"{name} is missing")
    assert checkpoints.newest(found).step == 30


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("name", NEEDED)
def test_checkpoint_with_a_half_written_file_is_named_and_the_one_before_taken(output, name, share):
    file = output / "checkpoint-40" / name
    os.truncate(file, int(file.stat().st_size * share))
    found = checkpoints.find(output)
    assert found[0].why_not.startswith(f"{name} is damaged")
    assert checkpoints.newest(found).step == 30


@pytest.mark.parametrize("name", NEEDED)
def test_file_cut_anywhere_is_not_valid(output, name, rng):
    file = output / "checkpoint-40" / name
    content = file.read_bytes().rstrip()
    for length in [len(content) - 1, *(rng.randrange(len(content)) for _ in range(50))]:
        file.write_bytes(content[:length])
        assert checkpoints.why_not(file.parent, 40).startswith(f"{name} is damaged"), length


@pytest.mark.parametrize("name", NEEDED)
def test_file_of_the_right_length_full_of_zeros_is_no_valid_one(output, name):
    file = output / "checkpoint-40" / name
    file.write_bytes(bytes(file.stat().st_size))
    assert checkpoints.newest(checkpoints.find(output)).step == 30


def test_state_of_another_step_is_not_valid(output):
    shutil.copy(output / "checkpoint-30" / "trainer_state.json", output / "checkpoint-40")
    assert steps(output)[0] == (40, "trainer_state.json is of step 30, not 40")


def test_trainers_own_mark_of_an_unfinished_save_counts(output):
    (output / "checkpoint-40" / "checkpoint-is-incomplete.txt").write_text("Checkpoint started at step 40")
    assert "was not finished" in steps(output)[0][1]


def test_empty_folder_is_not_valid(output):
    (output / "checkpoint-50").mkdir()
    assert steps(output)[0] == (50, "trainer_state.json is missing")


def test_only_folders_that_are_named_as_checkpoints_count(output):
    (output / "checkpoint-99").write_text("a file")
    (output / "checkpoint-old").mkdir()
    (output / "final_model").mkdir()
    assert [step for step, _ in steps(output)] == [40, 30, 20]


def test_optimizer_is_not_asked_for_where_only_weights_are_saved(output):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (output / "checkpoint-40" / name).unlink()
    assert steps(output, weights_only=True)[0] == (40, "")


def sharded(checkpoint):
    """The same checkpoint with its weights in two files."""
    weights = checkpoint / "model.safetensors"
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in names:
        shutil.copy(weights, checkpoint / name)
    weights.unlink()
    index = {"metadata": {}, "weight_map": {"a.weight": names[0], "b.weight": names[1]}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


def test_weights_may_be_in_several_files(output):
    sharded(output / "checkpoint-40")
    assert steps(output)[0] == (40, "")


def test_every_one_of_several_weight_files_counts(output):
    _, second = sharded(output / "checkpoint-40")
    os.truncate(output / "checkpoint-40" / second, 1000)
    assert steps(output)[0] == (40, f"{second} is damaged or half written")


def test_random_state_of_every_process_counts(output):
    checkpoint = output / "checkpoint-40"
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    (checkpoint / "rng_state_1.pth").write_bytes(b"half")
    assert steps(output)[0] == (40, "rng_state_1.pth is damaged or half written")


def test_checkpoint_of_deepspeed_keeps_its_optimizer_elsewhere(output):
    checkpoint = output / "checkpoint-40"
    (checkpoint / "global_step40").mkdir()
    for name in ("optimizer.pt", "scheduler.pt"):
        (checkpoint / name).rename(checkpoint / "global_step40" / name)
    (checkpoint / "latest").write_text("global_step40")
    assert steps(output)[0] == (40, "")


def test_broken_one_is_moved_where_trainer_does_not_count_it(output):
    (output / "checkpoint-40" / "optimizer.pt").unlink()
    broken = checkpoints.find(output)[0]
    moved = checkpoints.set_aside(broken)
    assert moved == output / "broken" / "checkpoint-40"
    assert (moved / "model.safetensors").exists()
    assert [step for step, _ in steps(output)] == [30, 20]


def test_second_broken_one_of_a_step_does_not_replace_the_first(output):
    for _ in range(2):
        (output / "checkpoint-50").mkdir()
        checkpoints.set_aside(checkpoints.find(output)[0])
    assert {path.name for path in (output / "broken").iterdir()} == {"checkpoint-50", "checkpoint-50.2"}


def test_size_is_that_of_all_files(output):
    checkpoint = output / "checkpoint-40"
    assert checkpoints.size(checkpoint) == sum(path.stat().st_size for path in checkpoint.iterdir())
