"""What a GPU does with the engine. Every measurement also runs on a CPU, to be rehearsed there."""

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench import allocations, roofline, theirs
from bench.figures import Figure
from bench.gpu.limit import Measurement
from bench.memory import Needs, module_bytes
from bench.models import PROMPT_TOKENS
from bench.timing import Spread, rates, seconds
from worker.amounts import count
from worker.decoding import device
from worker.engine import Abandoned, Sampling, Tokens
from worker.musicgen import Engine, codec
from worker.musicgen.cache import Cache
from worker.musicgen.layers import Shape
from worker.musicgen.pretrained import Pretrained

CASES = ("parity", "speed", "memory", "bound", "host", "decode", "tokens")
FRAME_RATE = 50
# Steps between two waits for the device, as the scheduler has them.
_STEPS_PER_MARK = 8


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    n_songs: int = 32
    n_frames: int = 50
    slots: tuple[int, ...] = (32, 1, 8)
    most_slots: int | None = None  # None: what the engine chooses
    early: int = 64  # columns
    late: int = 1400
    n_steps: int = 30
    repetitions: int = 5
    read_bytes: int = 1 << 31
    decoded_frames: int = 1500
    beside_s: float = 8.0


PRETENDED = Scale(
    n_songs=4,
    n_frames=24,
    slots=(3, 1, 2),
    most_slots=4,
    early=8,
    late=128,
    n_steps=4,
    repetitions=3,
    read_bytes=1 << 24,
    decoded_frames=300,
    beside_s=1.0,
)


class Steps:
    """Steps of all slots that stay at one column, as in the middle of a long list of songs."""

    def __init__(self, engine: Engine, slots: int, column: int):
        self._slots, self._column = slots, column
        engine.slots = slots
        model = engine._model
        shape, where = model.shape, model.placement.device
        with torch.inference_mode():
            self.stepper = engine._empty_stepper(Sampling())
            cache = self.stepper._cache
            for kept in cache.own:
                kept.normal_()  # zeros would take less power, and a GPU would then run faster
            columns = np.zeros((shape.n_codebooks, column + 1), np.int64)
            uniform = np.full((column + 1, shape.n_codebooks), 0.5, np.float32)
            for slot in range(slots):
                self.stepper.set_text(slot, torch.randn(PROMPT_TOKENS, shape.hidden, device=where))
                # It is never started: it computes the same, and stays at its column.
                self.stepper.open(slot, columns, uniform, column)
        self.run(4)  # the first ones capture graphs

    def run(self, n: int) -> None:
        """Make n steps; does not wait for the device."""
        with torch.inference_mode():
            for _ in range(n):
                self.stepper.step(self._column + 1, self._slots)

    def frames_per_s(self, until: Callable[[], bool]) -> float:
        """Make steps until `until()`, as few ahead of the device as the scheduler is."""
        n, started = 0, time.perf_counter()
        before = self.stepper.mark()
        while not until():
            self.run(_STEPS_PER_MARK)
            mark = self.stepper.mark()
            before()
            before, n = mark, n + _STEPS_PER_MARK
        before()
        return n * self._slots / (time.perf_counter() - started)


