"""`fab` as a user meets it: never at the wrong machine, and nothing done before all was checked."""

import json
import os
import re
import signal
import subprocess
from getpass import getuser

import pytest

from ops.ssh.terminal import ssh_command
from tests.ops.ssh.connect import connected
from tests.songs import finish, listed
from worker.store.open import open_store


@pytest.mark.parametrize("given", [("-d",), ("--debug",)])
def test_password_for_fabric_is_not_in_its_debug_output(fab, given):
    fab.env = {"FABRIC_SUDO_PASSWORD": "not-to-be-seen"}
    done = fab(*given, "gpu")
    assert done.returncode == 0 and "invoke.program" in done.stderr
    assert "not-to-be-seen" not in done.stdout + done.stderr


# --- which box


def test_without_a_box_nothing_runs_here(fab):
    fab.env = {"RUNPOD_HOST": ""}
    done = fab("status")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no box is named; ")


def test_empty_variable_after_dash_h_does_not_eat_a_task(fab):
    done = fab("-H", "deploy", "install")
    assert done.returncode == 2
    assert (
        "error: -H took the task `deploy` for a box, as $RUNPOD_HOST is empty in this shell; " in done.stderr
    )


@pytest.mark.parametrize(
    "given", ["root@", "root@:22", "@203.0.113.7", "box:", "box:abc", "box:99999", "root@203.0.113.7:0", ","]
)
def test_what_an_empty_variable_leaves_of_an_address_is_one_line(fab, given):
    for arguments in (("-H", given, "gpu"), ("gpu", "-H", given)):
        done = fab(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: -H '?\S+ (is not a valid address|names several boxes).*\n", done.stderr)


def test_empty_variable_before_the_only_task_is_no_help_text(fab):
    done = fab("-H", "status")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: -H took the task `status` for a box")


def test_mistyped_command_is_one_line_with_the_nearest(fab):
    done = fab("instal")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: there is no command 'instal'; did you mean install?\n"


def test_second_box_is_named(fab):
    assert fab("-H", "a", "-H", "b", "status").stderr == "error: `fab` has -H twice; give it once\n"


def test_one_box_at_a_time(fab, box):
    done = fab("-H", f"{box.address},root@203.0.113.7", "stop")
    assert done.returncode == 2 and "names several boxes" in done.stderr


def known(fab, box, box_id, port):
    """The box as `inv pod.create` leaves it in `.boxes`."""
    user = box.address.rpartition("@")[0] or getuser()
    folder = fab.here / ".boxes" / box_id
    folder.mkdir(parents=True)
    values = {"id": box_id, "kind": "runpod", "host": box.host, "port": port, "user": user}
    (folder / "box.json").write_text(json.dumps(values))
    (folder.parent / "current").write_text(f"{box_id}\n")


def test_box_is_found_by_its_id(fab, box):
    known(fab, box, "podabc", box.port)
    known(fab, box, "podxyz", 1)
    fab.env = {"RUNPOD_HOST": ""}
    assert fab("-H", "podabc", "gpu").returncode == 0
    assert "known_hosts" in {path.name for path in (fab.here / ".boxes" / "podabc").iterdir()}
    assert "nothing listens at" in fab("-H", "podxyz", "gpu").stderr


def test_setting_that_hides_the_newest_box_is_one_warning(fab, box):
    known(fab, box, "podxyz", 1)
    done = fab("gpu", "gpu")
    assert done.returncode == 0
    assert done.stderr.startswith(f"warning: the box is {box.address}, as RUNPOD_HOST is set, and not podxyz")
    assert done.stderr.count("podxyz, which") == 1


def test_bare_host_takes_the_user_from_the_settings(fab, box):
    fab.env = {"RUNPOD_USER": "nobody-here"}
    done = fab("-H", f"{box.host}:{box.port}", "gpu")
    assert f"nobody-here@{box.host}:{box.port} refused your SSH key" in done.stderr


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="the box's user is then not root")
def test_bare_host_has_root_as_its_user_and_not_the_local_login(fab, box):
    fab.env = {"USER": "someone", "LOGNAME": "someone"}
    assert fab("-H", f"{box.host}:{box.port}", "gpu", "--json").returncode == 0


