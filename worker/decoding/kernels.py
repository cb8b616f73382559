"""Build C kernels for the CPU at start, if there is a C compiler.

    multiply = build(HERE / "linear.c", "multiply", (POINTER, POINTER, POINTER, SIZE, SIZE, SIZE))

The headers of this folder are found from any other.

A build takes a fraction of a second, once per process, and leaves no file. Raises NoCompiler if there
is no compiler or it fails; torch then computes the same, more slowly.
"""

import ctypes
import functools
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

POINTER, SIZE, NUMBER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float

HERE = Path(__file__).parent


class NoCompiler(RuntimeError):
    """The kernel cannot be built on this machine."""


def build(
    source: Path, name: str, argument_types: tuple[type, ...], flags: tuple[str, ...] = ()
) -> "ctypes._NamedFuncPointer":
    """The function `name` of a C file; it returns nothing. Raises NoCompiler."""
    function = _built(source, name, flags)
    if isinstance(function, NoCompiler):
        raise NoCompiler(str(function))
    function.argtypes, function.restype = argument_types, None
    return function


@functools.cache  # failures are cached too: a model has hundreds of layers
def _built(source: Path, name: str, flags: tuple[str, ...]) -> "ctypes._NamedFuncPointer | NoCompiler":
    built = _compiled(source, name, flags)
    if isinstance(built, NoCompiler):
        log.warning("%s is not compiled (%s): slower, same songs", source.name, built)
    return built


def _compiled(source: Path, name: str, flags: tuple[str, ...]) -> "ctypes._NamedFuncPointer | NoCompiler":
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler or os.name == "nt":
        return NoCompiler("no C compiler")
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        built, library = Path(folder, "kernel.o"), Path(folder, "kernel.so")
        always = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-pipe", f"-I{HERE}"]
        try:
            _run([*shlex.split(compiler), *always, *flags, "-c", str(source), "-o", str(built)])
            # Linked without -fopenmp: the symbols resolve to the OpenMP that torch has loaded. A
            # second OpenMP would start its own threads, which compete with torch's for the cores.
            _run([*shlex.split(compiler), "-shared", str(built), "-lm", "-o", str(library)])
            function: ctypes._NamedFuncPointer = getattr(ctypes.CDLL(str(library)), name)
            return function
        except (OSError, subprocess.SubprocessError) as error:
            return NoCompiler(f"{compiler}: {error}")


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
