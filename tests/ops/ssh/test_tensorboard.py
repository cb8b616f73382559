"""`fab tensorboard`: a training's curves come from the box, across cuts, and nothing stays running there."""

import json
import signal
import socket
import sys
import urllib.request
from http.client import HTTPException

import pytest

from ops.ssh import tensorboard
from tests.fakes.proxy import proxying
from tests.ops.ssh import connect
from tests.ops.ssh.connect import connected
from tests.remote.boxes import until
from worker.errors import UserError

# Answers as TensorBoard would.
BOARD = """
import http.server

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"run": {"train/loss": {}}}')

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
print(f"TensorBoard 2.0 at http://127.0.0.1:{server.server_address[1]}/ (Press CTRL+C to quit)", flush=True)
server.serve_forever()
"""


@pytest.fixture
def deployed(box, tmp_path):
    with connect.deployed(box, tmp_path) as conn:
        yield conn


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def write_curve(folder):
    """What a training logs: a loss at three steps."""
    from tensorboard.compat.proto.event_pb2 import Event  # here: they take a second to import
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    for step in range(3):
        value = Summary.Value(tag="train/loss", simple_value=1 / (1 + step))
        writer.add_event(Event(step=step, wall_time=step, summary=Summary(value=[value])))
    writer.close()


def train(box, *folders, python=sys.executable):
    """A run of a training that may log to these folders, and its environment."""
    state = box.root / "state" / "20261127T120000Z-ab12"
    state.mkdir(parents=True)
    (state / "curves").write_text("".join(f"{folder}\n" for folder in folders))
    link = box.box_home / "training" / "0a1b" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.write_text(f'#!/bin/bash\nexec {python} "$@"\n')
    link.chmod(0o755)


def tags(port):
    """The runs and their scalars, as the page asks for them; None while nothing answers."""
    try:
        url = f"http://127.0.0.1:{port}/data/plugin/scalars/tags"
        with urllib.request.urlopen(url, timeout=20) as answer:
            return json.load(answer)
    except (OSError, HTTPException):
        return None


def ended_by_ctrl_c(process):
    """What it has said."""
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, said
    return said


def boards(box):
    """Every TensorBoard on the box."""
    return [words for words in box.processes().values() if "tensorboard.main" in words]


def stand_in(box):
    """A Python whose TensorBoard starts at once and knows one curve."""
    script, python = box.folder / "board.py", box.folder / "python"
    script.write_text(BOARD)
    python.write_text(f'#!/bin/bash\n[ "$1" = -c ] || exec {sys.executable} -S {script} "$@"\n')
    python.chmod(0o755)
    return python


def test_curves_of_the_newest_training_are_seen_and_the_browser_is_opened(fab, deployed, box, port):
    logs = box.root.parent / "clone" / "logs"
    train(box, logs, logs.parent / "output" / "runs")
    fab.env["BROWSER"] = f"touch {fab.here}/opened %s"
    write_curve(logs)
    process = fab.start("tensorboard", "--port", str(port))
    until(lambda: "train/loss" in str(tags(port)))
    said = ended_by_ctrl_c(process)
    assert f"TensorBoard: http://127.0.0.1:{port}/" in said
    assert (fab.here / "opened").exists()


def test_it_goes_on_after_a_cut_and_ctrl_c_leaves_nothing_on_the_box(fab, deployed, box, port):
    train(box, box.root.parent / "logs", python=stand_in(box))
    with proxying(box.port) as link:
        fab.env["RUNPOD_HOST"] = box.address.replace(str(box.port), str(link.port))
        process = fab.start("tensorboard", "--port", str(port), "--no-browser")
        until(lambda: tags(port))
        link.reset()
        until(lambda: link.n_connections > 1 and tags(port))
        said = ended_by_ctrl_c(process)
    assert "the connection was lost to TensorBoard; showing again" in said
    assert said.count("TensorBoard: http://") == 1
    assert f"there is no event file in {box.root.parent / 'logs'} yet; the page fills" in said
    until(lambda: not boards(box))


def test_killed_program_leaves_nothing_on_the_box(fab, deployed, box, port):
    train(box, box.root.parent / "logs", python=stand_in(box))
    process = fab.start("tensorboard", "--port", str(port), "--no-browser")
    until(lambda: boards(box))
    process.kill()
    process.communicate()
    until(lambda: not boards(box))


@pytest.mark.parametrize(
    ("words", "trained", "code", "said"),
    [
        ([], False, 2, "no training has run on this box; name a folder with event files: fab tensorboard"),
        ([], True, 2, "there is no TensorBoard on this box; add tensorboard to the training's requirements"),
        (["--port", "99999"], False, 2, "--port 99999 is not a port; write a number from 1 to 65535"),
        (["--port", "many"], False, 1, "'many' is not a whole number"),
    ],
)
def test_what_is_missing_is_one_line(fab, deployed, box, words, trained, code, said):
    without = box.bin / "python3"
    without.write_text(f'#!/bin/bash\nexec {sys.executable} -I -S "$@"\n')
    without.chmod(0o755)
    if trained:
        train(box, box.root.parent / "logs", python="/gone")
    done = fab("tensorboard", *words)
    assert (done.returncode, done.stderr.count("error: ")) == (code, 1), done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: {said}"), done.stderr


def test_folder_of_the_newest_training_that_has_curves_is_shown(fab, deployed, box, port):
    logs = box.root.parent / "logs"
    train(box, logs, logs.parent / "runs", python=stand_in(box))
    old = box.root / "state" / "20250101T120000Z-ab12"
    old.mkdir()
    (old / "curves").write_text("/old\n")
    write_curve(logs.parent / "runs")
    process = fab.start("tensorboard", "--port", str(port), "--no-browser")
    until(lambda: boards(box))
    (words,) = boards(box)
    ended_by_ctrl_c(process)
    assert words[words.index("--logdir") + 1] == str(logs.parent / "runs")


def test_taken_port_is_one_line(fab, deployed, port):
    with socket.create_server(("127.0.0.1", port)):
        done = fab("tensorboard", "--port", str(port))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: port {port} of this machine cannot be used"), done.stderr


def test_fetched_logs_are_shown_here_once_the_box_is_gone(fab, box, port):
    write_curve(fab.here / "out" / "train" / "logs")
    box.stop()
    process = fab.start("tensorboard", "--port", str(port), "--no-browser")
    until(lambda: "train/loss" in str(tags(port)))
    said = ended_by_ctrl_c(process)
    assert "nothing listens at" in said and "showing the logs that were fetched into out" in said
    until(lambda: tags(port) is None)


def test_box_that_is_gone_without_fetched_logs_is_one_line(fab, box):
    box.stop()
    done = fab("tensorboard")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: nothing listens at"), done.stderr


def test_command_is_named_where_this_machine_has_no_tensorboard(box, tmp_path, monkeypatch):
    write_curve(tmp_path / "out" / "logs")
    box.stop()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tensorboard.importlib.util, "find_spec", lambda name: None)
    with connected(box, tmp_path) as conn, pytest.raises(UserError, match="uv run --with tensorboard"):
        tensorboard.show(conn, "", 6006, browse=False)
