"""What a box says of itself becomes rows, and what it cannot say is left out."""

import pytest

from ops.ssh import look
from ops.ssh.look import Disk
from tests.ops.ssh.connect import connected
from worker.errors import UserError


def test_gpu_that_does_not_say_everything_is_shown_all_the_same():
    text = "0, NVIDIA L40S, 7, 100, 46068, 30, 20.5, 350.00\n1, Tesla, [N/A], 1, 2, [N/A], [N/A], [N/A]\nx\n"
    first, second = look.parse_gpus(text)
    assert (first.gpu, first.use_percent, first.power_w) == (0, 7.0, 20.5)
    assert (second.name, second.use_percent, second.memory_total_mb) == ("Tesla", None, 2.0)


def test_disk_mounted_twice_is_shown_once():
    text = (
        "Filesystem 1024-blocks Used Available Capacity Mounted on\n"
        "overlay 100000000 1 50000000 50% /\noverlay 100000000 1 50000000 50% /\n"
        "mfs 900000000 1 800000000 1% /work space\n"
    )
    assert look.parse_disks(text) == [Disk("/", 50.0, 100.0), Disk("/work space", 800.0, 900.0)]


def test_network_rate_is_the_difference_without_loopback():
    one = "Inter-| x\n    lo: 5 0 0 0 0 0 0 0 5 0\n  eth0: 1000 0 0 0 0 0 0 0 50 0\n"
    two = "Inter-| x\n    lo: 9 0 0 0 0 0 0 0 9 0\n  eth0: 4000 0 0 0 0 0 0 0 70 0\n"
    assert look.network_rates(f"{one}\n{two}") == {"eth0": (3000, 20)}


def test_system_shows_cpu_memory_disk_and_the_busiest(box, tmp_path):
    with connected(box, tmp_path) as conn:
        found, busiest = look.system(conn)
    assert {"CPU", "memory"} <= {row["what"] for row in found}
    assert busiest and busiest[0]["pid"].isdigit()


def test_system_log_gives_each_line_once(box, tmp_path):
    box.box_home.mkdir()
    (box.box_home / "watchdog.log").write_text("one\ntwo\n")
    with connected(box, tmp_path) as conn:
        log = look.SystemLog(conn)
        assert log.new()[:2] == ["one", "two"]
        assert log.new() == []
        with (box.box_home / "watchdog.log").open("a") as file:
            file.write("three\n")
        assert log.new() == ["three"]


def test_box_without_a_gpu_is_one_line(box, tmp_path):
    (box.bin / "nvidia-smi").write_text("#!/bin/bash\necho 'NVIDIA-SMI has failed' >&2; exit 9\n")
    with connected(box, tmp_path) as conn, pytest.raises(UserError, match=r"no GPU found .*has failed"):
        look.gpus(conn)
