"""The tiny models, built and loaded once for each process that tests them; and workers that run them."""

import pytest
import torch

from tests.fakes.worker import nursery
from tests.worker.heartmula import cases, songs
from worker.models import heartmula_tree


@pytest.fixture(scope="session")
def trees(tmp_path_factory):
    """A checked folder of each shape."""
    torch.set_num_threads(1)  # for so small a model: more threads wait for each other
    folder = tmp_path_factory.mktemp("heartmula")
    return {shape: heartmula_tree.check(cases.build(folder / shape, shape)) for shape in cases.SHAPES}


@pytest.fixture(scope="session")
def models(trees):
    """Each shape's model in fp32, as this machine's CPU is fastest."""
    return {shape: songs.model(tree) for shape, tree in trees.items()}


@pytest.fixture(scope="session")
def plain_models(trees):
    """Each shape's model without this project's C kernels, as on a GPU."""
    return {shape: songs.model(tree, compiled=False) for shape, tree in trees.items()}


@pytest.fixture(scope="session")
def workers(tmp_path_factory):
    """Worker processes; tests that use them are of one xdist group, so that there is one parent."""
    with nursery(tmp_path_factory.mktemp("workers"), "worker.heartmula", "heartmula-rehearsal") as parent:
        yield parent
