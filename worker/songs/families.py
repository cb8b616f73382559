"""The model families, and what each answers before a model is loaded or a machine is rented.

    family = of("heartmula")           # by name, or by what a model folder holds
    sampling(family, top_k="20")

Does not import torch.
"""

from pathlib import Path

from worker.engine import Family, Sampling

MUSICGEN = Family(
    name="MusicGen",
    engine="worker.musicgen",
    sampling=Sampling(guidance_scale=3.0, top_k=250, temperature=1.0),
    longest_s=3600.0,
    sample_rate=32_000,
    channels=1,
    stride_s=18.0,
    sings=False,
    continues=True,
    ends_early=False,
)
HEARTMULA = Family(
    name="HeartMuLa",
    engine="worker.heartmula",
    sampling=Sampling(guidance_scale=1.5, top_k=50, temperature=1.0),
    # 8,192 positions, of which the shortest prompt takes about ten; 12.5 frames a second.
    longest_s=654.0,
    sample_rate=48_000,
    channels=2,
    stride_s=None,
    sings=True,
    continues=False,
    ends_early=True,
)

HEARTMULA_NAME = "heartmula-3b"
HEARTMULA_REHEARSAL = "heartmula-rehearsal"
# What names a HeartMuLa, and the name that records hold.
HEARTMULA_NAMES = {
    "heartmula": HEARTMULA_NAME,
    HEARTMULA_NAME: HEARTMULA_NAME,
    HEARTMULA_REHEARSAL: HEARTMULA_REHEARSAL,
}


def of(model: str) -> Family:
    """The family of a model as it is given: a name, or a folder."""
    if model in HEARTMULA_NAMES or (Path(model).expanduser() / "gen_config.json").is_file():
        return HEARTMULA
    return MUSICGEN
