"""HeartMuLa's benchmark cases. Each yields figures, some with a goal."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from bench import roofline
from bench.figures import Figure
from bench.heartmula_models import SIZES, built
from bench.plain_heartmula import PlainLoop
from bench.timing import Spread, interleaved, now, rates, ratios, seconds
from worker.amounts import count
from worker.decoding import device as devices
from worker.engine import Finished, Sampling, Song, Tokens
from worker.family import Solver
from worker.heartmula import Engine, codec
from worker.heartmula.model import SAMPLING
from worker.heartmula.prompt import FRAMES_PER_S, Prompt, Prompter

GREEDY = Sampling(guidance_scale=SAMPLING.guidance_scale, greedy=True)
# Positions: at the beginning of a song, and two minutes into it.
EARLY, LATE = 128, 1500
# Bytes of lyrics. A short song has a few positions before its frames, as a song of minutes has hundreds.
FEW, MANY = 2, 500


class Bench:
    """One model on one device, and the cases that can run on it.

    In fp32 on a CPU; on a GPU in bf16, as heartlib.
    """

    SIZES = tuple(SIZES)
    CASES = USUAL = ("songs", "late", "bound", "prefill", "codec")

    def __init__(self, size: str | None, device: str | None, repetitions: int, frames: int, slots: int):
        self.device = devices.choose_device(device)
        on_cpu = self.device.type == "cpu"
        size = size or ("tenth" if on_cpu else "3B")
        self.model = self.kept_as = f"heartmula-{size}"
        self._repetitions, self._frames, self._slots = repetitions, frames, slots
        self._dtype = torch.float32 if on_cpu else torch.bfloat16
        self._precision = devices.dtype_name(self._dtype)
        self._config, self._n_codes = SIZES[size].mula, SIZES[size].codec.codebook_size
        with built(size) as loaded:
            where = str(self.device)
            self._engine = Engine(loaded, device_name=where, dtype=self._precision, slots=slots)
            self._plain = PlainLoop(loaded.tree, self.device, self._dtype)
            self._prompter = Prompter(loaded.tree.folder / "tokenizer.json", loaded.tree.generation)

    def songs(self) -> Iterator[Figure]:
        """Songs of one length: the engine with more and more slots against the plain loop."""
        n_frames, counts = self._frames, [*(n for n in (1, 4, 8) if n < self._slots), self._slots]
        made: dict[int, list[Tokens]] = {}
        plain: dict[int, Tokens] = {}

        def one_by_one(n_frames: int) -> None:
            number = len(plain) % self._slots  # another song in each repetition
            plain[number] = self._plain.tokens(self._prompt(_song(number, n_frames)), n_frames)

        def engine(n: int, n_frames: int) -> None:
            made[n] = self._tokens([_song(number, n_frames) for number in range(n)])

        def sides(n_frames: int) -> dict[str, Callable[[], object]]:
            of_engine = {_slots(n): partial(engine, n, n_frames) for n in counts}
            return {"plain loop": partial(one_by_one, n_frames), **of_engine}

        for side in sides(2).values():
            side()
        plain.clear()
        took = interleaved(sides(n_frames), self._repetitions)
        slow = rates(n_frames, took["plain loop"])
        yield Figure("songs", f"plain loop, {self._precision}", "frames/s", Spread.of(slow))
        n_positions = self._prompt(_song(0, n_frames)).n_positions
        for n in counts:
            fast = rates(n * n_frames, took[_slots(n)])
            equal = all(np.array_equal(plain[number], made[n][number]) for number in plain if number < n)
            note = (
                f"{n_frames} frames each, prompts of {n_positions} positions; "
                f"tokens equal to the plain loop's: {'all' if equal else 'NOT all'}"
            )
            what = f"engine, {self._precision}, {_slots(n)}"
            yield Figure("songs", what, "frames/s", Spread.of(fast), note=note)
            ratio, goal = Spread.of(ratios(fast, slow)), 6.0 if n == 16 else None
            most = self._peak() / (roofline.frame_flops(self._config, n) / n) / Spread.of(slow).median
            note = f"the compute bound allows {most:.3g}" if goal else ""
            yield Figure("songs", f"engine against the plain loop, {_slots(n)}", "x", ratio, goal, note)
        audio = Spread.of([rate / FRAMES_PER_S for rate in fast])
        yield Figure("songs", f"engine, seconds of audio per second, {_slots(n)}", "x", audio)

    def late(self) -> Iterator[Figure]:
        """Frames two minutes into a song, where more is read of keys and values."""
        plain, steps, n_steps = self._plain.at(LATE), self._steps(self._slots, LATE), 4

        def one_by_one() -> None:
            for _ in range(n_steps):
                plain()

        sides: dict[str, Callable[[], object]] = {
            "plain loop": one_by_one,
            "engine": lambda: steps.run(n_steps),
        }
        for side in sides.values():
            side()
        took = interleaved(sides, self._repetitions)
        slow, fast = rates(n_steps, took["plain loop"]), rates(n_steps * self._slots, took["engine"])
        where = f"position {LATE}"
        yield Figure("late", f"plain loop, {where}", "frames/s", Spread.of(slow))
        what = f"engine, {self._precision}, {_slots(self._slots)}"
        yield Figure("late", f"{what}, {where}", "frames/s", Spread.of(fast))
        yield Figure("late", "engine against the plain loop", "x", Spread.of(ratios(fast, slow)))

    def bound(self) -> Iterator[Figure]:
        """The shares of this machine's measured bounds: of memory with one slot, of compute with all."""
        peak, bandwidth = self._peak(), roofline.read_bandwidth(self.device)
        what = f"{self._precision} matrix product 2048³"
        yield Figure("bound", what, "GFLOP/s", Spread.of([peak / 1e9]))
        yield Figure("bound", "memory, read once", "GB/s", Spread.of([bandwidth / 1e9]))

        n_bytes, n_steps = roofline.frame_bytes(self._config, self._dtype), 4
        steps = self._steps(1, EARLY)
        shares, took = roofline.read_shares(
            self.device, n_steps * n_bytes, lambda: steps.run(n_steps), self._repetitions
        )
        note = f"{n_bytes / 1e9:.2f} GB of weights a frame: the backbone once, the depth decoder seven times"
        yield Figure("bound", "share of the bandwidth bound, 1 slot", "%", Spread.of(shares), 80.0, note)
        yield Figure("bound", "steps with 1 slot", "frames/s", Spread.of(rates(n_steps, took)))

        n, needed = self._slots, roofline.frame_flops(self._config, self._slots)
        steps = self._steps(n, EARLY)
        took = [seconds(lambda: steps.run(n_steps)) for _ in range(self._repetitions)]
        share = Spread.of([100 * n_steps * needed / t / peak for t in took])
        note = f"{needed / 1e9:.1f} GFLOP in the linear layers of a step"
        what = f"share of the {self._precision} compute bound, {_slots(n)}"
        yield Figure("bound", what, "%", share, 70.0, note)
        yield Figure("bound", f"steps with {_slots(n)}", "frames/s", Spread.of(rates(n_steps * n, took)))

    def prefill(self) -> Iterator[Figure]:
        """A prompt of tags and lyrics, up to its song's first frame."""
        song = _song(0, 1, n_lyrics=MANY)
        prompt = self._prompt(song)
        sides: dict[str, Callable[[], object]] = {
            "plain loop": lambda: self._plain.tokens(prompt, 1),
            "engine": lambda: self._tokens([song]),
        }
        for side in sides.values():
            side()
        took = interleaved(sides, self._repetitions)
        slow, fast = (rates(prompt.n_positions, took[name]) for name in sides)
        of_engine = Spread.of(fast)
        note = f"{prompt.n_positions} positions, and the first frame"
        yield Figure("prefill", f"plain loop, {self._precision}", "positions/s", Spread.of(slow), note=note)
        yield Figure("prefill", f"engine, {self._precision}, 1 slot", "positions/s", of_engine, note=note)
        yield Figure("prefill", "engine against the plain loop", "x", Spread.of(ratios(fast, slow)))
        needed = roofline.prefill_flops(self._config, prompt.n_positions)
        share = Spread.of([100 * needed / t / self._peak() for t in took["engine"]])
        yield Figure("prefill", f"share of the {self._precision} compute bound", "%", share)

    def codec(self) -> Iterator[Figure]:
        """A segment of tokens to audio."""
        size = (self._engine.n_codebooks, codec.SEGMENTS.n_frames)
        tokens = np.random.default_rng(0).integers(0, self._n_codes, size).astype(np.int16)
        wholes, of_steps, steps = [], [], Solver().steps
        for _ in range(self._repetitions):
            asked: list[float] = []  # before each step of flow matching, then before each piece of audio

            def go_on(asked: list[float] = asked) -> bool:
                asked.append(now())
                return True

            wholes.append(seconds(lambda: self._engine.decode(tokens, go_on)))
            of_steps.append((asked[steps] - asked[0]) / steps)
        rest = [whole - steps * each for whole, each in zip(wholes, of_steps, strict=True)]
        length_s = codec.SEGMENTS.n_frames / FRAMES_PER_S
        note = f"{length_s:g} s of audio, {steps} steps of flow matching with guidance, fp32"
        yield Figure("codec", "a segment", "s", Spread.of(wholes), note=note)
        yield Figure("codec", "a step of flow matching", "s", Spread.of(of_steps))
        yield Figure("codec", "convolutions, and what else is not a step", "s", Spread.of(rest))
        hop_s = codec.SEGMENTS.hop / FRAMES_PER_S
        speed = Spread.of([hop_s / whole for whole in wholes])
        note = f"of a long song a segment is {hop_s:g} s: it overlaps the next one"
        yield Figure("codec", "seconds of audio per second", "x", speed, note=note)

    def _prompt(self, song: Song) -> Prompt:
        return self._prompter(song.prompt, song.lyrics)

    def _tokens(self, songs: list[Song]) -> list[Tokens]:
        """The engine's, with a slot for each."""
        self._engine.slots = len(songs)
        events = self._engine.stream(songs, GREEDY)
        made = {event.key: event.tokens for event in events if isinstance(event, Finished)}
        return [made[song.key] for song in songs]

    def _steps(self, slots: int, position: int) -> "_Steps":
        self._engine.slots = slots
        return _Steps(self._engine, slots, position)

    def _peak(self) -> float:
        return roofline.gemm_flops(self.device, self._dtype)


