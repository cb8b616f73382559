"""A set comes complete and verified, or not at all and in one line, whatever hub, network and disk do."""

import errno
import hashlib
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.numpy import load_file, save

from tests.fakes.hub import cut, flipped, git_sha1, other_etag, short, status, whole
from tests.worker.models import trees
from worker import timestamps
from worker.errors import BadInput, DiskFull, UserError
from worker.models import cached, download, fetch, find, lease, manifest, remove, room, sets, verify
from worker.models.heartmula_tree import CODEC, MULA
from worker.models.hub import Hub

WEIGHTS = "model.safetensors"
# The repositories of heartmula-3b whose names are not their folders'.
RELEASES = {MULA: "HeartMuLa-oss-3B-happy-new-year", CODEC: "HeartCodec-oss-20260123"}


def contents(folder):
    """The real files of a set, without the marker."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name != manifest.MARKER
    }


def is_complete(folder):
    return not verify.quick(folder) and not verify.full(folder) and contents(folder) == trees.NEEDED


def refused(get, error=UserError, **how):
    """The one line of a `get` that ends without a set."""
    with pytest.raises(error) as caught:
        get(**how)
    text = str(caught.value)
    assert "; " in text and "\n" not in text
    return text


# --- what comes


def test_set_comes_with_the_needed_files_alone_and_a_marker(get, hub, folder):
    got = get()
    assert is_complete(folder)
    assert (got.revision, got.came_bytes) == (hub.main[trees.NAME], sum(map(len, trees.NEEDED.values())))
    assert sorted(hub.fetched()) == sorted(trees.NEEDED)


def test_complete_set_asks_nothing(get, hub, folder):
    get()
    hub.asked.clear()
    assert get().came_bytes == 0 and hub.asked == []
    assert is_complete(folder)


def test_complete_set_stays_at_its_commit_when_main_moves(get, hub):
    before = get().revision
    hub.push(trees.NAME, trees.FILES | {"generation_config.json": b"{}"})
    assert get().revision == before


@pytest.fixture
def heartmula(hub, built, tmp_path):
    """The tiny HeartMuLa as the hub has it, in three repositories, and the environment to get it."""
    for repo, below in (("HeartMuLaGen", "."), (MULA, MULA), (CODEC, CODEC)):
        there = {
            path.name: path.read_bytes() for path in (built / "single" / below).iterdir() if path.is_file()
        }
        hub.push(f"HeartMuLa/{RELEASES.get(repo, repo)}", there | {"README.md": b"x"})
    return trees.env(hub, tmp_path / "models", MUSICGEN_HEARTMULA_DIR=str(tmp_path / "ckpt"))


def test_set_of_three_repositories_is_one_tree(heartmula, built, tmp_path):
    fetch.get("heartmula-3b", heartmula)
    folder, tree = tmp_path / "ckpt", built / "single"
    assert sorted(contents(folder)) == sorted(
        str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()
    )
    assert verify.full(folder) == []


@pytest.fixture
def published(hub, built):
    """Have the hub publish the language model with its weights changed so; -> undo it in a newer commit."""
    repo = f"HeartMuLa/{RELEASES[MULA]}"

    def published(change):
        right = hub.commits[f"{repo}@{hub.main[repo]}"]
        tensors = load_file(built / "single" / MULA / WEIGHTS)
        change(tensors)
        hub.push(repo, right | {WEIGHTS: save(tensors, metadata={"format": "pt"})})
        return lambda: hub.push(repo, right)

    return published


def test_tree_of_which_the_hub_lacks_a_weight_comes_when_the_hub_has_it(heartmula, hub, published, tmp_path):
    repair = published(lambda tensors: tensors.pop("backbone.norm.scale"))
    for _ in range(2):
        with pytest.raises(
            BadInput, match=r"lacks 1 of 37 weights.*; every file is as the hub has it"
        ) as caught:
            fetch.get("heartmula-3b", heartmula)
        assert "--get" not in str(caught.value)
        assert verify.quick(tmp_path / "ckpt") and (tmp_path / "ckpt" / CODEC / WEIGHTS).exists()
    repair()
    hub.asked.clear()
    fetch.get("heartmula-3b", heartmula)
    assert verify.full(tmp_path / "ckpt") == [] and hub.fetched() == [WEIGHTS]


def test_tree_with_nan_is_complete_no_longer_until_the_hub_has_another(heartmula, hub, published, tmp_path):
    repair = published(lambda tensors: tensors["backbone.norm.scale"].fill(float("nan")))
    fetch.get("heartmula-3b", heartmula)
    checked = verify.check("heartmula-3b", heartmula)
    assert "scale holds NaN or infinity" in str(checked.faults[0]) and checked.code == 2
    assert "remove it, and get it when the hub has another release" in checked.summary()
    look = find.look(sets.find("heartmula-3b"), heartmula)
    assert look.state == "incomplete" and "files are no model; get its next release" in look.note
    with pytest.raises(BadInput, match="scale holds NaN or infinity; every file is as the hub has it"):
        fetch.get("heartmula-3b", heartmula)
    repair()
    fetch.get("heartmula-3b", heartmula)
    assert verify.check("heartmula-3b", heartmula).faults == []


def _half(folder):
    weights = folder / MULA / WEIGHTS
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _without_a_tensor(folder):
    tensors = load_file(folder / MULA / WEIGHTS)
    del tensors["backbone.norm.scale"]
    (folder / MULA / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _with_nan(folder):
    tensors = load_file(folder / MULA / WEIGHTS)
    tensors["backbone.norm.scale"].fill(float("nan"))
    (folder / MULA / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _with_extra_space(folder):
    with (folder / "tokenizer.json").open("ab") as file:
        file.write(b" ")


@pytest.mark.parametrize(
    ("spoil", "code"),
    [(_half, 2), (_without_a_tensor, 2), (_with_nan, 2), (_with_extra_space, 1)],
)
def test_tree_that_became_no_model_is_more_than_a_damaged_one(heartmula, tmp_path, spoil, code):
    fetch.get("heartmula-3b", heartmula)
    spoil(tmp_path / "ckpt")
    checked = verify.check("heartmula-3b", heartmula)
    assert checked.code == code and len(checked.faults) == 1
    fetch.get("heartmula-3b", heartmula)
    assert verify.check("heartmula-3b", heartmula).code == 0


@pytest.mark.parametrize(
    ("release", "changes", "why"),
    [
        (RELEASES[MULA], {"backbone_flavor": "llama-70B"}, "backbone_flavor is 'llama-70B'"),
        (RELEASES[MULA], {"model_type": "llama"}, "describes a 'llama' model, not heartmula"),
        (RELEASES[CODEC], {"sample_rate": 44_100}, "sample_rate"),
    ],
)
def test_tree_that_cannot_run_is_refused_before_its_weights(heartmula, hub, tmp_path, release, changes, why):
    repo = f"HeartMuLa/{release}"
    there = hub.commits[f"{repo}@{hub.main[repo]}"]
    config = json.dumps(json.loads(there["config.json"]) | changes).encode()
    hub.push(repo, there | {"config.json": config})
    with pytest.raises(BadInput, match=why):
        fetch.get("heartmula-3b", heartmula)
    assert hub.fetched() == ["config.json", "config.json"] and not (tmp_path / "ckpt").exists()


def test_list_says_when_a_set_was_verified_last(get, env, folder, monkeypatch):
    monkeypatch.setattr(timestamps, "now", lambda: "2026-01-01T00:00:00Z")
    get()
    assert find.look(sets.find(trees.NAME), env).verified_at == "2026-01-01T00:00:00Z"
    monkeypatch.setattr(timestamps, "now", lambda: "2026-01-02T00:00:00Z")
    assert verify.check(trees.NAME, env).faults == []
    assert find.look(sets.find(trees.NAME), env).verified_at == "2026-01-02T00:00:00Z"


def test_set_of_which_the_table_names_another_repository_is_brought_up_to_date(get, hub, folder, monkeypatch):
    get()
    hub.push("demo/newer", trees.FILES | {"generation_config.json": b'{"b": 2}'})
    newer = sets.ModelSet(trees.NAME, (sets.Part("demo/newer"),), "any")
    monkeypatch.setitem(sets.NAMED, trees.NAME, newer)
    hub.asked.clear()
    assert get().revision == hub.main["demo/newer"]
    assert hub.fetched() == ["generation_config.json"] and verify.full(folder) == []


def test_marker_without_files_makes_no_set_complete(get, folder):
    get()
    marker = json.loads((folder / manifest.MARKER).read_text())
    for parts in ([], [marker["parts"][0] | {"files": {}}]):
        (folder / manifest.MARKER).write_text(json.dumps(marker | {"parts": parts}))
        assert verify.quick(folder)


def test_progress_ends_with_all_bytes(get):
    seen = []
    get(progress=lambda *now: seen.append(now))
    assert seen[-1][:2] == (sum(map(len, trees.NEEDED.values())),) * 2


# --- faults that pass


@pytest.mark.parametrize(
    "faults",
    [
        [cut(1_000_000)],
        [cut(100), cut(100), cut(0), cut(2_000_000)],
        [flipped()],
        [flipped(), cut(1_500_000), flipped()],
        [short(1_000_000)],
        [status(503), status(500)],
        [cut(1_000_000), other_etag()],
        [cut(1_000_000), whole()],
    ],
    ids=["cut", "cut often", "flipped", "flipped, cut", "short", "5xx", "other etag", "no ranges"],
)
def test_fault_that_passes_ends_complete(get, hub, folder, faults):
    hub.faults[WEIGHTS] = faults
    get()
    assert is_complete(folder)
    assert hub.faults[WEIGHTS] == []


def test_dropped_connection_is_resumed_where_it_broke_off(get, hub):
    hub.faults[WEIGHTS] = [cut(1_000_001)]
    get()
    starts = [asked.start for asked in hub.asked if asked.path.endswith(WEIGHTS)]
    assert starts == [0, 1_000_001]


def test_hub_that_asks_for_a_pause_gets_it(get, hub, waited, folder):
    hub.faults[WEIGHTS] = [status(429, Retry_After="17")]
    get()
    assert waited == [17] and is_complete(folder)


def test_hub_that_has_no_answer_for_a_while_is_asked_again(get, hub, waited, folder):
    hub.faults["api"] = [status(503), status(429, Retry_After="3"), status(500)]
    get()
    assert waited[1] == 3 and is_complete(folder)


def test_hub_that_never_has_an_answer_is_one_line_and_leaves_nothing(get, hub, folder):
    hub.faults["api"] = [status(503)] * 9
    assert "cannot fetch demo/tiny from the hub (it answers 503)" in refused(get)
    assert not folder.exists()


def test_pause_is_read_from_the_hubs_own_header_too(get, hub, waited):
    hub.faults[WEIGHTS] = [status(429, RateLimit='"resolvers";r=0;t=23')]
    get()
    assert waited == [23]


def test_signed_address_that_has_run_out_is_asked_for_anew(get, hub, folder):
    hub.cdn, hub.faults[WEIGHTS] = True, [cut(1_000_000), status(403)]
    get()
    assert is_complete(folder)


def test_wrong_bytes_are_fetched_again_alone(get, hub):
    hub.faults[WEIGHTS] = [flipped()]
    get()
    assert sorted(hub.fetched()) == sorted([*trees.NEEDED, WEIGHTS])


# --- faults that stay


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([flipped()] * 3, "came 3 times with a wrong checksum; run it again later"),
        ([short(1_000_000)] * 9, "it sends less than the whole file"),
        ([status(503)] * 8, "it answers 503"),
        ([status(429, Retry_After="7200")], "the hub asks to wait 2 h 0 min; run it again then"),
    ],
    ids=["flipped", "short", "503", "429"],
)
def test_fault_that_stays_is_one_line_and_no_set(get, hub, folder, faults, message):
    hub.faults[WEIGHTS] = list(faults)
    assert message in refused(get)
    assert verify.quick(folder)


def test_hub_that_ends_in_the_middle_is_resumed_by_the_next_call(get, hub, folder):
    hub.faults[WEIGHTS] = [cut(1_000_000), *[status(503)] * 8]
    refused(get)
    hub.asked.clear()
    hub.faults.clear()
    get()
    assert [asked.start for asked in hub.asked if "/resolve/" in asked.path] == [1_000_000]
    assert is_complete(folder)


def test_offline_with_a_complete_set_goes_on(get, hub, folder):
    get()
    assert get(HF_HUB_OFFLINE="1").folder == folder


def test_offline_without_a_set_is_one_line_and_leaves_nothing(get, tmp_path):
    assert "model demo/tiny is not on this machine" in refused(get, BadInput, HF_HUB_OFFLINE="1")
    assert list((tmp_path / "models").iterdir()) == []


def test_hub_away_with_an_incomplete_set_says_so(get, hub, folder):
    hub.faults[WEIGHTS] = [status(503)] * 8
    refused(get)
    text = refused(get, BadInput, HF_ENDPOINT="http://127.0.0.1:9")
    assert f"the hub cannot be reached (no connection; 14 kB of it are in {folder})" in text


def test_model_that_cannot_run_is_refused_before_its_weights(get, hub, folder):
    config = json.dumps(json.loads(trees.CONFIG) | {"model_type": "musicgen_melody"}).encode()
    hub.push(trees.NAME, trees.FILES | {"config.json": config})
    assert "holds a 'musicgen_melody' model" in refused(get, BadInput)
    assert hub.fetched() == ["config.json"] and not folder.exists()


def test_model_without_safetensors_is_refused_by_its_list(get, hub, folder):
    hub.push(trees.NAME, {name: its for name, its in trees.FILES.items() if name != WEIGHTS})
    assert "has its weights in pytorch_model.bin only; convert them" in refused(get, BadInput)
    assert hub.fetched() == [] and not folder.exists()


def test_shard_that_the_hub_lacks_is_named(get, hub, folder):
    index = json.dumps({"weight_map": {"a": WEIGHTS, "b": "model-2.safetensors"}}).encode()
    hub.push(trees.NAME, trees.FILES | {"model.safetensors.index.json": index})
    assert "demo/tiny lacks model-2.safetensors" in refused(get, BadInput)
    assert WEIGHTS not in hub.fetched() and not folder.exists()


def test_commit_that_is_gone_from_the_hub_is_resolved_anew(get, hub, folder):
    hub.faults[WEIGHTS] = [status(503)] * 8
    refused(get)
    hub.commits.clear()
    commit = hub.push(trees.NAME, trees.FILES | {"generation_config.json": b'{"b": 2}'})
    assert get().revision == commit and verify.full(folder) == []


def test_main_that_moves_in_the_middle_changes_nothing(get, hub, folder):
    hub.faults[WEIGHTS] = [status(503)] * 8
    refused(get)
    before = hub.main[trees.NAME]
    hub.push(trees.NAME, trees.FILES | {WEIGHTS: trees.weights(3_000_000, salt=1)})
    assert get().revision == before and is_complete(folder)


def test_names_that_lead_out_of_the_folder_are_not_fetched(get, hub, folder, tmp_path):
    hub.push(
        trees.NAME, trees.FILES | {"../up.json": b"{}", "a/b.json": b"{}", "C:x.json": b"{}", ".h.json": b""}
    )
    get()
    assert is_complete(folder)


# --- disk


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=["disk", "quota"])
def test_full_disk_names_what_could_be_removed_and_keeps_what_has_come(get, hub, folder, monkeypatch, code):
    other = folder.parent / "demo--other"
    other.mkdir(parents=True)
    (other / WEIGHTS).write_bytes(bytes(2_000_000))
    write, written = os.write, []

    def full(descriptor, block):
        if sum(written) > 1_000_000:
            raise OSError(code, "no room")
        written.append(len(block))
        return write(descriptor, block)

    monkeypatch.setattr(download.os, "write", full)
    text = refused(get, DiskFull)
    assert "remove a model that you do not need: demo/other (2.0 MB)" in text
    assert verify.quick(folder)
    monkeypatch.setattr(download.os, "write", write)
    hub.asked.clear()
    get()
    assert max(asked.start for asked in hub.asked) > 1_000_000


def test_no_room_is_said_before_the_weights_come(get, hub, monkeypatch):
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    assert "3.0 MB are to come and 1.0 MB are free" in refused(get, DiskFull)
    assert hub.fetched() == ["config.json"]


def test_quota_that_is_used_up_is_found_before_the_weights_come(get, hub, monkeypatch):
    urandom = os.urandom

    def none_left(n_bytes):  # so many are drawn for the probe alone
        if n_bytes == room.CHUNK_BYTES:
            raise OSError(errno.EDQUOT, "quota")
        return urandom(n_bytes)

    monkeypatch.setattr(room.os, "urandom", none_left)
    assert "disk full" in refused(get, DiskFull)
    assert hub.fetched() == ["config.json"]


# --- what is there already


def test_file_damaged_afterwards_is_named_and_fetched_again_alone(get, hub, folder, env):
    get()
    (folder / "tokenizer.json").write_bytes(trees.FILES["tokenizer.json"][:-1] + b"x")
    assert verify.quick(folder) == []
    assert [fault.path for fault in verify.check(trees.NAME, env).faults] == ["tokenizer.json"]
    assert verify.quick(folder)  # complete no longer
    hub.asked.clear()
    get()
    assert hub.fetched() == ["tokenizer.json"] and is_complete(folder)


@pytest.mark.parametrize(
    "damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"short")], ids=["gone", "short"]
)
def test_set_with_a_missing_or_short_file_is_not_taken_for_complete(get, hub, folder, damage):
    get()
    damage(folder / WEIGHTS)
    assert [fault.path for fault in verify.quick(folder)] == [WEIGHTS]
    hub.asked.clear()
    get()
    assert hub.fetched() == [WEIGHTS] and is_complete(folder)


def test_files_that_someone_put_there_are_kept_if_they_are_right(get, hub, folder):
    folder.mkdir(parents=True)
    (folder / WEIGHTS).write_bytes(trees.LARGE)
    (folder / "tokenizer.json").write_bytes(bytes(len(trees.FILES["tokenizer.json"])))
    get()
    assert sorted(hub.fetched()) == ["config.json", "generation_config.json", "tokenizer.json"]
    assert is_complete(folder)


@pytest.fixture
def in_cache(tmp_path, hub):
    """What huggingface_hub has of the small model: blobs, to which a snapshot's files are links."""

    def in_cache(**changed):
        repo = tmp_path / "models" / "hf" / "hub" / "models--demo--tiny"
        snapshot = repo / "snapshots" / hub.main[trees.NAME]
        for folder in (repo / "blobs", snapshot):
            folder.mkdir(parents=True)
        for name, content in trees.NEEDED.items():
            large = name.endswith("safetensors")
            digest = hashlib.sha256(content).hexdigest() if large else git_sha1(content)
            (repo / "blobs" / digest).write_bytes(changed.get(name.partition(".")[0], content))
            (snapshot / name).symlink_to(repo / "blobs" / digest)
        return snapshot

    return in_cache


