"""Whether a machine is busy: more wants to run than one program that uses every core."""

import os

import pytest

from worker.host.load import busy


@pytest.mark.parametrize(
    ("load", "n_cores", "says"),
    [
        (13.7, 2, "this machine is busy: load 14 on 2 cores"),
        (2.0, 1, "this machine is busy: load 2 on 1 core"),
        (2.1, 2, ""),
        (64.0, 64, ""),
    ],
)
def test_load_of_more_than_one_program_is_busy(load, n_cores, says):
    assert busy(load, n_cores) == says


def test_system_without_a_load_average_is_never_busy(monkeypatch):
    monkeypatch.delattr(os, "getloadavg", raising=False)
    assert busy() == ""