class _Steps:
    """Steps of all slots that stay at one position."""

    def __init__(self, engine: Engine, slots: int, position: int):
        self._slots, self._position = slots, position
        with torch.inference_mode():
            self._stepper = engine._empty_stepper()
            self._stepper.reset(GREEDY)
            self._stepper.widen(position + 1)
            for cached in self._stepper._cache.layers:
                cached[..., : position + 1, :].zero_()  # allocate the memory now, not while timing
            prompt, n_codebooks = Prompt((0,) * position, 0), engine.n_codebooks
            frame, uniform = np.zeros((n_codebooks, 1), np.int16), np.zeros((2, n_codebooks), np.float32)
            for slot in range(slots):
                self._stepper.set_text(slot, prompt)
                # Never started, it computes the same and stays where it is.
                self._stepper.open(slot, frame, uniform, n_kept=position)
        self.run(2)

    def run(self, n: int) -> None:
        """Make n steps."""
        with torch.inference_mode():
            for _ in range(n):
                self._stepper.step(self._position + 1, self._slots)


def _song(number: int, n_frames: int, n_lyrics: int = FEW) -> Song:
    return Song(str(number), chr(ord("a") + number), n_frames / FRAMES_PER_S, number, "l" * n_lyrics)


def _slots(n: int) -> str:
    return count(n, "slot")