def real(folder):
    return [path for path in folder.iterdir() if not path.is_symlink()]


@pytest.mark.parametrize("links", [True, False], ids=["the same disk", "another disk"])
def test_what_the_hubs_own_cache_has_is_not_fetched_again(get, hub, folder, in_cache, monkeypatch, links):
    snapshot = in_cache()
    if not links:

        def across_disks(*_):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(cached.os, "link", across_disks)
    got = get()
    assert (hub.fetched(), got.came_bytes) == ([], 0)
    assert is_complete(folder) and len(real(folder)) == len(trees.NEEDED) + 1
    remove.remove(trees.NAME, trees.env(hub, folder.parent))
    assert (snapshot / WEIGHTS).read_bytes() == trees.LARGE


def test_file_that_is_damaged_in_the_hubs_own_cache_is_fetched(get, hub, folder, in_cache):
    in_cache(model=bytes(len(trees.LARGE)), tokenizer=b"short")
    get()
    assert sorted(hub.fetched()) == [WEIGHTS, "tokenizer.json"] and is_complete(folder)


def test_whole_snapshot_of_the_hubs_own_cache_will_do_without_a_network(get, env, in_cache):
    snapshot = in_cache()
    assert find.look(sets.find(trees.NAME), env).note == f"huggingface_hub has it in {snapshot}"
    got = get(HF_HUB_OFFLINE="1")
    assert got.folder == snapshot and "not verified" in got.summary()


