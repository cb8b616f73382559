"""Songs from tags and lyrics with a HeartMuLa, many at once. Works without the rest of the worker.

    from worker.heartmula import Engine

    engine = Engine.load("heartmula")
    for event in engine.stream([Song("rain", "piano,soft", 60.0, 7, "[verse]\\nRain again")], SAMPLING):
        if isinstance(event, Finished):
            audio = engine.decode(event.tokens, seed=7)    # float32 [n, 2] at engine.sample_rate

A song's tokens depend on its tags, lyrics, length, seed and sampling, not on the other songs or their order
(`describe()["same_bytes"]`: under which conditions to the byte). In fp32 they are heartlib's, for the same
draws.
A song may end before the length that was asked: what is `Finished` then has fewer frames.
"""

import gc
import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np
import torch

from worker.amounts import count
from worker.decoding import device
from worker.decoding.offload import Offload
from worker.decoding.plan import Endings, Work
from worker.decoding.scheduler import ResumePoint, Scheduler
from worker.decoding.stream import SongStream
from worker.engine import TO_GENERATE, Audio, Event, Sampling, Solver, Song, Tokens, Unfinished
from worker.errors import BadInput, UserError
from worker.heartmula import codec, pretrained, prompt
from worker.heartmula.cache import CacheSize
from worker.heartmula.codec import Codec
from worker.heartmula.layers import Placement
from worker.heartmula.model import SAMPLING, Model
from worker.heartmula.passes import Grid, SongPlan
from worker.heartmula.pretrained import Pretrained
from worker.heartmula.prompt import Prompter
from worker.heartmula.stepper import Stepper, halves_of
from worker.songs import families
from worker.songs.checkpoint_file import OtherSettings, Unusable

log = logging.getLogger(__name__)

# heartlib's.
SOLVER = Solver()
# A song can be resumed at each multiple of so many positions: 20 s.
_EVERY = 256
# Known positions are computed in chunks, one between two steps. On a CPU a chunk of so many takes about as
# long as a few steps; on a GPU one of `_EVERY` takes less than one.
_CPU_CHUNK = 32
# The number of slots is chosen for songs of so many positions: five minutes with their lyrics.
_USUAL_POSITIONS = 4096
# Steps of a GPU between two looks at which songs have ended: each look waits for it.
_GPU_STEPS = 8