class Gpu:
    """One model on one device, and what can be measured there."""

    def __init__(self, loaded: Pretrained, where: torch.device, scale: Scale):
        self._loaded, self._where, self._scale = loaded, where, scale
        self._shape = Shape.of(loaded.model.decoder)
        self._ffn: int = loaded.model.decoder.config.ffn_dim
        self._dtype = device.choose_dtype(None, where, self._shape.hidden)
        self.precision = device.dtype_name(self._dtype)
        self._engine: Engine | None = None
        self._engine_precision = ""
        self._step_s: dict[tuple[int, int], float] = {}  # of slots and column, in the usual precision

    def measurements(self) -> list[Measurement]:
        """All of them, the most important first, and those of one precision together."""
        usual, slots = self.precision, self._scale.slots
        most = self._scale.most_slots or 0
        plan = [Measurement("parity", "fp32, greedy", self._parity)]

        def speed(precision: str, n: int) -> Measurement:
            what = f"{precision}, {count(n, 'slot') if n else 'most slots'}"
            return Measurement("speed", what, lambda: self._speed(precision, n))

        def tokens(precision: str) -> Measurement:
            return Measurement("tokens", f"{precision}, across slot counts", lambda: self._tokens(precision))

        plan += [speed(usual, n) for n in (*slots, most)]
        plan += [
            Measurement("memory", f"{usual}, most slots", self._memory),
            Measurement("bound", f"{usual}, share of the bandwidth", self._bound),
            Measurement("host", f"{usual}, share of launching", self._host),
            Measurement("decode", f"{usual}, beside generation", self._decode),
            tokens(usual),
        ]
        if usual != "fp32":
            plan.append(tokens("fp32"))
        if usual != "bf16" and (self._where.type == "cpu" or torch.cuda.is_bf16_supported(False)):
            plan += [speed("bf16", n) for n in (*slots, most)]
        return plan

    def recover(self) -> None:
        """Free what a failed measurement left on the device."""
        if self._engine:
            self._engine.close()
            self._engine = None
        self._loaded.model.to("cpu")
        gc.collect()
        torch.cuda.empty_cache()

    def _of(self, precision: str) -> Engine:
        """The engine in this precision; the one in another is freed."""
        if not self._engine or self._engine_precision != precision:
            self.recover()
            chosen = self._scale.most_slots
            self._engine = Engine(self._loaded, device_name=str(self._where), dtype=precision, slots=chosen)
            self._engine_precision, self._most = precision, self._engine.slots
        return self._engine

    def _parity(self) -> Iterator[Figure]:
        """Greedy tokens in fp32 against transformers' on the same device."""
        n, n_frames = self._scale.n_songs, self._scale.n_frames
        prompts = [f"song number {i}" for i in range(n)]
        engine = self._of("fp32")
        ours = np.stack(engine.tokens(prompts, n_frames / FRAME_RATE, greedy=True))
        self.recover()  # a small card has no room for both
        self._loaded.model.to(self._where)
        expected = theirs.generate(self._loaded, prompts, n_frames)
        self._loaded.model.to("cpu")
        equal = ours == expected
        note = f"{n} songs of {n_frames} frames"
        songs, tokens = equal.all((1, 2)).mean(), equal.mean()
        yield Figure("parity", "songs equal to transformers'", "%", _one(100 * songs), 100.0, note)
        yield Figure("parity", "tokens equal to transformers'", "%", _one(100 * tokens), note=note)

    def _speed(self, precision: str, slots: int) -> Iterator[Figure]:
        """Steps early and late in the window."""
        engine = self._of(precision)
        slots = slots or self._most
        if slots > self._most:
            note = f"does not fit: the most is {self._most}"
            yield Figure("speed", f"{precision}, {count(slots, 'slot')}", "", None, note=note)
            return
        for when, column in (("early", self._scale.early), ("late", self._scale.late)):
            steps, n = Steps(engine, slots, column), self._scale.n_steps
            took = [seconds(lambda: steps.run(n)) for _ in range(self._scale.repetitions)]  # noqa: B023
            spread = Spread.of(rates(n * slots, took))
            if precision == self.precision:
                self._step_s[slots, column] = slots / spread.median
            note = f"{spread.median / FRAME_RATE:.3g} s of audio per second"
            what = f"{precision}, {count(slots, 'slot')}, {when} (column {column})"
            yield Figure("speed", what, "frames/s", spread, note=note)

    def _memory(self) -> Iterator[Figure]:
        """What weights and most slots take, against the arithmetic; and the peak beyond that."""
        self.recover()
        with allocations.of(self._where) as built:
            engine = self._of(self.precision)
            steps = Steps(engine, self._most, self._scale.late)
        parts = (*engine._text.parts, engine._codec.codec)
        on_gpu = self._where.type == "cuda"  # on a CPU they are there already
        beside = module_bytes(parts) if on_gpu else 0
        needed = Needs.of(self._shape, self._ffn, engine._n_columns, self._dtype, beside)
        total = needed.total(self._most)
        what = f"{self.precision}, weights and {self._most} slots"
        yield Figure(
            "memory", what, "GB", _one(built.after / 1e9), note=f"{total / 1e9:.3g} GB by arithmetic"
        )
        yield Figure("memory", f"{what}, of what arithmetic says", "%", _one(100 * built.after / total))
        with allocations.of(self._where) as working, torch.inference_mode():
            steps.run(4)
            steps.stepper.fill(0, 0, self._scale.late)
            engine.decode(self._song())
        note = f"{device.SPARE_BYTES / 1e9:g} GB are spared for it"
        yield Figure(
            "memory", "steps, a fill, decoding: beyond that", "GB", _one(working.peak / 1e9), note=note
        )
        if on_gpu:
            free, whole = torch.cuda.mem_get_info(self._where)
            note = f"of {whole / 1e9:.1f} GB; with the context and what torch has reserved"
            yield Figure("memory", "in use on the card", "GB", _one((whole - free) / 1e9), note=note)

    def _bound(self) -> Iterator[Figure]:
        """The share of the measured bandwidth with which steps read weights, keys and values."""
        bandwidth = roofline.read_bandwidth(self._where, self._scale.read_bytes)
        yield Figure("bound", "memory, read once", "GB/s", _one(bandwidth / 1e9))
        weights = roofline.step_bytes(self._shape, self._ffn, self._dtype)
        for (slots, column), took in sorted(self._step_s.items()):
            n_bytes = weights + slots * Cache.n_bytes(self._shape, column + 1, PROMPT_TOKENS, self._dtype)
            what = f"{self.precision}, share of the bandwidth bound, {count(slots, 'slot')}, column {column}"
            note = f"{n_bytes / 1e9:.3g} GB a step"
            yield Figure("bound", what, "%", _one(100 * n_bytes / took / bandwidth), note=note)

    def _host(self) -> Iterator[Figure]:
        """The host's time for launching steps, as a share of the time that they take."""
        engine = self._of(self.precision)
        for slots in sorted({1, self._most}):
            steps, launching = Steps(engine, slots, self._scale.early), 0.0

            def launch(steps: Steps = steps) -> None:
                nonlocal launching
                launching = seconds_of_host(lambda: steps.run(self._scale.n_steps))

            shares, host = [], []
            seconds(lambda: None)  # waits for the device
            for _ in range(self._scale.repetitions):
                took = seconds(launch)
                shares.append(100 * launching / took)
                host.append(1000 * launching / self._scale.n_steps)
            what = f"{self.precision}, {count(slots, 'slot')}"
            yield Figure("host", f"{what}, launching a step", "ms", Spread.of(host))
            yield Figure("host", f"{what}, launching, of a step's time", "%", Spread.of(shares))

    def _decode(self) -> Iterator[Figure]:
        """Generation alone, decoding alone, and both at once."""
        engine = self._of(self.precision)
        steps = Steps(engine, self._most, self._scale.late)
        alone = steps.frames_per_s(_after(self._scale.beside_s))
        decoded_alone = _decoding(engine, self._song(), _wait(self._scale.beside_s))[1]
        both, decoded = _decoding(
            engine, self._song(), lambda: steps.frames_per_s(_after(self._scale.beside_s))
        )
        what = f"generation, {self.precision}, {self._most} slots"
        yield Figure("decode", f"{what}, alone", "frames/s", _one(alone))
        yield Figure("decode", f"{what}, beside decoding", "frames/s", _one(both))
        yield Figure("decode", "generation, slower by", "%", _one(100 * (1 - both / alone)))
        yield Figure("decode", "audio decoded per second, alone", "s", _one(decoded_alone))
        yield Figure("decode", "audio decoded per second, beside generation", "s", _one(decoded))

    def _tokens(self, precision: str) -> Iterator[Figure]:
        """The same songs with other slot counts, in another order, and once more."""
        engine, n = self._of(precision), self._scale.n_songs
        prompts = [f"song number {i}" for i in range(n)]

        def make(slots: int, order: list[int]) -> list[Tokens]:
            engine.slots = slots
            made = engine.tokens([prompts[i] for i in order], self._scale.n_frames / FRAME_RATE, seeds=order)
            return [made[order.index(i)] for i in range(n)]

        usual = list(range(n))
        counts = sorted({k for k in self._scale.slots if k <= self._most} | {self._most})
        few, across = make(counts[0], usual), 100.0
        for slots in counts[1:]:
            share = _equal(make(slots, usual), few)
            across = min(across, share)
            what = f"{precision}, songs equal with {count(slots, 'slot')} and with {counts[0]}"
            yield Figure("tokens", what, "%", _one(share))
        slots = counts[-2:][0]
        first = make(slots, usual)
        again, other = _equal(make(slots, usual), first), _equal(make(slots, usual[::-1]), first)
        what = f"{precision}, songs equal when made again, {count(slots, 'slot')}"
        yield Figure("tokens", what, "%", _one(again), 100.0)
        what = f"{precision}, songs equal in another order, {count(slots, 'slot')}"
        yield Figure("tokens", what, "%", _one(other), note=f"holds: {promise(across, other, again)}")

    def _song(self) -> Tokens:
        """Random tokens to decode."""
        size = self._shape.n_codebooks, self._scale.decoded_frames
        return np.random.default_rng(0).integers(0, self._shape.vocabulary, size).astype(np.int16)