def test_set_that_is_only_looked_at_says_when_it_was_verified(get, monkeypatch):
    monkeypatch.setattr(timestamps, "now", lambda: "2026-01-01T00:00:00Z")
    assert "verified; 3.0 MB came now" in get().summary()
    assert "verified at 2026-01-01T00:00:00Z; it was here already" in get().summary()


def test_offline_with_one_file_gone_promises_nothing(get, folder):
    get()
    (folder / "tokenizer.json").unlink()
    said = []
    assert "model demo/tiny is not complete" in refused(get, BadInput, said=said, HF_HUB_OFFLINE="1")
    assert not any("are to come" in line for line in said)


def test_small_files_that_a_killed_process_left_are_removed_and_a_living_ones_not(get, folder):
    folder.mkdir(parents=True)
    old, new = (folder / f".complete.json.{n}.new" for n in ("01234567", "89abcdef"))
    for path in (old, new):
        path.write_bytes(b"{")
    os.utime(old, (1e9, 1e9))
    get()
    assert new.exists() and not old.exists()


def test_link_in_place_of_a_file_becomes_a_real_file(get, folder, tmp_path):
    (tmp_path / "blob").write_bytes(trees.LARGE)
    folder.mkdir(parents=True)
    (folder / WEIGHTS).symlink_to(tmp_path / "blob")
    get()
    assert not (folder / WEIGHTS).is_symlink() and is_complete(folder)
    assert (tmp_path / "blob").read_bytes() == trees.LARGE