def test_dash_h_wins_over_the_settings_and_a_chain_shares_one_connection(fab, box):
    fab.env = {"RUNPOD_HOST": "127.0.0.1:1"}
    done = fab("-H", box.address, "gpu", "gpu", "gpu")
    assert done.returncode == 0
    assert done.stderr.count("first contact") == 1


def test_ssh_command_line_that_runpod_shows_is_an_address(fab, box):
    user = box.address.rpartition("@")[0]
    pasted = f"ssh {user}{'@' * bool(user)}{box.host} -p {box.port} -i {box.key_file}"
    fab.env = {"RUNPOD_HOST": pasted, "RUNPOD_SSH_KEY": ""}
    assert fab("gpu").returncode == 0
    fab.env = {"RUNPOD_HOST": "", "RUNPOD_SSH_KEY": ""}
    assert fab("-H", pasted, "gpu").returncode == 0


def test_ssh_command_line_with_a_windows_path_is_an_address(fab):
    fab.env = {"RUNPOD_SSH_KEY": ""}
    done = fab("-H", r"ssh root@127.0.0.1 -p 1 -i C:\keys\id", "gpu")
    assert done.stderr == "error: there is no SSH key C:\\keys\\id; correct RUNPOD_SSH_KEY or -i\n"


def test_proxy_jump_none_in_the_configuration_is_no_jump_host(fab):
    (fab.here / ".ssh").mkdir()
    (fab.here / ".ssh" / "config").write_text("Host *\n  ProxyJump none\n")
    assert fab("gpu").returncode == 0


def test_changed_host_key_is_refused(fab, box):
    assert fab("gpu").returncode == 0
    box.rekey()
    done = fab("gpu")
    assert done.returncode == 1
    assert re.fullmatch(r"error: the host key of .* has CHANGED .*known_hosts\n", done.stderr)


def test_shell_trusts_only_the_pinned_key(box, tmp_path):
    with connected(box, tmp_path) as conn:
        conn.run("true")
        command = [*ssh_command(conn), "echo $HOME"]
        assert subprocess.run(command, capture_output=True, text=True).stdout == f"{box.home}\n"
        box.rekey()
        assert subprocess.run(command, capture_output=True).returncode == 255


# --- before anything else


@pytest.mark.parametrize("task", ["deploy", "run", "up", "sync"])
def test_wrong_list_is_refused_before_the_box_is_touched(fab, box, task):
    (fab.here / "prompts.txt").write_text("rain ; 1e9 ; rain\n")
    done = fab(task)
    assert done.returncode == 2
    assert done.stderr.startswith("error: prompts.txt:1: ")
    assert not (fab.here / ".boxes").exists()


