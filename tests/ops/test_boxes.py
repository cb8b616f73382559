"""The boxes we know: a convenience that forgets, finds and never trips."""

import json
from dataclasses import replace

import pytest

from ops import boxes
from ops.boxes import Known
from worker.errors import BadInput

POD = Known("pod-1", "runpod", "198.51.100.1", 2201)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_saved_box_is_the_current_one():
    boxes.save(Known("i-1", "ec2", "198.51.100.9", user="ubuntu", key_file="k.pem", region="eu-west-1"))
    boxes.save(POD)
    assert boxes.current() == POD
    assert boxes.load("i-1").user == "ubuntu"


def test_without_any_there_is_no_current_one():
    assert boxes.current() is None


def test_box_is_found_by_its_address():
    boxes.save(POD)
    assert boxes.find("198.51.100.1", 2201) == POD
    assert boxes.find("198.51.100.1", 22) is None


def test_forgotten_box_is_gone_with_its_host_key(here):
    boxes.save(POD)
    (here / ".boxes" / "pod-1" / "known_hosts").write_text("key")
    boxes.forget("pod-1")
    boxes.forget("pod-1")
    assert boxes.current() is None
    assert not (here / ".boxes" / "pod-1").exists()


def test_they_lie_beside_tasks_py_wherever_the_user_is(here, monkeypatch):
    (here / "tasks.py").write_text("")
    (here / "songs").mkdir()
    monkeypatch.chdir(here / "songs")
    boxes.save(POD)
    assert (here / ".boxes" / "pod-1" / "box.json").exists()


def test_file_of_an_older_version_is_read(here):
    boxes.save(POD)
    file = here / ".boxes" / "pod-1" / "box.json"
    older = {"id": "pod-1", "kind": "runpod", "host": "198.51.100.1", "port": 2201, "schema": 1}
    file.write_text(json.dumps(older))
    assert boxes.current() == POD


def test_price_volume_and_creation_are_kept():
    box = replace(POD, hourly_usd=0.86, volume="vol1", created_at="2026-11-27T10:00:00Z")
    boxes.save(box)
    assert boxes.current() == box


def test_update_makes_no_box_the_current_one():
    boxes.save(POD)
    boxes.update(Known("i-1", "ec2", "198.51.100.9"))
    assert boxes.current() == POD and boxes.load("i-1").host == "198.51.100.9"


def test_damaged_file_is_named(here):
    boxes.save(POD)
    (here / ".boxes" / "pod-1" / "box.json").write_text("{")
    with pytest.raises(BadInput, match=r"box\.json is damaged"):
        boxes.current()


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a b"])
def test_name_that_would_leave_the_folder_is_refused(name):
    with pytest.raises(BadInput):
        boxes.folder_of(name)
