"""The model families, and what each answers before a model is loaded or a machine is rented.

    family = of("heartmula")             # by a name, or by what a model folder holds
    refuse_unfit(jobs, family)           # lyrics for one that cannot sing, ...

Does not import torch.
"""

from collections.abc import Iterable
from pathlib import Path

from worker.errors import BadInput
from worker.family import Family, Sampling, Solver
from worker.songs.job import Job

MUSICGEN = Family(
    name="MusicGen",
    engine="worker.musicgen",
    sampling=Sampling(guidance_scale=3.0, top_k=250, temperature=1.0),
    n_tokens=2048,
    longest_s=3600.0,
    sample_rate=32_000,
    channels=1,
    stride_s=18.0,
    sings=False,
    continues=True,
    solver=None,
    ends_early=False,
)
HEARTMULA = Family(
    name="HeartMuLa",
    engine="worker.heartmula",
    sampling=Sampling(guidance_scale=1.5, top_k=50, temperature=1.0),
    n_tokens=8197,
    # 8,192 positions, of which the shortest prompt takes about ten; 12.5 frames a second.
    longest_s=654.0,
    sample_rate=48_000,
    channels=2,
    stride_s=None,
    sings=True,
    continues=False,
    solver=Solver(),
    ends_early=True,
)

HEARTMULA_REHEARSAL = "heartmula-rehearsal"
# The names of a HeartMuLa, each with the one that records hold.
HEARTMULA_NAMES = {
    "heartmula": "heartmula-3b",
    "heartmula-3b": "heartmula-3b",
    HEARTMULA_REHEARSAL: HEARTMULA_REHEARSAL,
}


# Of what a HeartMuLa's folder holds; one of them may be missing.
_HEARTMULAS = ("gen_config.json", "HeartMuLa-oss-3B", "HeartCodec-oss")


def of(model: str) -> Family:
    """The family of a model as it is given: a name, or a folder. What is not known is a MusicGen.

    Raises BadInput for what the system refuses to look for.
    """
    if model in HEARTMULA_NAMES:
        return HEARTMULA
    try:
        folder = Path(model).expanduser()
        is_heartmula = model and any((folder / name).exists() for name in _HEARTMULAS)
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of nobody
        raise BadInput(
            f"model {model} cannot be looked for ({getattr(error, 'strerror', error)}); "
            "give a folder, a Hugging Face id, heartmula or rehearsal"
        ) from None
    return HEARTMULA if is_heartmula else MUSICGEN


def refuse_unfit(jobs: Iterable[Job], family: Family) -> None:
    """Raises BadInput for what the family cannot do: sing, or continue."""
    jobs = list(jobs)
    sung = ", ".join(job.name for job in jobs if "lyrics" in job.options)
    if sung and not family.sings:
        raise BadInput(
            f"{family.name} cannot sing; remove lyrics= from {sung}, "
            "or use a model that sings: --model heartmula, or MUSICGEN_MODEL=heartmula"
        )
    continuing = ", ".join(job.name for job in jobs if "continue" in job.options)
    if continuing and not family.continues:
        raise BadInput(f"{family.name} cannot continue a song; remove continue= from {continuing}")