class Engine:
    """A loaded HeartMuLa. Implements `worker.engine.Engine`.

    Run one `stream` at a time; `decode` may run in another thread meanwhile.
    """

    family = families.HEARTMULA
    sample_rate, hop, channels = codec.SAMPLE_RATE, codec.HOP, codec.CHANNELS

    def __init__(
        self,
        loaded: Pretrained,
        *,
        device_name: str | None = None,
        dtype: str | None = None,
        slots: int | None = None,
        solver: Solver = SOLVER,
    ):
        """Like `load`, for a model that was found already."""
        tree, chosen = loaded.tree, device.choose_device(device_name)
        self._name, self._revision = loaded.name, loaded.revision
        self._n_codes, self._audio_eos = tree.codec.codebook_size, tree.generation.audio_eos_id
        self.n_codebooks = tree.mula.audio_num_codebooks
        if dtype == device.HALF_CACHE:
            raise BadInput(f"{device.HALF_CACHE} is for MusicGen; HeartMuLa runs in fp32, bf16 or fp16")
        width = tree.mula.backbone.width
        if n_threads := device.threads_for(chosen, width):
            torch.set_num_threads(n_threads)
        placement = Placement(chosen, device.choose_dtype(dtype, chosen, width))
        self._prompter = Prompter(tree.folder / "tokenizer.json", tree.generation)
        with _memory_in_one_line():
            self._codec = Offload(Codec.load(tree, chosen, solver))
            self._model = Model.of(tree, placement)
        self._bytes_each = self._model.n_bytes(CacheSize(1, halves_of(SAMPLING), _USUAL_POSITIONS))
        self.slots = device.choose_slots(slots, self._bytes_each, chosen)
        self._stepper: Stepper | None = None
        self._stream: SongStream | None = None
        self._sampling = SAMPLING

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        slots: int | None = None,
        solver: Solver = SOLVER,
    ) -> "Engine":
        """Load `heartmula`, `heartmula-rehearsal` or a folder.

        device: cpu, cuda, cuda:N (default: the GPU if there is one). dtype: fp32, bf16, fp16, auto.
        slots: songs at once (default: as memory allows). solver: of the codec (default: heartlib's).
        Raises BadInput, and UserError when memory does not hold one song.
        """
        with pretrained.found(model) as loaded:
            return cls(loaded, device_name=device, dtype=dtype, slots=slots, solver=solver)

    def describe(self) -> dict[str, str | int | float]:
        """The engine's part of a song's record. There are no windows: a song is made in one pass."""
        placement = self._model.placement
        where = placement.device
        return {
            "model": self._name,
            "revision": self._revision,
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
            "precision": device.dtype_name(placement.dtype),
            "attention": self._model.backbone.llama.attention.name,
            "slots": self.slots,
            "same_bytes": device.same_bytes(self._model.is_row_exact),
            "window_s": 0.0,
            "stride_s": 0.0,
        }

    @torch.inference_mode()
    def stream(self, songs: Iterable[Song | Unfinished], sampling: Sampling) -> Generator[Event, None, None]:
        """Generate songs and resume unfinished ones, taking each only when a slot is free.

        Yields Progress often, an Unfinished every 20 s of a song (save it, and a later fault costs no more),
        and Finished or Failed for each song. When memory runs out, continues with half the slots.
        """
        self._sampling = sampling
        self._stream = SongStream(self._works(songs), self._schedule, self._use_fewer_slots)
        for event in self._stream.run():
            yield self._unfinished(event.work) if isinstance(event, ResumePoint) else event

    def unfinished(self) -> list[Unfinished]:
        """The songs in progress, with every token generated so far. Call it between events of `stream`."""
        return [self._unfinished(work) for work in self._stream.in_progress()] if self._stream else []

    def begin_no_more(self) -> None:
        """Finish the songs in progress and begin no others, not even one that was taken ahead."""
        if self._stream:
            self._stream.begin_no_more()

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        self._stream = self._stepper = None
        del self._model, self._codec
        gc.collect()
        torch.cuda.empty_cache()

    def decode(self, tokens: Tokens, go_on: Callable[[], bool] = lambda: True, seed: int = 0) -> Audio:
        """[n_codebooks, n_frames] -> float32 [n_frames * hop, 2]. The codec's noise is the seed's.

        Calls `go_on` before each step of flow matching and each 2.5 s of audio; raises Abandoned when it
        returns False.
        Once a GPU has no memory left for it, this song and all later ones are decoded on the CPU.
        """
        return self._codec.run(lambda codec: codec.decode(tokens, seed, go_on))

    def refuse_oversized(self, song: Song) -> None:
        """Raises BadInput, with how many positions it is over the model's."""
        prompt.refuse_oversized(
            self._prompt_of(song).n_positions, song.seconds, self._model.config.backbone.positions
        )

    def joins(self, seconds: float) -> list[float]:
        """None: there are no windows."""
        return []

    def encode(self, audio: Iterable[Audio], go_on: Callable[[], bool] = lambda: True) -> Tokens:
        """Raises Unusable: HeartCodec is used one way only, from tokens to audio."""
        raise Unusable("HeartMuLa cannot continue an audio file; use a MusicGen")

    def continued(self, song: Song, source: Unfinished) -> Unfinished:
        """Raises Unusable: a prompt has the lyrics of one whole song."""
        raise Unusable("HeartMuLa cannot continue a song; use a MusicGen")

    def beginning_with(self, song: Song, tokens: Tokens) -> Unfinished:
        """Raises Unusable, as `continued` does."""
        raise Unusable("HeartMuLa cannot begin a song with given tokens; use a MusicGen")

    def check(self, song: Unfinished, sampling: Sampling) -> None:
        """Raises OtherSettings or Unusable unless this engine would continue the same song."""
        mine = {"model": self._name, "revision": self._revision} | asdict(sampling)
        its = {"model": song.model, "revision": song.revision} | asdict(song.sampling)
        if differs := [f"{name} {its[name]}, not {mine[name]}" for name in mine if its[name] != mine[name]]:
            raise OtherSettings("; ".join(differs).replace("_", " "))
        tokens, asked = song.tokens, prompt.n_frames(song.song.seconds)
        shape_fits = tokens.ndim == 2 and len(tokens) == self.n_codebooks and 0 < tokens.shape[1] <= asked
        if not shape_fits or (tokens.shape[1] < asked and song.n_made < tokens.shape[1]):
            raise Unusable(f"its tokens have the shape {tokens.shape}")
        if not ((tokens >= TO_GENERATE) & (tokens < self._n_codes)).all():
            raise Unusable("its tokens are not this model's")

    def _works(self, songs: Iterable[Song | Unfinished]) -> Iterator[Work]:
        for song in songs:
            if isinstance(song, Unfinished):
                self.check(song, self._sampling)
                yield Work(song.song, song.tokens.copy(), song.generation_s)
            else:
                shape = (self.n_codebooks, prompt.n_frames(song.seconds))
                yield Work(song, np.full(shape, TO_GENERATE, np.int16))

    def _unfinished(self, work: Work) -> Unfinished:
        return Unfinished(
            song=work.song,
            tokens=work.tokens.copy(),
            generation_s=work.generation_s,
            sampling=self._sampling,
            model=self._name,
            revision=self._revision,
            window=0,
            stride=0,
        )

    def _schedule(self) -> Scheduler:
        """A scheduler over empty slots."""
        stepper, on_cpu = self._empty_stepper(), self._model.placement.device.type == "cpu"
        # Not a function of the slots: in chunks of another size, attention rounds otherwise.
        chunk = _CPU_CHUNK if on_cpu else _EVERY
        grid = Grid(_EVERY, chunk, not self._model.is_row_exact, self._model.config.backbone.positions)
        endings = Endings(
            lambda n: [i for i, slot in enumerate(stepper.progress(n)) if not slot.is_running],
            every=1 if on_cpu else _GPU_STEPS,
        )

        def plan(work: Work) -> SongPlan:
            return SongPlan(work, stepper, self._prompt_of, lambda n: self._make_room(stepper, n), grid)

        return Scheduler(stepper, plan, chunk, endings)

    def _prompt_of(self, song: Song) -> prompt.Prompt:
        return self._prompter(song.prompt, song.lyrics)

    def _make_room(self, stepper: Stepper, n_positions: int) -> None:
        """Have columns for a song of so many positions.

        Where memory has not so many: with several slots, raises OutOfMemoryError, and half of them go on;
        with one, raises UserError, and the song fails alone.
        """
        free = device.free_bytes(self._model.placement.device)
        missing = 0 if free is None else stepper.widening_bytes(n_positions) - free
        if missing > 0 and stepper.slots == 1:
            raise device.no_room(missing)
        if missing > 0:
            raise torch.OutOfMemoryError(f"{n_positions} positions in each of {stepper.slots} slots")
        stepper.widen(n_positions)

    def _empty_stepper(self) -> Stepper:
        """The stepper with all slots empty. It is reused: its cache takes most of the memory."""
        if not self._stepper or self._stepper.slots != self.slots:
            self._stepper = None  # free the old cache before the new one is allocated
            # Without columns: they come with the first song, for all slots.
            self._stepper = Stepper(self._model, self.slots, 0, self._audio_eos)
        self._stepper.reset(self._sampling)
        return self._stepper

    def _use_fewer_slots(self) -> None:
        """Free the cache and halve the slots. Raises UserError when there is one slot."""
        needed = 0 if self._stepper else self._bytes_each
        slots = device.fewer_slots(self.slots, needed, self._model.placement.device)
        self._stepper = None
        torch.cuda.empty_cache()
        self.slots = slots
        log.warning("out of memory: continuing with %s at once", count(self.slots, "song"))


@contextmanager
def _memory_in_one_line() -> Iterator[None]:
    """While weights are put on the device."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not device.is_out_of_memory(error):
            raise
        raise UserError(
            "not enough memory to load the model; use half precision or a larger machine"
        ) from None
