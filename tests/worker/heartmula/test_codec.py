"""A song's audio is heartlib's, and depends on its tokens and its seed alone.

heartlib's is in codec_reference.npz, made by make_codec_reference.py. Where HEARTLIB_PYTHON names an
interpreter that has heartlib, it is also made anew.
"""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.worker.heartmula import codecs
from worker.engine import Abandoned, Solver
from worker.errors import BadInput
from worker.heartmula.codec import Codec, Segments
from worker.heartmula.codec_weights import CodecWeights
from worker.models import tiny_heartmula
from worker.models.heartmula_tree import check

HERE = Path(__file__).parent
CPU = torch.device("cpu")
QUICK, QUARTER = Solver(steps=2), Segments(n_frames=93, hop=80)

pytestmark = pytest.mark.xdist_group("heartcodec")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)  # so small a model is slower with more
    folder = tmp_path_factory.mktemp("codecs")
    for name in codecs.CONFIGS:
        codecs.build(folder / name, name)
    return folder


@pytest.fixture(scope="module")
def load(folder):
    def load(config="small", solver=QUICK, segments=QUARTER, path=None):
        weights = CodecWeights.open([path or folder / config / "model.safetensors"])
        return Codec(weights, codecs.CONFIGS[config], CPU, solver, segments)

    return load


@pytest.fixture(scope="module")
def codec(load):
    return load()


@pytest.fixture(scope="module", params=["kept", *["living"] * ("HEARTLIB_PYTHON" in os.environ)])
def reference(request, tmp_path_factory):
    file = HERE / "codec_reference.npz"
    if request.param == "living":
        file = tmp_path_factory.mktemp("heartlib") / "codec_reference.npz"
        program = [os.environ["HEARTLIB_PYTHON"], str(HERE / "make_codec_reference.py"), str(file)]
        subprocess.run(program, check=True)
    return dict(np.load(file))


class Recorded:
    """A codec's flow that keeps the latents it makes.

    Where a latent lies so near to the middle of two levels that a last bit decides between them, heartlib's
    is taken: the sound would differ for seconds, and rightly so.
    """

    def __init__(self, flow, undecided, theirs):
        self._flow, self._undecided, self._theirs = flow, undecided, theirs
        self.latents = []

    def __call__(self, *arguments):
        latents = self._flow(*arguments)
        self.latents.append(latents.clone())
        first = (len(self.latents) - 1) * latents.numel()
        mine = (self._undecided >= first) & (self._undecided < first + latents.numel())
        latents.view(-1)[self._undecided[mine] - first] = self._theirs[mine]
        return latents