@pytest.mark.parametrize("task", ["run", "up", "sync"])
def test_wrong_sampling_is_refused_before_the_box_is_touched(fab, task):
    done = fab(task, "--temperature", "0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: temperature must be over 0; MusicGen's default is 1\n"
    assert not (fab.here / ".boxes").exists()


@pytest.mark.parametrize(
    ("given", "env"),
    [
        (["run", "--commercial"], {}),
        (["up", "--commercial"], {}),
        (["up"], {"MUSICGEN_COMMERCIAL": "1"}),
        (["sync"], {"MUSICGEN_COMMERCIAL": "1"}),
    ],
)
def test_weights_that_forbid_commercial_use_are_refused_before_the_box_is_touched(fab, given, env):
    fab.env = {"MUSICGEN_MODEL": "facebook/musicgen-small"} | env
    done = fab(*given)
    assert (done.returncode, done.stdout) == (2, "")
    assert "CC-BY-NC 4.0, which forbids commercial use" in done.stderr
    assert not (fab.here / ".boxes").exists()


@pytest.mark.parametrize("task", ["run", "up"])
def test_heartmula_here_that_is_not_whole_is_refused_before_the_box_is_touched(fab, tmp_path, task):
    (tmp_path / "ckpt").mkdir()
    fab.env = {"MUSICGEN_MODEL": "heartmula", "MUSICGEN_HEARTMULA_DIR": str(tmp_path / "ckpt")}
    done = fab(task)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {tmp_path}/ckpt is empty; fetch it: " in done.stderr and "heartmula-3b" in done.stderr
    assert not (fab.here / ".boxes").exists()


@pytest.mark.parametrize("task", ["install", "run", "up"])
def test_misspelt_setting_is_refused_before_the_box_is_touched(fab, task):
    fab.env = {"RUNPOD_HOST": "root@127.0.0.1:1", "MUSICGEN_LIFETIM_H": "1"}
    done = fab(task)
    assert (done.returncode, done.stdout) == (2, "")
    misspelt = "there is no setting MUSICGEN_LIFETIM_H; write MUSICGEN_LIFETIME_H, or remove it"
    assert done.stderr == f"error: environment: {misspelt}\n"


def test_misspelt_setting_is_one_warning_where_nothing_is_spent(fab):
    (fab.here / ".env").write_text("MUSICGEN_MAX_PRCE=1\n")
    fab.env = {"RUNPOD_HOST": "root@127.0.0.1:1"}
    done = fab("deploy")
    assert done.stderr.startswith("warning: .env:1: there is no setting MUSICGEN_MAX_PRCE; ")
    assert done.stderr.count("warning") == 1


def test_malformed_setting_is_refused_before_the_box_is_touched(fab):
    fab.env = {"HOURLY_COST_USD": "cheap"}
    done = fab("up")
    assert done.returncode == 2
    assert done.stderr.startswith("error: HOURLY_COST_USD=cheap ")


@pytest.mark.parametrize("task", ["install", "validate", "run", "stop", "status --extend 2h"])
def test_box_that_was_never_deployed_to_says_so(fab, task):
    done = fab(*task.split())
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("run: fab deploy")


# --- watching


def test_ctrl_c_ends_a_watch_quietly(fab):
    with fab.start("gpu", "--watch") as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=120)[1]
    assert process.returncode == 0
    assert b"Traceback" not in err


def test_console_without_our_characters_shows_others(fab):
    fab.env = {"PYTHONIOENCODING": "cp1252"}
    done = fab("gpu", "status")
    assert done.returncode == 0, done.stderr


# --- songs from the box itself


def test_bashrc_that_prints_disturbs_neither_log_nor_songs(fab, box):
    (box.home / ".bashrc").write_text("echo welcome; echo export X=1\n")
    run = box.root / "state" / "20261122T195059Z-ab12"
    run.mkdir(parents=True)
    (run.parent / "current").symlink_to(run.name)
    (run / "log").write_text("sang\n")
    for job in listed("rain ; 1 ; rain", "sun ; 1 ; sun"):
        finish(open_store(str(box.root / "output")), job)
    done = fab("logs", "--once")
    assert (done.returncode, done.stdout) == (0, "sang\n"), done.stderr
    assert "2 new songs" in fab("fetch").stderr


@pytest.mark.parametrize("n_songs", [1, 12])
def test_without_a_bucket_songs_come_over_ssh(fab, box, n_songs):
    jobs = listed(*(f"rain ; {n} ; rain{n}" for n in range(1, n_songs + 1)))
    for job in jobs:
        finish(open_store(str(box.root / "output")), job)
    done = fab("fetch", "--to", "album")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert {path.name for path in (fab.here / "album").glob("*.wav")} == {job.song for job in jobs}
    assert fab("fetch", "--to", "album").stderr.startswith("0 new songs")


def test_nothing_to_fetch_from_a_box_is_said_without_a_bucket(fab):
    done = fab("fetch")
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1].startswith("error: there is nothing in ") and "bucket" not in done.stderr
    )


def test_fetch_with_a_bucket_says_where_the_songs_are(fab):
    fab.env = {"MUSICGEN_S3_BUCKET": "some-bucket"}
    done = fab("fetch")
    assert done.returncode == 2
    assert "the songs are in s3://some-bucket; fetch them there: inv fetch" in done.stderr
