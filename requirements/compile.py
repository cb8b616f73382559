"""The pins a box or a user installs: requirements/{local,worker}.txt, made from pyproject.toml.

    python requirements/compile.py           resolve and write both (needs uv and the network)
    python requirements/compile.py --check   do they match pyproject.toml? (offline)

One universal result serves a Linux CUDA box, a Mac and Windows: markers tell them apart.
Pins that still fit are kept; delete a file to have its newest versions.
Only metadata is read: no wheel is downloaded, nothing is installed.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Made by requirements/compile.py from pyproject.toml. Do not edit.\n"
EXTRAS: dict[str, list[str]] = {"local": [], "worker": ["worker"]}

# Where the pins must work: a direct requirement needs exactly one pin on each.
PLATFORMS = [
    {"sys_platform": system, "platform_machine": machine, "python_version": python[:4]}
    | {"python_full_version": python, "implementation_name": "cpython"}
    for system, machine in (("linux", "x86_64"), ("darwin", "arm64"), ("win32", "AMD64"))
    for python in ("3.11.0", "3.12.0", "3.13.0")
]


def main() -> int:
    """Write both files, or with --check report how they differ from pyproject.toml (exit 1)."""
    parser = argparse.ArgumentParser(description="Pin requirements/*.txt from pyproject.toml.")
    parser.add_argument("--check", action="store_true", help="only check the files; offline")
    if not parser.parse_args().check:
        for name in EXTRAS:
            path(name).write_text(resolve(name), "utf-8", newline="\n")
    found = [line for name in EXTRAS for line in problems(name)]
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


def path(name: str) -> Path:
    """Where the pins of `local` or `worker` lie."""
    return ROOT / "requirements" / f"{name}.txt"


def resolve(name: str) -> str:
    """The file's new text: what uv finds in the registry, with pins that still fit kept."""
    # A local folder of wheels may hold a CPU-only torch, whose metadata names no CUDA library.
    env = {key: value for key, value in os.environ.items() if key != "UV_FIND_LINKS"}
    extras = [word for extra in EXTRAS[name] for word in ("--extra", extra)]
    command = ["uv", "pip", "compile", "pyproject.toml", *extras, "--output-file", str(path(name))]
    command += ["--universal", "--python-version", "3.11", "--no-header", "--no-annotate"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--quiet"]
    subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, check=True)
    return HEADER + clean(path(name).read_text("utf-8"))


def clean(text: str) -> str:
    """The pins alone: no comment, option, URL or hash line, no local version such as `+cpu`."""
    pins = [line for line in text.splitlines() if re.match(r"[A-Za-z0-9][\w.-]*==", line)]
    return "".join(re.sub(r"(==[^\s;+]+)\+[^\s;]+", r"\1", line).rstrip(" \\") + "\n" for line in pins)


def problems(name: str) -> list[str]:
    """How the committed file differs from pyproject.toml, a line each: `FILE:LINE: what; how to fix`."""
    if not path(name).exists():
        return [f"requirements/{name}.txt: missing; run python requirements/compile.py"]
    text = path(name).read_text("utf-8")
    return [f"requirements/{name}.txt{what}" for what in differences(text, wanted(name))]


def wanted(name: str) -> list[Requirement]:
    """The requirements that pyproject.toml states for this file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [line for extra in EXTRAS[name] for line in project["optional-dependencies"][extra]]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def differences(text: str, requirements: list[Requirement]) -> Iterator[str]:
    """Every line that is not a plain pin, and every requirement that is not pinned in its range."""
    pins: list[Requirement] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if number == 1 and line + "\n" == HEADER:
            continue
        pin = parse_pin(line)
        if pin:
            pins.append(pin)
        else:
            yield f":{number}: {line!r} is not `name==version ; marker`; run compile.py"

    for requirement in requirements:
        mine = [pin for pin in pins if canonicalize_name(pin.name) == canonicalize_name(requirement.name)]
        for pin in mine:
            if not requirement.specifier.contains(version(pin), prereleases=True):
                yield f": {pin.name}=={version(pin)} is not in {requirement}; run compile.py"
        for platform in PLATFORMS:
            if requirement.marker and not requirement.marker.evaluate(platform):
                continue
            if sum(pin.marker is None or pin.marker.evaluate(platform) for pin in mine) != 1:
                where = f"{platform['sys_platform']}, Python {platform['python_version']}"
                yield f": {requirement.name} has not exactly one pin on {where}; run compile.py"
                break


def parse_pin(line: str) -> Requirement | None:
    """The pin of a line `name==version ; marker`; None if it is anything else."""
    try:
        pin = Requirement(line)
    except InvalidRequirement:
        return None
    specifiers = list(pin.specifier)
    if pin.url or pin.extras or len(specifiers) != 1 or specifiers[0].operator != "==":
        return None
    # `==2.13.0` admits 2.13.0+cpu, so a range check alone would not see a local version.
    return None if "*" in specifiers[0].version or version(pin).local else pin


def version(pin: Requirement) -> Version:
    """The one version that a pin allows."""
    (specifier,) = pin.specifier
    return Version(specifier.version)


if __name__ == "__main__":
    sys.exit(main())
