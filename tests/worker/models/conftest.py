"""The tiny HeartMuLa, built once for each process that tests it."""

import shutil

import pytest

from worker.models import tiny_heartmula


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Two whole trees that no test may change: `single` files, and `shards`."""
    folder = tmp_path_factory.mktemp("heartmula")
    tiny_heartmula.build(folder / "single")
    tiny_heartmula.build(folder / "shards", shards=3)
    return folder


@pytest.fixture
def tree(built, tmp_path):
    """A tree of single files, to be spoiled."""
    return shutil.copytree(built / "single", tmp_path / "single")


@pytest.fixture
def shards(built, tmp_path):
    """A tree whose models are three shards each, to be spoiled."""
    return shutil.copytree(built / "shards", tmp_path / "shards")
