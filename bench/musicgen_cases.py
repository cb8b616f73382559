"""MusicGen's benchmark cases. Each yields figures, some with a goal."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import torch

from bench import roofline, theirs
from bench.figures import Figure
from bench.models import PROMPT_TOKENS, SIZES, build
from bench.timing import Spread, interleaved, rates, ratios, seconds
from ops.repository import ROOT
from worker.decoding.device import HALF_CACHE
from worker.engine import Sampling, Song, longest_first
from worker.musicgen import Engine
from worker.musicgen.layers import Shape
from worker.musicgen.stepper import Stepper

GREEDY = Sampling(greedy=True)
FRAME_RATE = 50
LATE = 1000
# Steps of a 300 s song: its frames, and three more for each of its 16 windows.
STEPS_300_S = 15_048


class Bench:
    """One model on one device, and the cases that can run on it."""

    SIZES = tuple(SIZES)
    CASES = ("songs", "mixed", "late", "bound", "few", "half", "codec", "memory", "busy")
    # The memory of decoding an hour of audio takes as long as all others together.
    USUAL = tuple(case for case in CASES if case != "memory")

    def __init__(self, size: str | None, device: str | None, repetitions: int, frames: int, slots: int):
        size = size or "small"
        self.model, self.kept_as = f"musicgen-{size}", size
        self.size, self.repetitions, self.frames, self.slots = size, repetitions, frames, slots
        self._loaded = build(size)
        self._engine = Engine(self._loaded, device_name=device, dtype="fp32", slots=slots)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._loaded.model.to(self.device)
        self._shape = Shape.of(self._loaded.model.decoder)

    def songs(self) -> Iterator[Figure]:
        """Songs of one length: the engine against transformers one by one, batched, static cache."""
        n, frames = self.slots, self.frames
        prompts = [f"song number {i}" for i in range(n)]
        made: dict[str, np.ndarray] = {}

        def engine() -> None:
            made["engine"] = np.stack(self._engine.tokens(prompts, frames / FRAME_RATE, greedy=True))

        def batched() -> None:
            made["transformers"] = theirs.generate(self._loaded, prompts, frames)

        sides = {
            "one by one": lambda: theirs.generate(self._loaded, prompts[:1], frames),
            "batched": batched,
            "static cache": lambda: theirs.generate(
                self._loaded, prompts, frames, cache_implementation="static"
            ),
            "engine": engine,
        }
        took = interleaved(sides, self.repetitions, self._briefly(sides))
        rate = {name: rates((1 if name == "one by one" else n) * frames, took[name]) for name in sides}
        equal = np.array_equal(made["engine"], made["transformers"])
        exact = f"tokens equal to transformers': {'all' if equal else 'NOT all'}"
        for name in sides:
            who = f"engine, fp32, {n} slots" if name == "engine" else f"transformers, {name}"
            yield Figure(
                "songs", who, "frames/s", Spread.of(rate[name]), note=exact if name == "engine" else ""
            )
        for name, goal in (("one by one", 24.0), ("batched", 2.8), ("static cache", None)):
            ratio = Spread.of(ratios(rate["engine"], rate[name]))
            yield Figure("songs", f"engine against transformers {name}", "x", ratio, goal)
        audio = Spread.of([r / FRAME_RATE for r in rate["engine"]])
        yield Figure("songs", "engine, seconds of audio per second, early in the window", "x", audio)

    def mixed(self) -> Iterator[Figure]:
        """A list of 32 songs of mixed lengths, end to end, against batches of 16 in list order."""
        rng = random.Random(0)
        # 1 to 8 s at an eighth.
        lengths = [rng.randint(6, 50) for _ in range(32)]
        prompts = [f"song number {i}" for i in range(32)]

        def batches() -> None:
            for start in range(0, 32, 16):
                theirs.generate(self._loaded, prompts[start : start + 16], max(lengths[start : start + 16]))

        def engine() -> None:
            self._engine.tokens(prompts, [n / FRAME_RATE for n in lengths], greedy=True)

        sides = {"transformers": batches, "engine": engine}
        took = interleaved(sides, self.repetitions, self._briefly(sides))
        ratio = Spread.of(ratios(rates(1, took["engine"]), rates(1, took["transformers"])))
        note = f"32 songs of 6 to 50 frames (1 to 8 s at an eighth), {sum(lengths)} in all, seed 0"
        yield Figure(
            "mixed", f"engine, fp32, {self.slots} slots, against batches of 16", "x", ratio, 4.0, note
        )

    def late(self) -> Iterator[Figure]:
        """One step near column 1000 of the window."""
        step = theirs.LateStep(self._loaded, LATE, PROMPT_TOKENS)
        sides: dict[str, Callable[[], object]] = {"one by one": lambda: [step() for _ in range(4)]}
        engines = {"fp32": self._engine}
        if self.device.type == "cpu":
            engines[HALF_CACHE] = Engine(self._loaded, device_name="cpu", dtype=HALF_CACHE, slots=self.slots)
        sides |= {name: partial(_steps, self._late_stepper(engine)) for name, engine in engines.items()}
        for side in sides.values():
            side()
        took = interleaved(sides, self.repetitions)
        slow, *_ = rated = [
            rates(4 if name == "one by one" else 4 * self.slots, took[name]) for name in sides
        ]
        fast, half = rated[1], rated[2:]
        yield Figure("late", "transformers, one by one, column 1000", "frames/s", Spread.of(slow))
        yield Figure("late", f"engine, fp32, {self.slots} slots, column 1000", "frames/s", Spread.of(fast))
        yield Figure(
            "late", "engine against transformers one by one", "x", Spread.of(ratios(fast, slow)), 15.0
        )
        for rate in half:
            what = f"engine, {HALF_CACHE} (not exact), {self.slots} slots, column 1000"
            yield Figure("late", what, "frames/s", Spread.of(rate))
            ratio = Spread.of(ratios(rate, slow))
            yield Figure("late", f"engine, {HALF_CACHE}, against transformers one by one", "x", ratio)
        hours = Spread.of([rate * 3600 / STEPS_300_S for rate in fast])
        yield Figure("late", "300 s songs per hour, at this column's speed", "songs/h", hours)

    def bound(self) -> Iterator[Figure]:
        """The share of the measured compute bound that a step with 32 slots reaches."""
        slots = 32
        self._engine.slots = slots
        stepper = self._stepper()
        ffn = SIZES[self.size][3]
        needed = roofline.step_flops(self._shape, ffn, slots)

        def engine() -> None:
            for _ in range(4):
                stepper.step(self.frames, slots)

        engine()
        peak = roofline.gemm_flops(self.device, torch.float32)
        took = [seconds(engine) for _ in range(self.repetitions)]
        self._engine.slots = self.slots
        yield Figure("bound", "fp32 matrix product 2048³", "GFLOP/s", Spread.of([peak / 1e9]))
        bandwidth = roofline.read_bandwidth(self.device)
        yield Figure("bound", "memory, read once", "GB/s", Spread.of([bandwidth / 1e9]))
        share = Spread.of([100 * 4 * needed / t / peak for t in took])
        note = f"{needed / 1e9:.1f} GFLOP in the linear layers of a step"
        yield Figure("bound", "share of the fp32 compute bound, 32 slots", "%", share, 70.0, note)
        yield Figure("bound", "engine, fp32, 32 slots", "frames/s", Spread.of(rates(4 * slots, took)))

    def few(self) -> Iterator[Figure]:
        """Steps with few songs in progress, against the time in which memory is read."""
        stepper = self._stepper()
        needed = roofline.step_bytes(self._shape, SIZES[self.size][3], torch.float32)
        for n_slots in (n for n in (1, 2, 4, 8) if n <= stepper.slots):

            def engine(n_slots: int = n_slots) -> None:
                for _ in range(4):
                    stepper.step(self.frames, n_slots)

            engine()
            shares, took = roofline.read_shares(self.device, 4 * needed, engine, self.repetitions)
            frames = rates(4 * n_slots, took)
            what = f"{n_slots} of {stepper.slots} slots in use"
            yield Figure("few", f"engine, fp32, {what}", "frames/s", Spread.of(frames))
            note = f"{needed / 1e9:.2f} GB of weights a step"
            goal = 80.0 if n_slots == 1 else None
            yield Figure("few", f"share of the bandwidth bound, {what}", "%", Spread.of(shares), goal, note)

    def half(self) -> Iterator[Figure]:
        """bf16, on a CPU with native bf16."""
        if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            return
        engine = Engine(self._loaded, device_name="cpu", dtype="bf16", slots=32)
        prompts = [f"song number {i}" for i in range(32)]
        length = self.frames / FRAME_RATE
        engine.tokens(prompts, length, greedy=True)
        sides = {
            "one by one": lambda: theirs.generate(self._loaded, prompts[:1], self.frames),
            "engine": lambda: engine.tokens(prompts, length, greedy=True),
        }
        took = interleaved(sides, self.repetitions)
        fast = rates(32 * self.frames, took["engine"])
        ratio = Spread.of(ratios(fast, rates(self.frames, took["one by one"])))
        yield Figure("half", "engine, bf16, 32 slots", "frames/s", Spread.of(fast))
        yield Figure("half", "engine, bf16, against transformers fp32 one by one", "x", ratio, 45.0)

    def codec(self) -> Iterator[Figure]:
        """EnCodec decoding of 30 s, at once and in chunks."""
        tokens = np.random.default_rng(0).integers(0, 2048, (4, 1500)).astype(np.int16)
        codes = torch.from_numpy(tokens.astype(np.int64))[None, None].to(self.device)
        encodec = self._loaded.model.audio_encoder

        def at_once() -> None:
            with torch.inference_mode():
                encodec.decode(codes, [None])

        took = interleaved(
            {"at once": at_once, "chunked": lambda: self._engine.decode(tokens)}, self.repetitions
        )
        for name, times in took.items():
            yield Figure("codec", f"30 s of audio, {name}", "s", Spread.of(times))

    def memory(self) -> Iterator[Figure]:
        """What decoding a song takes beside its audio, however long the song is."""
        # 300 s at once would take 11 GB; 60 s show how that grows.
        for name, length_s in (("chunked", 60), ("chunked", 300), ("chunked", 3600), ("at once", 60)):
            took, gigabytes = _codec_process(name, length_s * FRAME_RATE)
            goal = "; at most 0.6" if name == "chunked" else ""
            note = f"allocated at the peak, decoded in {took:.0f} s{goal}"
            what = f"{length_s} s of audio, {name}, memory beside the audio"
            yield Figure("memory", what, "GB", Spread.of([gigabytes]), note=note)

    def busy(self) -> Iterator[Figure]:
        """How full the slots are: 40 songs of 10 to 300 s on 8 slots, the rehearsal model."""
        rng = random.Random(0)
        lengths = [rng.uniform(10, 300) for _ in range(40)]
        n_threads = torch.get_num_threads()
        engine = Engine.load("rehearsal", device=str(self.device), slots=8)
        songs = [Song(str(i), f"song {i}", round(s, 2), i) for i, s in enumerate(lengths)]
        took = seconds(lambda: [None for _ in engine.stream(longest_first(songs), Sampling())])
        torch.set_num_threads(n_threads)
        used = engine.occupancy
        held, running = 100 * used.held / used.offered, 100 * used.running / used.offered
        note = f"{used.steps} steps, {sum(lengths) / took:.0f} s of audio per second (tiny model)"
        yield Figure("busy", "slots with a song", "%", Spread.of([held]), 95.0, note)
        yield Figure("busy", "slots moving a column, filling left out", "%", Spread.of([running]))

    def _briefly(self, sides: Iterable[str]) -> dict[str, Callable[[], object]]:
        """For each side, a song of 4 frames."""

        def engine() -> object:
            return self._engine.tokens(["song"], 4 / FRAME_RATE, greedy=True)

        def transformers() -> object:
            return theirs.generate(self._loaded, ["song"], 4)

        return {name: engine if name == "engine" else transformers for name in sides}

    def _stepper(self, engine: Engine | None = None) -> Stepper:
        with torch.inference_mode():
            stepper = (engine or self._engine)._empty_stepper(GREEDY)
            for slot in range(stepper.slots):
                stepper.set_text(slot, torch.randn(PROMPT_TOKENS, self._shape.hidden, device=self.device))
                stepper.start(slot)
        return _Inference(stepper)  # type: ignore[return-value]

    def _late_stepper(self, engine: Engine) -> Stepper:
        stepper = self._stepper(engine)
        with torch.inference_mode():
            for kept in stepper._cache.own:
                kept[..., : LATE + 128, :].zero_()  # allocate the memory now, not while timing
            stepper._position[:] = LATE
        return stepper


def _steps(stepper: Stepper) -> None:
    """Four steps of all slots near column LATE."""
    for _ in range(4):
        stepper.step(LATE + 64, stepper.slots)


class _Inference:
    """A stepper whose steps run in inference mode, as the engine runs them."""

    def __init__(self, stepper: Stepper):
        self._stepper = stepper

    def __getattr__(self, name: str) -> object:
        return getattr(self._stepper, name)

    def step(self, n_reached: int, n_slots: int) -> None:
        with torch.inference_mode():
            self._stepper.step(n_reached, n_slots)


def _codec_process(how: str, n_frames: int) -> tuple[float, float]:
    """Seconds, and GB at the peak beside the audio, measured in a separate process."""
    answer = subprocess.run(
        [sys.executable, "-m", "bench.codec_memory", how, str(n_frames)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return float(answer[-2]), float(answer[-1])