def test_any_other_link_is_refused_by_name(get, folder, tmp_path):
    folder.mkdir(parents=True)
    (folder / "more").symlink_to(tmp_path)
    assert f"{folder / 'more'} is a link" in refused(get, BadInput)


def test_left_overs_of_another_commit_are_removed(get, folder):
    folder.mkdir(parents=True)
    left = folder / ".model.safetensors.0123abcd.89ab0123.part"
    left.write_bytes(b"half")
    get()
    assert not left.exists() and is_complete(folder)


def test_wrong_left_over_is_found_by_its_checksum_and_fetched_again(get, hub, folder):
    folder.mkdir(parents=True)
    left = folder / f".model.safetensors.{hub.main[trees.NAME][:8]}.89ab0123.part"
    left.write_bytes(bytes(1_000_000))
    get()
    starts = [asked.start for asked in hub.asked if asked.path.endswith(WEIGHTS)]
    assert starts == [1_000_000, 0] and is_complete(folder)


def test_disk_that_fails_while_a_set_is_verified_is_one_line(get, env, folder, monkeypatch):
    get()

    def failing(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest.File, "matches", failing)
    with pytest.raises(UserError, match=r"cannot use .*config\.json \(Input/output error\); "):
        verify.check(trees.NAME, env)
    assert verify.quick(folder) == []  # nothing is known against it


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["full", "read-only"])
def test_whole_set_on_a_disk_that_takes_no_write_is_whole(get, env, folder, takes_no_write, number):
    get()
    takes_no_write(number)
    checked = verify.check(trees.NAME, env)
    assert checked.faults == []
    assert f"the time could not be noted ({os.strerror(number)})" in checked.summary()


