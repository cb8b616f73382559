"""How fast the engine makes music on which device, as bench/ has measured it. Reads bench/results/ only."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import harmonic_mean

from ops.repository import ROOT

RESULTS = ROOT / "bench" / "results"
_FRAMES_PER_S = 50  # of MusicGen's music
# Steps get slower towards a window's end: a song's speed lies between these two.
_CASES = ("songs", "late")


def rates(model: str, results: Path = RESULTS) -> Mapping[str, float]:
    """Seconds of music per second with all slots in use, by the device's name; without loading and saving.

    `model`: as in MUSICGEN_MODEL. Empty where nothing was measured for it.
    """
    size = model.rpartition("/")[2].removeprefix("musicgen-")
    found = {}
    for path in sorted(results.glob(f"{size}-*.json")):
        content = json.loads(path.read_text("utf-8"))
        medians = {
            row["case"]: row["value"]["median"]
            for row in content["rows"]
            if row["case"] in _CASES and row["unit"] == "frames/s" and row["what"].startswith("engine, ")
        }
        devices = {content["measured"][case]["device"] for case in medians}
        if len(medians) == len(_CASES) and len(devices) == 1:
            found[devices.pop()] = harmonic_mean(list(medians.values())) / _FRAMES_PER_S
    return found
