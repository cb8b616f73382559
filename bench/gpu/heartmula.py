"""What a GPU does with HeartMuLa: steps of its language model, and segments of its codec, by random weights.

Every measurement also runs on a CPU with tiny shapes, to be rehearsed there.
"""

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.figures import Figure
from bench.gpu.limit import Measurement
from bench.timing import Spread, rates, seconds
from worker.amounts import count
from worker.decoding import device
from worker.heartmula.codec import HOP, SAMPLE_RATE, SEGMENTS, Codec, Segments
from worker.heartmula.codec_weights import CodecWeights
from worker.heartmula.engine import SOLVER
from worker.heartmula.layers import Placement
from worker.heartmula.model import SAMPLING, Model
from worker.heartmula.prompt import FRAMES_PER_S, Prompt
from worker.heartmula.stepper import Stepper
from worker.heartmula.weights import Weights
from worker.models import tiny_heartmula
from worker.models.heartmula_config import CodecConfig, MulaConfig
from worker.models.heartmula_shapes import Shapes, codec_shapes, mula_shapes

NAME = "heartmula-3b"
CASES = ("graphs", "speed", "decode")
_PROMPT = Prompt((0,) * 300, 20)


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    mula: MulaConfig
    codec: CodecConfig
    segments: Segments
    slots: tuple[int, ...] = (32, 1, 8)
    early: int = 512  # positions
    late: int = 2560  # of a song of three minutes
    n_steps: int = 30
    repetitions: int = 5
    at_once: tuple[int, ...] = (1, 4)


FULL = Scale(MulaConfig(), CodecConfig(), SEGMENTS)
PRETENDED = Scale(
    tiny_heartmula.MULA_CONFIG,
    tiny_heartmula.CODEC_CONFIG,
    Segments(n_frames=26, hop=20),
    slots=(3, 1),
    early=310,
    late=330,
    n_steps=4,
    repetitions=2,
    at_once=(1, 2),
)


class RandomWeights(Weights):
    """Weights of these shapes in place of a checkpoint's, made when they are asked for."""

    def __init__(self, shapes: Shapes, where: torch.device, dtype: torch.dtype):
        self._shapes, self._where, self._dtype = shapes, where, dtype

    def __getitem__(self, name: str) -> Tensor:
        """As large as keeps a product about as large as what it multiplies."""
        shape = self._shapes[name]
        return torch.randn(shape, device=self._where, dtype=self._dtype) / math.sqrt(math.prod(shape[1:]))

    get_tensor = __getitem__  # as a file of the codec's is asked


class HeartMula:
    """The model on one device, and what can be measured there."""

    def __init__(self, where: torch.device, scale: Scale):
        self._where, self._scale = where, scale
        width = scale.mula.backbone.width
        self._dtype = device.choose_dtype(None, where, width)
        if n_threads := device.threads_for(where, width):
            torch.set_num_threads(n_threads)
        self.precision = device.dtype_name(self._dtype)
        self._model: Model | None = None

    def measurements(self) -> list[Measurement]:
        """All of them, the most important first."""

        def speed(slots: int) -> Measurement:
            what = f"{self.precision}, {count(slots, 'slot')}"
            return Measurement("speed", what, lambda: self._speed(slots))

        first, *others = self._scale.slots
        return [
            speed(first),
            Measurement("graphs", f"{self.precision}, {count(first, 'slot')}", lambda: self._graphs(first)),
            *map(speed, others),
            Measurement("decode", "segments of several songs at once", self._decode),
        ]

    def recover(self) -> None:
        """Free what a failed measurement left on the device."""
        self._model = None
        gc.collect()
        torch.cuda.empty_cache()

    def _stepper(self, slots: int, position: int) -> Stepper:
        """All slots at one position. They are never started: they compute the same, and stay there."""
        with torch.inference_mode():
            if not self._model:
                weights = RandomWeights(mula_shapes(self._scale.mula), self._where, self._dtype)
                n_codes = self._scale.codec.codebook_size
                self._model = Model(self._scale.mula, n_codes, weights, Placement(self._where, self._dtype))
            stepper = Stepper(self._model, slots, 0, self._scale.codec.codebook_size)
            stepper.reset(SAMPLING)
            stepper.widen(position + 1)
            n_made = position + 1 - _PROMPT.n_positions
            frames = np.zeros((self._scale.mula.audio_num_codebooks, n_made), np.int16)
            uniform = np.full((n_made + 1, len(frames)), 0.5, np.float32)
            for slot in range(slots):
                stepper.set_text(slot, _PROMPT)
                stepper.open(slot, frames, uniform)
            for kept in stepper._cache.layers:
                kept.normal_()  # zeros would take less power, and a GPU would then run faster
        return stepper

    def _frames_per_s(self, slots: int, position: int, *, by_graphs: bool = True) -> Spread:
        stepper, n = self._stepper(slots, position), self._scale.n_steps

        def steps() -> None:
            for _ in range(n):
                if by_graphs:
                    stepper.step(position + 1, slots)
                else:
                    stepper._advance(stepper.n_columns, slots)

        with torch.inference_mode():
            steps()
            took = [seconds(steps) for _ in range(self._scale.repetitions)]
        return Spread.of(rates(n * slots, took))

    def _speed(self, slots: int) -> Iterator[Figure]:
        """Steps early and late in a song."""
        for when, position in (("early", self._scale.early), ("late", self._scale.late)):
            spread = self._frames_per_s(slots, position)
            note = f"{spread.median / FRAMES_PER_S:.3g} s of audio per second"
            what = f"{self.precision}, {count(slots, 'slot')}, {when} (position {position})"
            yield Figure("speed", what, "frames/s", spread, note=note)

    def _graphs(self, slots: int) -> Iterator[Figure]:
        """What capturing the graphs takes, and steps without them."""
        position = self._scale.late
        taken = seconds(lambda: self._stepper(slots, position))
        again = seconds(lambda: self._stepper(slots, position))
        what = f"{self.precision}, {count(slots, 'slot')}"
        note = f"{again:.3g} s once more; with the cache for {position + 1} positions"
        yield Figure("graphs", f"{what}, all captured", "s", Spread.of([taken]), note=note)
        spread = self._frames_per_s(slots, position, by_graphs=False)
        yield Figure("graphs", f"{what}, steps without graphs (position {position})", "frames/s", spread)

    def _decode(self) -> Iterator[Figure]:
        """Segments of so many songs solved at once, each the first of its song."""
        self.recover()
        scale = self._scale
        weights = RandomWeights(codec_shapes(scale.codec), torch.device("cpu"), torch.float32)
        files = dict.fromkeys(codec_shapes(scale.codec), weights)
        codec = Codec(CodecWeights(files), scale.codec, self._where, SOLVER, scale.segments)
        n_songs = max(scale.at_once)
        songs = [(tokens, codec.noise(seed)) for seed, tokens in enumerate(self._songs(n_songs))]
        made_s = n_songs * scale.segments.n_frames * HOP / SAMPLE_RATE
        for at_once in scale.at_once:
            codec.at_once = at_once
            took = [seconds(lambda: list(codec.decode_songs(songs))) for _ in range(scale.repetitions)]
            what = f"fp32, audio decoded per second, {count(at_once, 'song')} at once"
            yield Figure("decode", what, "s", Spread.of(rates(made_s, took)))

    def _songs(self, n: int) -> NDArray[np.int16]:
        """Random tokens of n songs of a segment each."""
        shape = (n, self._scale.codec.num_quantizers, self._scale.segments.n_frames)
        return np.random.default_rng(0).integers(0, self._scale.codec.codebook_size, shape, np.int16)