def test_damage_on_a_read_only_disk_is_told_although_the_marker_stays(get, env, folder, monkeypatch):
    get()
    (folder / "tokenizer.json").write_bytes(trees.FILES["tokenizer.json"][:-1] + b"x")

    def refusing(path, target):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "replace", refusing)
    checked = verify.check(trees.NAME, env)
    assert [fault.path for fault in checked.faults] == ["tokenizer.json"]
    assert "still marked complete: Read-only file system" in checked.summary()


# --- two at once


def both(work):
    """Run it in two threads; -> what each returned or raised."""
    results = []

    def run(n):
        try:
            results.append(work(n))
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_two_at_once_one_works_and_the_other_waits_and_says_so(env, hub, folder):
    hub.pause_s = 0.05
    said = [], []
    results = both(lambda n: fetch.get(trees.NAME, env, tell=said[n].append))
    assert sorted(got.came_bytes > 0 for got in results) == [False, True]
    assert sorted(hub.fetched()) == sorted(trees.NEEDED)
    assert len([line for lines in said for line in lines if "waiting for that" in line]) == 1
    assert is_complete(folder)


def test_two_at_once_to_whom_every_lock_is_granted_both_end_complete(env, hub, folder, monkeypatch):
    monkeypatch.setattr(lease.Lease, "take", lambda self: True)
    monkeypatch.setattr(lease.Lease, "renew", lambda self: True)
    hub.pause_s = 0.03

    def late(n):
        time.sleep(0.15 * n)  # the first is in the middle of the weights
        return fetch.get(trees.NAME, env, hub=Hub(env, wait=lambda _: None))

    results = both(late)
    assert all(isinstance(got, fetch.Got) for got in results), results
    assert is_complete(folder)


