"""The real `inv` in this process: it takes no second to start, and a test can change what it uses."""

import contextlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from invoke import Collection, Program

import tasks


class Terminal(io.StringIO):
    """A standard input at which somebody types."""

    def isatty(self) -> bool:
        return True


def typed_in(folder: Path) -> Callable[..., SimpleNamespace]:
    """A call that runs `inv ARGUMENTS` there to its end: `code`, `out` and `err`.

    `typed`: what a user types at its terminal; None: it has none.
    """

    def run(*arguments: str, encoding: str = "utf-8", typed: str | None = None) -> SimpleNamespace:
        before, here = dict(os.environ), Path.cwd()
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
        with Path(os.devnull).open() as nobody, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", nobody if typed is None else Terminal(typed))
            os.chdir(folder)
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    Program(namespace=Collection.from_module(tasks)).run(["inv", *arguments])
                code = 0
            except SystemExit as ended:
                code = ended.code
            finally:
                os.chdir(here)
                os.environ.clear()
                os.environ.update(before)
        texts = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), texts, strict=True)))

    return run
