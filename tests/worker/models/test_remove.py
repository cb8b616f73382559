"""Removing a set: its files alone, never while it is fetched, and at no moment complete and damaged."""

import errno
from pathlib import Path

import pytest

from tests.worker.models import trees
from worker.errors import BadInput, UserError
from worker.models import lease, remove, verify


def test_set_is_removed_and_nothing_is_left(get, env, folder):
    get()
    assert remove.remove(trees.NAME, env) == sum(map(len, trees.NEEDED.values()))
    assert not folder.exists()


def test_other_peoples_files_stay(get, env, folder):
    get()
    (folder / "notes.md").write_text("mine")
    remove.remove(trees.NAME, env)
    assert [path.name for path in folder.iterdir()] == ["notes.md"]


def test_what_a_killed_download_left_is_removed(env, folder):
    folder.mkdir(parents=True)
    (folder / ".model.safetensors.0123abcd.89ab0123.part").write_bytes(b"half")
    (folder / ".plan.json").write_bytes(b"{")
    assert remove.remove(trees.NAME, env) == 4
    assert not folder.exists()


def test_nothing_to_remove_is_an_error(env):
    with pytest.raises(BadInput, match="there is nothing of the model demo/tiny"):
        remove.remove(trees.NAME, env)


def test_set_is_never_complete_and_damaged(get, env, folder, monkeypatch):
    get()
    unlink, seen = Path.unlink, []

    def watched(path, missing_ok=False):
        unlink(path, missing_ok=missing_ok)
        seen.append(bool(verify.quick(folder)))

    monkeypatch.setattr(Path, "unlink", watched)
    remove.remove(trees.NAME, env)
    assert len(seen) > len(trees.NEEDED)
    assert all(seen[seen.index(True) :])
    assert not (folder / "model.safetensors").exists()


def test_set_that_is_being_fetched_is_not_removed(get, env, folder):
    get()
    holder = lease.Lease(folder, ttl_s=0.5)
    holder.take()
    with holder.renewed(), pytest.raises(UserError, match="is being fetched by process"):
        remove.remove(trees.NAME, env)
    assert verify.full(folder) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
def test_full_disk_is_emptied_although_it_has_no_room_for_a_lease(get, env, folder, takes_no_write, number):
    get()
    takes_no_write(number)
    assert remove.remove(trees.NAME, env) == sum(map(len, trees.NEEDED.values()))
    assert not folder.exists()


def test_full_disk_keeps_what_is_being_fetched(get, env, folder, takes_no_write, monkeypatch):
    get()
    holder = lease.Lease(folder)
    holder.take()
    monkeypatch.setattr(remove, "TTL_S", -10)  # do not wait whether it lives
    takes_no_write()
    with pytest.raises(UserError, match="is being fetched by process"):
        remove.remove(trees.NAME, env)
    assert verify.full(folder) == []