# --- secrets


def test_token_goes_to_the_hub_and_to_nobody_else(get, hub, folder, caplog):
    hub.gated[trees.NAME], hub.cdn = "hf_PLANTED", True
    said = []
    get(said=said, HF_TOKEN="hf_PLANTED")
    assert is_complete(folder)
    assert {asked.token for asked in hub.asked if asked.by_cdn} == {""}
    assert {asked.token for asked in hub.asked if not asked.by_cdn} == {"hf_PLANTED"}
    assert "hf_PLANTED" not in caplog.text + repr(said)
    assert not any(b"hf_PLANTED" in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_token_of_the_file_that_a_login_writes_is_used(get, hub, tmp_path):
    hub.gated[trees.NAME] = "hf_PLANTED"
    (tmp_path / "token").write_text("hf_PLANTED\n")
    get(HF_TOKEN_PATH=str(tmp_path / "token"))
    assert {asked.token for asked in hub.asked} == {"hf_PLANTED"}


@pytest.mark.parametrize("token", ["", "hf_WRONG"])
def test_gated_model_names_the_page_where_its_licence_is_accepted(get, hub, caplog, token):
    hub.gated[trees.NAME] = "hf_PLANTED"
    text = refused(get, BadInput, HF_TOKEN=token)
    assert f"accept it on its page {hub.url}/demo/tiny" in text and "HF_TOKEN" in text
    assert "hf_WRONG" not in text + caplog.text


def test_unknown_model_is_one_line(get):
    assert "no model demo/none on the hub; check the name" in refused(get, BadInput, name="demo/none")


def test_token_is_not_sent_unencrypted_to_another_machine(get):
    text = refused(get, BadInput, HF_TOKEN="hf_PLANTED", HF_ENDPOINT="http://hub.example")
    assert "unencrypted" in text and "hf_PLANTED" not in text


def test_what_is_found_without_a_network(get, env, hub, folder):
    assert find.here(trees.NAME, env) is None
    get()
    assert find.here(trees.NAME, env) == (folder, hub.main[trees.NAME])
    (folder / WEIGHTS).unlink()
    assert find.here(trees.NAME, env) is None
