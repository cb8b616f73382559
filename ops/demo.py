"""The rehearsal of prompts.txt: a tiny model with random weights makes its songs on this machine, as noise.

There is one for each model family. Needs no network, no settings and no GPU.
"""

from dataclasses import dataclass

from ops import generate, ui
from ops.generate import HourlyCost
from ops.repository import ROOT
from worker.errors import BadInput
from worker.songs.families import HEARTMULA_REHEARSAL
from worker.songs.model_names import REHEARSAL

_EXAMPLE = HourlyCost(0.40, "an example, no machine was rented")


@dataclass(frozen=True)
class Demo:
    """The rehearsal of one family. `folder`: below out/; an output has songs of one model only."""

    folder: str
    after: str


_MUSICGEN = """
These songs are noise: the rehearsal model has random weights. For music:
  inv generate --model facebook/musicgen-small --only dance_test
      on this machine; fetches 2.4 GB once; some minutes for 30 s of music without a GPU.
      MusicGen's weights are licensed CC-BY-NC 4.0: not for commercial use.
  inv check
      shows the plan for your own prompts.txt; docs/prompts.md explains the format."""
_HEARTMULA = """
These songs are noise: the rehearsal model has random weights. For songs with words:
  inv models --get heartmula-3b
      fetches 22.4 GB once. HeartMuLa's weights are licensed Apache-2.0: commercial use is allowed.
  inv generate --model heartmula --only dance_test
      on this machine; wants a GPU of 24 GB or more (on paper, not measured).
  inv check --model heartmula
      shows the plan, and which songs of prompts.txt lack words; docs/prompts.md explains lyrics."""
DEMOS = {
    REHEARSAL: Demo("demo", _MUSICGEN),
    HEARTMULA_REHEARSAL: Demo("demo-heartmula", _HEARTMULA),
}


def run(model: str, hourly_cost_usd: float | None) -> int:
    """Rehearse with this model; -> the worker's exit code. Raises BadInput for any other model than these."""
    if model not in DEMOS:
        known = " or ".join(f"--model {name}" for name in DEMOS)
        raise BadInput(
            f"the demo is for tiny models, not {model!r}; write {known}, "
            "or for music: inv generate --model MODEL"
        )
    demo = DEMOS[model]
    ui.say("rehearsing prompts.txt with a tiny model; the songs will be noise")
    code = generate.run_worker(
        prompts=str(ROOT / "prompts.txt"),
        output=str(ROOT / "out" / demo.folder),
        model=model,
        hourly_cost=_EXAMPLE if hourly_cost_usd is None else HourlyCost(hourly_cost_usd, "HOURLY_COST_USD"),
    )
    if not code:
        ui.say(demo.after)
    return code