@pytest.mark.parametrize("case", codecs.CASES, ids=lambda case: case.name)
def test_a_song_is_the_one_that_heartlib_decodes(load, reference, case):
    theirs = {key: reference[f"{case.name}/{key}"] for key in KEPT}
    codec = load(
        case.config,
        Solver(case.steps, case.guidance),
        Segments(case.segment, case.segment // 93 * 80),
    )
    undecided = torch.from_numpy(theirs["undecided"].astype(np.int64))
    codec.flow = Recorded(codec.flow, undecided, torch.from_numpy(theirs["undecided_latents"]))
    tokens = codecs.tokens(case.config, case.n_frames)
    [(_, audio)] = codec.decode_songs([(tokens, lambda segment: codecs.noise(segment, case.segment))])

    latents = torch.cat(codec.flow.latents).numpy().ravel()
    assert np.abs(latents[::499] - theirs["latents"]).max() < 1e-5 * np.abs(theirs["latents"]).max()
    assert np.abs(latents[theirs["undecided"]] - theirs["undecided_latents"]).max() < 2e-5
    assert len(audio) == theirs["n_samples"]
    assert np.abs(audio.ravel()[::499] - theirs["samples"]).max() < 2e-6 * theirs["peak"]
    magnitudes = np.abs(audio).reshape(-1, 3840, 2).mean(1)
    assert np.abs(magnitudes - theirs["magnitudes"]).max() < 2e-6 * theirs["peak"]


KEPT = ("n_samples", "peak", "samples", "magnitudes", "latents", "undecided", "undecided_latents")


@pytest.mark.parametrize("n_frames", [0, 1, 29, 93, 106, 186])
def test_a_song_is_3840_stereo_samples_a_frame_of_float32(codec, n_frames):
    # heartlib loses a sample at 29, and at 186 frames the last 13: of segments of 93, 80 apart.
    audio = codec.decode(codecs.tokens("small", n_frames), seed=1)
    assert (audio.dtype, audio.shape) == (np.float32, (n_frames * 3840, 2))
    assert np.isfinite(audio).all()
    assert n_frames == 0 or np.abs(audio[-3840:]).max() > 0.01


def test_songs_decoded_side_by_side_are_to_the_byte_those_decoded_alone(codec):
    songs = [(codecs.tokens("small", n), codec.noise(seed)) for seed, n in enumerate([94, 0, 5])]
    beside = dict(codec.decode_songs(iter(songs)))
    assert sorted(beside) == [0, 1, 2]
    for seed, (tokens, _) in enumerate(songs):
        assert np.array_equal(beside[seed], codec.decode(tokens, seed))


def test_songs_solved_in_one_batch_get_the_latents_that_each_gets_alone(load):
    # Not to the byte: the products of more rows may be rounded in another way. So the latents are
    # compared, before they are rounded to their levels.
    def latents(songs, at_once):
        codec = load(segments=QUARTER)
        codec.at_once = at_once
        nothing = torch.empty(0, dtype=torch.int64)
        codec.flow = Recorded(codec.flow, nothing, torch.empty(0))
        n_samples = {number: len(audio) for number, audio in codec.decode_songs(songs)}
        return codec.flow.latents, n_samples

    songs = [(codecs.tokens("small", n), lambda k, n=n: codecs.noise(k, 93) * n / 100) for n in (94, 40, 93)]
    (first, second), n_samples = latents(songs, at_once=2)
    alone = [latents([song], at_once=1)[0] for song in songs]
    assert n_samples == {number: tokens.shape[1] * 3840 for number, (tokens, _) in enumerate(songs)}
    # The third song takes the second's place beside the second segment of the first.
    expected = torch.cat([alone[0][0], alone[1][0], alone[0][1], alone[2][0]])
    assert (torch.cat([first, second]) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_a_codec_that_is_moved_to_the_cpu_makes_the_same_audio(codec, folder):
    weights = CodecWeights.open([folder / "small" / "model.safetensors"])
    # meta: as another device is, without numbers to begin with
    elsewhere = Codec(weights, codecs.CONFIGS["small"], torch.device("meta"), QUICK, QUARTER)
    assert {elsewhere.device.type, codec.device.type} == {"meta", "cpu"}
    moved = elsewhere.to("cpu")
    tokens = codecs.tokens("small", 94)
    assert np.array_equal(moved.decode(tokens, 1), codec.decode(tokens, 1))


def test_the_same_seed_gives_the_same_song_and_another_seed_another(codec):
    tokens = codecs.tokens("small", 94)
    song, again, other = (codec.decode(tokens, seed) for seed in (7, 7, 8))
    assert np.array_equal(song, again)
    assert np.abs(song - other).max() > 1


@pytest.mark.parametrize("codebook", range(8))
def test_audio_depends_on_every_codebook(codec, codebook):
    tokens = codecs.tokens("small", 2)
    changed = tokens.copy()
    changed[codebook, 1] = (changed[codebook, 1] + 1) % 64
    assert np.abs(codec.decode(tokens, 1) - codec.decode(changed, 1)).max() > 0.1


@pytest.mark.parametrize("calls", [0, 1, 4, 8])
def test_decoding_ends_at_the_next_step_or_piece_once_it_is_not_to_go_on(codec, calls):
    asked = []

    def go_on():
        asked.append(True)
        return len(asked) <= calls

    with pytest.raises(Abandoned):
        codec.decode(codecs.tokens("small", 180), 1, go_on)
    assert len(asked) == calls + 1


@pytest.mark.parametrize("token", [-1, 64, 8192])
def test_a_token_that_is_no_code_is_refused_in_one_line(codec, token):
    tokens = codecs.tokens("small", 40)
    tokens[3, 17] = token
    with pytest.raises(BadInput) as refused:
        codec.decode(tokens, 1)
    assert str(refused.value) == (
        f"token {token} (codebook 3, frame 17) is not one of the codec's codes 0 to 63; "
        "generate the song again"
    )


def test_tokens_of_another_number_of_codebooks_are_refused(codec):
    with pytest.raises(BadInput, match=r"^tokens of the shape \[4, 40\] are not 8 codebooks of frames; "):
        codec.decode(codecs.tokens("small", 40)[:4], 1)


def test_only_what_decoding_needs_is_read(load, codec, folder, tmp_path):
    weights = load_file(folder / "small" / "model.safetensors")
    unneeded = ("scalar_model.encoder", "cluster_size", "embed_avg", "initted", "project_in", "zero_cond")
    needed = {name: each for name, each in weights.items() if not any(part in name for part in unneeded)}
    save_file(needed, tmp_path / "model.safetensors")
    tokens = codecs.tokens("small", 3)
    less = load(path=tmp_path / "model.safetensors")
    assert np.array_equal(less.decode(tokens, 1), codec.decode(tokens, 1))


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("flag", [(), (1,)])
def test_a_checked_tree_is_loaded_however_its_weights_are_stored(tmp_path, shards, flag):
    tiny_heartmula.build(tmp_path, shards=shards, flag=flag)
    codec = Codec.load(check(tmp_path), CPU, QUICK)
    audio = codec.decode(codecs.tokens("small", 2), 1)
    assert audio.shape == (7680, 2)
    assert audio.std() > 0.001
