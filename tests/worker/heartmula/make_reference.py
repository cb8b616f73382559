"""What the real heartlib makes of the cases: tokens, prompts, rotations, how it samples -> reference.npz.

Everything but the random numbers is heartlib's own, at commit 3981c52f2cab175c6cef67e4061e92988db1bdf4
(HeartMuLa/heartlib on GitHub, Apache-2.0): its pipeline reads the prompt and makes the frames. heartlib
samples by argmax(p / q) with q exponential. Here the same p is sampled by a given draw u: the first token
at which the cumulated p is over u.

    PYTHONPATH=HEARTLIB/src PYTHON tests/worker/heartmula/make_reference.py [OUT]

PYTHON is an interpreter with heartlib's requirements (its pyproject.toml). With HEARTLIB_PYTHON=PYTHON, and
PYTHONPATH if heartlib is not installed, test_against_heartlib.py runs this anew and compares.
"""

import sys
import tempfile
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torchtune.models import llama3_2
from torchtune.models.llama3_1._position_embeddings import Llama3ScaledRoPE

sys.path.insert(0, str(Path(__file__).parents[3]))
# It saves audio, which there is none of.
sys.modules["torchaudio"] = module_from_spec(ModuleSpec("torchaudio", None))

from heartlib.heartmula import modeling_heartmula as theirs  # noqa: E402
from heartlib.pipelines.music_generation import (  # noqa: E402
    HeartMuLaGenConfig,
    HeartMuLaGenPipeline,
)

from tests.worker.heartmula import cases  # noqa: E402
from worker.models import tiny_heartmula  # noqa: E402
from worker.models.heartmula_config import FLAVOURS  # noqa: E402
from worker.models.heartmula_tree import MULA  # noqa: E402

HERE = Path(__file__).parent
CPU = torch.device("cpu")
N_SAMPLED = 24  # distributions that are kept, of each shape's first drawn song


def teach_flavours():
    """Let heartlib know the tiny flavours: built by the function, and with the constants, of its own."""
    for name, sizes in FLAVOURS.items():
        if name not in theirs.FLAVORS:
            theirs.FLAVORS[name] = lambda sizes=sizes: llama3_2.llama3_2(
                vocab_size=128,
                num_layers=sizes.layers,
                num_heads=sizes.heads,
                num_kv_heads=sizes.kv_heads,
                embed_dim=sizes.width,
                max_seq_len=sizes.positions,
                intermediate_dim=sizes.mlp,
                attn_dropout=0.0,
                norm_eps=1e-5,
                rope_base=500_000,
                scale_factor=32,
            )


def pipeline(folder, tokenizer, audio_eos=cases.NEVER):
    """heartlib's pipeline, which loads the language model when it is asked for frames."""
    generation = tiny_heartmula.GENERATION
    return HeartMuLaGenPipeline(
        heartmula_path=str(folder / MULA),
        heartcodec_path="",
        heartmula_device=CPU,
        heartcodec_device=CPU,
        heartmula_dtype=torch.float32,
        heartcodec_dtype=torch.float32,
        lazy_load=True,
        muq_mulan=None,
        text_tokenizer=Tokenizer.from_file(str(tokenizer)),
        config=HeartMuLaGenConfig(generation.text_bos_id, generation.text_eos_id, audio_eos),
    )


def prompt_of(pipe, tags, lyrics):
    """-> {ids, reference}."""
    inputs = pipe.preprocess({"tags": tags, "lyrics": lyrics}, cfg_scale=1.0)
    assert inputs["pos"][0].tolist() == list(range(inputs["tokens"].shape[1]))
    assert not inputs["tokens"][0, :, :-1].any() and not inputs["muq_embed"].any()
    return {"ids": inputs["tokens"][0, :, -1].numpy(), "reference": np.int64(inputs["muq_idx"][0])}


def song(folder, case, watch=None):
    """heartlib's frames of a song, [codebooks, n]. `watch` is given each distribution."""
    remaining = iter(cases.draws_of(case).flatten().tolist())

    def by_draw(probabilities):
        if watch:
            watch(probabilities)
        cumulated = probabilities.double().cumsum(-1)
        target = next(remaining) * cumulated[:, -1:]
        return (cumulated <= target).sum(-1, keepdim=True).to(torch.int)

    theirs._multinomial_sample_one_no_sync = by_draw
    pipe = pipeline(folder, folder / "tokenizer.json", case.audio_eos)
    with torch.inference_mode():
        inputs = pipe.preprocess({"tags": case.tags, "lyrics": case.lyrics}, cfg_scale=case.guidance)
        made = pipe._forward(
            inputs,
            max_audio_length_ms=(case.n_frames - 1) * 80,  # and one more
            temperature=case.temperature,
            topk=case.top_k,
            cfg_scale=case.guidance,
        )
    return made["frames"].numpy().astype(np.int16)


def distributions(folder, case):
    """Of some tokens of a song: the logits after guidance, and the probabilities that heartlib draws from."""
    logits, probabilities, sample = [], [], theirs.sample_topk

    def watched(given, *how):
        logits.append(given.numpy().copy())
        return sample(given, *how)

    theirs.sample_topk = watched
    song(folder, case, watch=lambda given: probabilities.append(given.numpy().copy()))
    theirs.sample_topk = sample
    assert all(len(each) == 1 for each in logits)
    kept = slice(0, None, len(logits) // N_SAMPLED)
    return {"logits": np.concatenate(logits[kept]), "probabilities": np.concatenate(probabilities[kept])}


def rotation(head, positions):
    """Cosine and sine of each pair of a head, [positions, head / 2, 2]."""
    rope = Llama3ScaledRoPE(dim=head, max_seq_len=8192, base=500_000, scale_factor=32)
    return rope.cache[positions].numpy()


def reference(folder):
    """Everything that is kept, by name."""
    torch.set_num_threads(1)  # for so small a model: more threads wait for each other
    teach_flavours()
    found = {}
    for shape in cases.SHAPES:
        tree = cases.build(folder / shape, shape)
        for name, case in cases.CASES.items():
            if case.shape == shape:
                found[f"tokens/{name}"] = song(tree, case)
        drawn = cases.CASES[f"{shape}-drawn"]
        found |= {f"sampling/{shape}/{key}": array for key, array in distributions(tree, drawn).items()}
    for head in (128, 384):  # of the real models: backbone and depth decoder
        found[f"rotation/{head}"] = rotation(head, cases.POSITIONS)
    for n, tokenizer in enumerate(cases.tokenizers(folder / "rehearsal")):
        pipe = pipeline(folder / "rehearsal", tokenizer)
        for m, (tags, lyrics) in enumerate(cases.TEXTS):
            of_text = prompt_of(pipe, tags, lyrics)
            found |= {f"prompt/{n}/{m}/{key}": array for key, array in of_text.items()}
    return found


if __name__ == "__main__":
    out = Path(sys.argv[1]) if sys.argv[1:] else HERE / "reference.npz"
    with tempfile.TemporaryDirectory() as temporary:
        np.savez_compressed(out, **reference(Path(temporary)))
