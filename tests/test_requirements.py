"""requirements/*.txt match pyproject.toml, and the check would see it if they did not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement

from requirements import compile as pins

ROOT = Path(__file__).parents[1]
WANTED = [Requirement("torch==2.13.0"), Requirement("rich>=14,<16"), Requirement("NumPy>=2.1,<3")]
NUMPY = ["numpy==2.4.6 ; python_full_version < '3.12'", "numpy==2.5.5 ; python_full_version >= '3.12'"]
GOOD = ["boto3==1.44.5", *NUMPY, "rich==15.0.0", "torch==2.13.0"]


def found(lines):
    return list(pins.differences(pins.HEADER + "".join(line + "\n" for line in lines), WANTED))


@pytest.mark.parametrize("name", pins.EXTRAS)
def test_committed_pins_match_pyproject(name):
    assert pins.problems(name) == []


def test_check_needs_neither_uv_nor_network(tmp_path):
    command = [sys.executable, "requirements/compile.py", "--check"]
    env = os.environ | {
        "PATH": str(tmp_path),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_linux_pins_hold_the_cuda_libraries():
    text = pins.path("worker").read_text("utf-8")
    assert any(line.startswith("nvidia-cublas==") and "linux" in line for line in text.splitlines())


def test_good_pins_pass():
    assert found(GOOD) == []


@pytest.mark.parametrize("line", GOOD[1:])
def test_missing_pin_is_found(line):
    assert len(found([other for other in GOOD if other != line])) == 1


@given(st.integers(0, 40), st.integers(0, 40))
def test_pin_passes_exactly_when_its_range_allows_it(major, minor):
    problems = found([*GOOD[:3], f"rich=={major}.{minor}", GOOD[4]])
    assert (problems == []) == (14 <= major < 16)


def test_pin_that_one_platform_lacks_is_found():
    (problem,) = found([*GOOD[:3], "rich==15.0.0 ; sys_platform != 'win32'", GOOD[4]])
    assert "win32" in problem


def test_second_pin_on_a_platform_is_found():
    assert found([*GOOD, "rich==14.0.0"])


@pytest.mark.parametrize(
    "line",
    [
        "torch==2.13.0+cpu",
        "torch @ https://wheels.example/torch-2.13.0-cp311-cp311-linux_x86_64.whl",
        "https://wheels.example/torch-2.13.0-cp311-cp311-linux_x86_64.whl",
        "--extra-index-url https://wheels.example/cpu",
        "--find-links /opt/wheels",
        "torch==2.13.0 --hash=sha256:0000",
        "    --hash=sha256:0000",
        "torch>=2.13.0",
        "torch==2.13.*",
        "torch===2.13.0",
        "-e .",
        "# a second comment",
        "",
    ],
)
def test_line_that_is_no_plain_pin_is_found(line):
    assert any("is not `name==version ; marker`" in problem for problem in found([*GOOD, line]))


def test_cleaning_leaves_plain_pins():
    dirty = [
        "--find-links /opt/wheels",
        "# from somewhere",
        "torch==2.13.0+cpu ; sys_platform == 'linux' \\",
        "    --hash=sha256:0000",
        "rich==15.0.0",
    ]
    assert pins.clean("\n".join(dirty)) == "torch==2.13.0 ; sys_platform == 'linux'\nrich==15.0.0\n"
