"""Fixtures that several test files share."""

import os
import random
import signal
import sys

import hypothesis
import pytest

from tests import training
from tests.fakes import box as boxes
from tests.fakes import commands as forked
from tests.fakes import s3, trainings
from worker.store.open import open_store

# A machine under load takes its time, which is no fault of what is tested.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


def pytest_configure():
    # A shell's background job ignores Ctrl-C, and nohup's a hangup; so would the programs whose signals
    # are tested.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.name != "nt" and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # As in a shell whose environment is active: commands in messages are then named without `uv run`.
    os.environ["VIRTUAL_ENV"] = sys.prefix
    os.environ.pop("UV_RUN_RECURSION_DEPTH", None)


def pytest_xdist_auto_num_workers():
    """Three at least: many tests wait for other processes more than they compute."""
    return max(3, os.cpu_count() or 1)


@pytest.fixture(scope="session", autouse=True)
def box_home(tmp_path_factory):
    """Where workers keep what belongs to a box: never the developer's own."""
    home = tmp_path_factory.mktemp("box-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MUSICGEN_BOX_HOME", str(home))
        patch.setenv("MUSICGEN_MODELS_DIR", str(home / "models"))
        yield home


@pytest.fixture(scope="session")
def s3_server():
    """The URL of a real S3 API, one for each xdist worker."""
    with s3.serving() as url:
        yield url


@pytest.fixture
def s3_url(s3_server, monkeypatch):
    """`s3_server`, and an environment in which boto3 finds it and nothing of the developer's own."""
    s3.only_at(s3_server, monkeypatch)
    return s3_server


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    """An empty store, once in a folder that is not there yet, once under a prefix of a new bucket."""
    if request.param == "folder":
        return open_store(str(tmp_path / "out"))
    return open_store(f"s3://{s3.fresh_bucket(request.getfixturevalue('s3_url'))}/some/prefix")


@pytest.fixture
def rng():
    """Randomness that a failing test can be given again: it prints the seed."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"run again with TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def box(tmp_path):
    """A GPU box on loopback: a real OpenSSH server in a throw-away HOME."""
    with boxes.serving(tmp_path / "box") as served:
        yield served


@pytest.fixture(scope="session")
def commands():
    """`fab` and `inv` as processes that need not import everything first."""
    with forked.serving() as served:
        yield served


@pytest.fixture
def fab(tmp_path, box, commands):
    """The real `fab` with our tasks, in a folder of the user's, with the box in its environment."""
    here = tmp_path / "user"
    here.mkdir()
    (here / "prompts.txt").write_text("rain ; 1 ; rain\nsun ; 2 ; sun\n")
    return boxes.Fab(here, box, commands)


@pytest.fixture(scope="session")
def training_python():
    """A `python` for examples/train; tests that use it are of xdist_group("training")."""
    with trainings.serving() as python:
        yield python


@pytest.fixture(scope="session")
def trained(training_python, tmp_path_factory):
    """A folder in which the example was trained to its end, undisturbed. Not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    training.prepare(folder)
    done = training.train(training_python, folder)
    assert done.returncode == 0, done.stderr
    return folder
