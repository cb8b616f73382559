"""remote/train.py: what is refused before a training starts."""

import pytest

from remote.training import checkpoints, preflight
from remote.training.config import Config
from remote.training.refusal import Refusal


def refused(box, *arguments, **env):
    """The one line with which train.py refuses."""
    done = box.train(*arguments, **env)
    assert done.returncode == 2, done.stderr
    assert box.starts() == []
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "; " in line
    return line


def test_missing_configuration_is_refused(box):
    del box.files["a.yaml"]
    assert "there is no configuration" in refused(box)


def test_configuration_that_is_not_yaml_is_refused(box):
    box.files["a.yaml"] = b"output_dir: [a"
    assert "is not YAML" in refused(box)


def test_folder_that_cannot_be_made_is_one_line(box):
    box.repository.write_text("a file")
    done = box.train()
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {box.repository}: File exists; ")
    assert len(done.stderr.splitlines()) == 1


def test_box_whose_paths_are_not_set_is_refused(box):
    assert refused(box, MUSICGEN_BOX_ROOT="") == (
        "error: MUSICGEN_BOX_ROOT is not set; source remote/env.sh first"
    )


def test_missing_script_is_refused(box):
    box.files["scripts/other.py"] = box.files.pop("scripts/train.py")
    assert "there is no scripts/train.py nor ./train.py" in refused(box)


def test_script_beside_the_configuration_is_found(box):
    box.files["examples/train.py"] = box.files.pop("scripts/train.py")
    box.files["examples/a.yaml"] = box.files["a.yaml"]
    assert box.train("--config", "examples/a.yaml").returncode == 0


def test_empty_and_missing_data_folders_are_named(box):
    box.configure(audio_dirs=["data/audio_0", "data/audio_1", "data/audio_2"])
    (box.volume / "data" / "audio_0").mkdir(parents=True)
    (box.volume / "data" / "audio_0" / "a.wav").touch()
    (box.volume / "data" / "audio_1").mkdir()
    line = refused(box)
    assert "there are no data in data/audio_1, data/audio_2; copy them to" in line


def test_volumes_data_are_the_repositorys(box):
    box.configure(audio_dirs=["data/audio_0"])
    (box.volume / "data" / "audio_0").mkdir(parents=True)
    (box.volume / "data" / "audio_0" / "a.wav").touch()
    assert box.train().returncode == 0
    assert (box.repository / "data" / "audio_0" / "a.wav").exists()


@pytest.mark.parametrize("key", ["output_dir", "logging_dir"])
def test_output_on_the_boxs_own_disk_is_refused(box, key):
    box.configure(**{key: str(box.home / "out")})
    assert "would be lost with this box" in refused(box)


@pytest.mark.parametrize("folder", [".", "..", "a/.."])
def test_output_that_is_the_repository_is_refused(box, folder):
    box.configure(output_dir=folder)
    assert "has the whole repository in it; name a folder of its own" in refused(box)


def test_output_that_a_link_leads_off_the_volume_is_refused(box):
    box.repository.mkdir()
    (box.repository / "out").symlink_to(box.home)
    assert "would be lost with this box" in refused(box)


def test_box_that_lost_its_gpu_is_refused(box):
    program = box.home / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'No devices were found'; exit 6\n")
    program.chmod(0o755)
    line = refused(box, PATH=f"{program.parent}:{box.env['PATH']}")
    assert "this box has no GPU any more" in line


def room(tmp_path, monkeypatch, free, found=(), goal=None, **keys):
    """What check_room says with so many bytes free."""
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: type("Usage", (), {"free": free}))
    return preflight.check_room(Config(output_dir="out", **keys), tmp_path, list(found), goal)


@pytest.fixture
def two(tmp_path):
    """Two valid checkpoints of 1000 bytes each."""
    found = []
    for step in (20, 10):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(1000))
        found.append(checkpoints.Checkpoint(folder, step))
    return found


@pytest.mark.parametrize(("free", "fits"), [(1999, False), (2000, True)])
def test_room_is_asked_for_what_is_to_come_as_large_as_the_newest(tmp_path, monkeypatch, two, free, fits):
    keys = {"found": two, "save_total_limit": 3}  # two more, then one is deleted for each
    if fits:
        assert room(tmp_path, monkeypatch, free, **keys) == ""
    else:
        with pytest.raises(Refusal, match=r"^2 more checkpoints .* lower save_total_limit$"):
            room(tmp_path, monkeypatch, free, **keys)


def test_one_is_written_before_another_is_deleted(tmp_path, monkeypatch, two):
    with pytest.raises(Refusal, match=r"^1 more"):
        room(tmp_path, monkeypatch, 999, found=two, save_total_limit=2)


@pytest.mark.parametrize(("free", "fits"), [(4 * 500 * 3 - 1, False), (4 * 500 * 3, True)])
def test_first_checkpoint_is_taken_for_four_times_the_weights(tmp_path, monkeypatch, free, fits):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    snapshot = tmp_path / "hf" / "hub" / "models--openai--whisper-small" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(bytes(500))
    keys = {"save_total_limit": 2, "model": "openai/whisper-small"}
    if fits:
        assert room(tmp_path, monkeypatch, free, **keys) == ""
    else:
        with pytest.raises(Refusal, match=r"^3 more"):
            room(tmp_path, monkeypatch, free, **keys)


def test_room_that_is_not_known_is_a_remark(tmp_path, monkeypatch):
    assert "not known" in room(tmp_path, monkeypatch, 0, save_total_limit=2, model="openai/none")


def test_without_a_limit_all_checkpoints_to_the_goal_have_to_fit(tmp_path, monkeypatch, two):
    with pytest.raises(Refusal, match=r"^3 more"):
        room(tmp_path, monkeypatch, 2999, found=two, goal=50, save_steps=10)
    assert "not set" in room(tmp_path, monkeypatch, 0, found=two)
