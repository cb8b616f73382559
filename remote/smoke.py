"""One short song by command line, and what it sounds like in numbers: does this model work on this machine?

    python remote/smoke.py MODEL

Runs the worker as any run does, on a box with the settings of worker.env, into a temporary folder that is
removed. Its progress goes to stdout, without prices and places; the last line says what was heard. Refuses
to disturb a run on this box. Exit codes: 0 it works; 1 the song is silent, short or broken, or a run is on;
75 stopped; else the worker's. Standard library only.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SECONDS = 5
# Tags, which a model that sings wants, and any other takes; the words are only for one that sings.
PROMPT = "pop, piano, female vocal, happy"
LYRICS = "[verse]\nThe morning light is on the sea\nand every wave is calling me\n"
# How the worker's last lines begin: a song's price, and a summary of a folder that is about to go.
_ENDING = ("made ", "run ")
# Of the quality columns' flags, those of a song that nobody would keep.
_BROKEN = {"silent", "short", "not_finite"}


def main() -> None:
    """Make the song, print what it is, and end with the exit code."""
    if len(sys.argv) != 2:
        sys.exit("error: write: smoke.py MODEL")
    model, env = sys.argv[1], _environment()
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        code = _make(model, Path(folder), env)
        if code:
            sys.exit(code)
        (record,) = (Path(folder) / "out" / "records").glob("*.json")
        found = json.loads(record.read_text("utf-8"))
    print(heard(found))
    sys.exit(bool(broken(found)))


def _environment() -> dict[str, str]:
    """What a worker has on this machine. Ends with one line where a run is on."""
    if "MUSICGEN_PLATFORM" not in os.environ:  # set by env.sh
        return dict(os.environ)
    import check  # here: it is for boxes alone

    try:
        env = check.box_environment()
    except subprocess.CalledProcessError:
        sys.exit("error: the settings of this box cannot be read; run the install phase again")
    if check.run_is_on(env):
        sys.exit("error: a run is on, and both would lack memory; wait for its end, or stop it (fab stop)")
    return env


def _make(model: str, folder: Path, env: Mapping[str, str]) -> int:
    """Run the worker on a list of one song; -> its exit code."""
    prompts = folder / "prompts.txt"
    prompts.write_text(f"{PROMPT} ; {SECONDS} ; smoke\n", "utf-8")
    (folder / "lyrics").mkdir()  # read by the song's name if the model sings
    (folder / "lyrics" / "smoke.txt").write_text(LYRICS, "utf-8")
    output = folder / "out"
    argv = [sys.executable, "-m", "worker", f"--prompts={prompts}", f"--model={model}", f"--output={output}"]
    release, ending = Path(__file__).resolve().parents[1], list[str]()
    with subprocess.Popen(
        argv, cwd=release, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as process:
        for line in process.stdout or ():
            if ending or line.startswith(_ENDING):
                ending.append(line)
            else:
                print(line, end="", flush=True)
    if process.returncode:
        print("".join(line for line in ending if str(folder) not in line), end="", flush=True)
    return process.returncode


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
    return f"it works, so this environment is valid: {what}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("error: stopped; nothing is kept of it", file=sys.stderr)
        sys.exit(75)