def promise(across: float, other: float, again: float) -> str:
    """Which promise of docs/engine.md holds, by the percents of songs equal across slot counts, in another
    order, and when made again."""
    if min(across, other, again) == 100:
        return "the same bytes at any slot count"
    if min(other, again) == 100:
        return "the same bytes in any order, at one slot count"
    return "the same bytes for the same songs in the same order" if again == 100 else "none"


def seconds_of_host(act: Callable[[], object]) -> float:
    """Seconds until a call returns, whatever the device has yet to do."""
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def _decoding(engine: Engine, tokens: Tokens, act: Callable[[], float]) -> tuple[float, float]:
    """What `act` returns while another thread decodes, and the seconds of audio decoded a second."""
    chunks, over = 0, threading.Event()

    def go_on() -> bool:
        nonlocal chunks
        chunks += 1
        return not over.is_set()

    def decode() -> None:
        try:
            while True:
                engine.decode(tokens, go_on)
        except Abandoned:
            pass

    with ThreadPoolExecutor(1, thread_name_prefix="decode") as pool:
        started = time.perf_counter()
        decoding = pool.submit(decode)
        try:
            answer = act()
        finally:
            took, n = time.perf_counter() - started, chunks
            over.set()
        decoding.result()  # raises what it raised
    return answer, n * codec.CHUNK_FRAMES / FRAME_RATE / engine.channels / took


def _after(length_s: float) -> Callable[[], bool]:
    """A function that is true after so many seconds."""
    end = time.perf_counter() + length_s
    return lambda: time.perf_counter() > end


def _wait(length_s: float) -> Callable[[], float]:
    def wait() -> float:
        time.sleep(length_s)
        return length_s

    return wait


def _equal(made: list[Tokens], expected: list[Tokens]) -> float:
    """The share of equal songs, in percent."""
    return float(100 * np.mean([np.array_equal(a, b) for a, b in zip(made, expected, strict=True)]))


def _one(value: float | Tensor) -> Spread:
    return Spread.of([float(value)])
