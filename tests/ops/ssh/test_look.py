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
        found = look.system(conn)
    assert {"CPU", "memory"} <= {row["what"] for row in look.system_rows(found)}
    assert found.processes and found.processes[0].pid > 0


V2 = """
cpu.max 600000 100000
memory.max 32000000000
memory.current 20000000000
memory.stat anon 12000000000
memory.stat inactive_file 8000000000
"""
V1 = """
cpu/cpu.cfs_quota_us 600000
cpu/cpu.cfs_period_us 100000
memory/memory.limit_in_bytes 32000000000
memory/memory.usage_in_bytes 20000000000
memory/memory.stat inactive_file 5
memory/memory.stat total_inactive_file 8000000000
"""
UNLIMITED_V1 = """
cpu/cpu.cfs_quota_us -1
cpu/cpu.cfs_period_us 100000
memory/memory.limit_in_bytes 9223372036854771712
memory/memory.usage_in_bytes 20000000000
"""
HOST = (
    "=== load\n1.50 2.00 3.00 1/2 3\n128\n"
    "=== memory\nMemTotal: 512000000 kB\nMemAvailable: 400000000 kB\n=== cgroup\n"
)


@pytest.mark.parametrize(
    ("cgroup", "shown"),
    [
        (V2, (6, 20, 32)),
        (V1, (6, 20, 32)),
        ("cpu.max max 100000\nmemory.max max\nmemory.current 5\n", (128, 400, 512)),
        (UNLIMITED_V1, (128, 400, 512)),
        ("", (128, 400, 512)),
    ],
    ids=["v2", "v1", "v2 without limits", "v1 without limits", "no cgroup"],
)
def test_container_shows_its_own_cores_and_memory(cgroup, shown):
    found = look.parse_system(HOST + cgroup.lstrip())
    assert (found.cores, found.memory_free_gb, found.memory_gb) == shown


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


def test_system_log_begins_with_the_start_of_the_newest_run(box, tmp_path):
    (box.root / "state").mkdir(parents=True)
    (box.root / "state" / "current").symlink_to("20261122T195059Z-ab12")
    box.box_home.mkdir()
    log = "--- 2026-11-22T19:50:58Z old\nold, without a time\n--- 2026-11-22T19:50:59Z new\nnew, without\n"
    (box.box_home / "watchdog.log").write_text(log)
    (box.bin / "dmesg").write_text(
        "#!/bin/bash\nprintf '2026-11-22T19:%s,1+00:00 oom: %s\\n' 50:58 old 51:00 new\n"
    )
    (box.bin / "dmesg").chmod(0o755)
    with connected(box, tmp_path) as conn:
        log = look.SystemLog(conn)
        assert log.new() == [
            "--- 2026-11-22T19:50:59Z new",
            "new, without",
            "2026-11-22T19:51:00,1+00:00 oom: new",
        ]
        (box.root / "state" / "current").unlink()  # another run changes nothing
        assert log.new() == []


def test_box_without_a_gpu_is_one_line(box, tmp_path):
    (box.bin / "nvidia-smi").write_text("#!/bin/bash\necho 'NVIDIA-SMI has failed' >&2; exit 9\n")
    with connected(box, tmp_path) as conn, pytest.raises(UserError, match=r"no GPU found .*has failed"):
        look.gpus(conn)
