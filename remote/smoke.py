"""One short song by command line, and what it sounds like in numbers: does this model work on this machine?

    python remote/smoke.py MODEL

Runs the worker as any run does, into a temporary folder that is removed. Its progress goes to stdout, the
last line says what was heard. Exit codes: 0 it works; 1 the song is silent, short or broken; else the
worker's. Standard library only.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 5
PROMPT = "calm piano over soft strings"
# Of the quality columns' flags, those of a song that nobody would keep.
_BROKEN = {"silent", "short", "not_finite"}


def main() -> None:
    """Make the song, print what it is, and end with the exit code."""
    if len(sys.argv) != 2:
        sys.exit("error: write: smoke.py MODEL")
    model = sys.argv[1]
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        code = _make(model, Path(folder))
        if code:
            sys.exit(code)
        (record,) = (Path(folder) / "out" / "records").glob("*.json")
        found = json.loads(record.read_text("utf-8"))
    print(heard(found))
    sys.exit(bool(broken(found)))


def _make(model: str, folder: Path) -> int:
    """Run the worker on a list of one song; -> its exit code."""
    prompts = folder / "prompts.txt"
    prompts.write_text(f"{PROMPT} ; {SECONDS} ; smoke\n", "utf-8")
    output = folder / "out"
    argv = [sys.executable, "-m", "worker", f"--prompts={prompts}", f"--model={model}", f"--output={output}"]
    return subprocess.run(argv, cwd=Path(__file__).resolve().parents[1], stderr=subprocess.STDOUT).returncode


def broken(record: Mapping[str, Any]) -> list[str]:
    """The flags of a song that show that the model or its machine does not work."""
    return sorted(_BROKEN & set(record["quality"]["flags"]))


def heard(record: Mapping[str, Any]) -> str:
    """What the song is, as a line."""
    quality = record["quality"]
    loudness = "silent" if quality["lufs"] is None else f"{quality['lufs']:.1f} LUFS"
    what = (
        f"{record['model']} on {record['device']}, {record['precision']}: "
        f"{quality['duration_s']:g} of {record['seconds']:g} s, {loudness}, "
        f"{quality['silence_s']:g} s of silence; generated in {record['generation_s']:.1f} s"
    )
    if wrong := broken(record):
        return f"NO: {what}: {', '.join(wrong)}"
    return f"it works: {what}"


if __name__ == "__main__":
    main()
