"""Secret files: what bash reads back, and who may read them on the box."""

import stat
import subprocess

import pytest

from ops.ssh import secrets
from tests.ops.ssh.connect import connected
from worker.errors import BadInput


@pytest.mark.parametrize("value", ["a b", "$(touch x)", "`id`", '"', "\\", "a;b#c", "%PATH%", "ключ"])
def test_value_is_read_back_exactly_by_bash_and_nothing_in_it_runs(value, tmp_path):
    (tmp_path / "env").write_text(secrets.env_lines({"KEY": value}), "utf-8")
    script = 'set -a; . ./env; printf %s "$KEY"'
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    assert done.stdout.decode() == value
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("value", ["it's", "a\nb", "a\rb", "\0"])
def test_value_that_is_read_in_more_than_one_way_is_refused_without_showing_it(value):
    with pytest.raises(BadInput) as caught:
        secrets.env_lines({"HF_TOKEN": value})
    assert "HF_TOKEN" in str(caught.value) and value not in str(caught.value)


def test_lines_that_are_not_ours_stay():
    before = "MUSICGEN_STOP_HOOK='remote/stop_pod.py'\nMUSICGEN_MODEL='old'\nHF_TOKEN='gone'\nrm -rf /\n"
    after = secrets.merged(before, {"MUSICGEN_MODEL": "new"}, ["MUSICGEN_MODEL", "HF_TOKEN"])
    assert after == "MUSICGEN_STOP_HOOK='remote/stop_pod.py'\nMUSICGEN_MODEL='new'\n"


def test_file_on_the_box_is_for_its_user_alone_and_whole(box, tmp_path):
    path = box.box_home / "worker.env"
    with connected(box, tmp_path) as conn:
        for content in (b"KEY='first'\n", b"KEY='second'\n"):
            secrets.put(conn, str(path), content)
            assert path.read_bytes() == content
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert secrets.read(conn, str(path)) == "KEY='second'\n"
        assert secrets.read(conn, str(path) + ".absent") == ""
    assert [entry.name for entry in box.box_home.iterdir()] == ["worker.env"]
