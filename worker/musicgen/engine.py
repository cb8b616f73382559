"""Songs from text with a MusicGen checkpoint, many at once. Works without the rest of the worker.

    from worker.musicgen import Engine

    engine = Engine.load("facebook/musicgen-small")
    tokens = engine.tokens(["calm piano", "epic drums"], seconds=[30, 180], seeds=[1, 2])
    audio = engine.decode(tokens[0])                 # float32 at engine.sample_rate
    again = engine.encode([audio])                   # tokens of any audio at that rate

A song's tokens depend on its prompt, length, seed and sampling, not on the other songs or their
order (on one device, thread count, precision and slot count). In fp32 with `greedy=True` they equal
transformers' `generate` up to 30 s; longer songs are continued in windows (see windows.py).
"""

import gc
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict

import torch
from torch import Tensor

from worker.amounts import count
from worker.decoding import device
from worker.decoding.offload import Offload
from worker.decoding.plan import Work
from worker.decoding.scheduler import Occupancy, ResumePoint, Scheduler
from worker.decoding.stream import SongStream
from worker.engine import (
    TO_GENERATE,
    Audio,
    Event,
    Failed,
    Finished,
    Sampling,
    Song,
    Tokens,
    Unfinished,
    longest_first,
)
from worker.errors import BadInput, UserError
from worker.musicgen import codec, pretrained, windows
from worker.musicgen.attention import best
from worker.musicgen.cache import Cache
from worker.musicgen.layers import Placement, Shape
from worker.musicgen.model import Model
from worker.musicgen.passes import Windowing, WindowPlan
from worker.musicgen.pretrained import Pretrained
from worker.musicgen.stepper import TEXT_ROOM, Stepper
from worker.musicgen.text import TextEncoder, TextPrefetch
from worker.songs import families
from worker.songs.checkpoint_file import OtherSettings, Unusable

log = logging.getLogger(__name__)

# A continued window's known columns are computed in chunks, one between two steps. On a CPU a chunk of
# this many columns takes about as long as a step; on a GPU all of them together take less than one.
_CPU_CHUNK = 32


class Engine:
    """A loaded checkpoint. Implements `worker.engine.Engine`.

    Run one `stream` or `tokens` at a time; `decode` may run in another thread meanwhile.
    """

    family = families.MUSICGEN

    def __init__(
        self,
        loaded: Pretrained,
        *,
        device_name: str | None = None,
        dtype: str | None = None,
        slots: int | None = None,
        window_s: float = windows.WINDOW_S,
        stride_s: float = windows.STRIDE_S,
    ):
        """Like `load`, for a checkpoint that is loaded already."""
        hf, chosen = loaded.model, device.choose_device(device_name)
        shape = Shape.of(hf.decoder)
        self._name, self._revision = loaded.name, loaded.revision
        # fp32 on every device, as the text encoder: they take little of the time.
        self._codec = Offload(hf.audio_encoder.to(chosen))
        self.sample_rate: int = hf.audio_encoder.config.sampling_rate
        self.hop: int = hf.audio_encoder.config.hop_length
        self.n_codebooks, self.channels = shape.n_codebooks, shape.channels
        self._special = shape.vocabulary
        self.window, self.stride = (round(s * self.sample_rate / self.hop) for s in (window_s, stride_s))
        if not 0 < self.stride < self.window:
            raise BadInput(f"stride {stride_s:g} s must be over 0 and under the window of {window_s:g} s")

        if n_threads := device.threads_for(chosen, shape.hidden):
            torch.set_num_threads(n_threads)
        self._text = TextEncoder(loaded, chosen)
        precision = device.choose_dtype(dtype, chosen, shape.hidden)
        self._n_columns = windows.n_columns(self.window, shape.n_codebooks, shape.channels)
        placement = Placement(chosen, precision, half_cache=dtype == device.HALF_CACHE)
        attention = best(shape.head, precision, chosen)
        self._model = Model(hf.decoder, placement, attention, self._n_columns)
        self._bytes_each = Cache.n_bytes(shape, self._n_columns, TEXT_ROOM, placement.cache_dtype)
        self.slots = device.choose_slots(slots, self._bytes_each, chosen)
        self._stepper: Stepper | None = None
        self._stream: SongStream | None = None
        self._sampling = Sampling()

    @classmethod
    def load(
        cls,
        model: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        slots: int | None = None,
        window_s: float = windows.WINDOW_S,
        stride_s: float = windows.STRIDE_S,
    ) -> "Engine":
        """Load a hub id, a checkpoint folder, or `rehearsal`.

        device: cpu, cuda, cuda:N (default: the GPU if there is one). dtype: fp32, bf16, fp16, auto.
        slots: songs at once (default: as memory allows). stride_s: from one window's start to the next.
        Raises BadInput, and UserError when memory does not hold one song.
        """
        loaded = pretrained.load(model)
        return cls(loaded, device_name=device, dtype=dtype, slots=slots, window_s=window_s, stride_s=stride_s)

    def describe(self) -> dict[str, str | int | float]:
        """The engine's part of a song's record."""
        placement = self._model.placement
        where = placement.device
        return {
            "model": self._name,
            "revision": self._revision,
            "device": torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu",
            "precision": device.dtype_name(placement.dtype, placement.cache_dtype),
            "attention": self._model.attention.name,
            "slots": self.slots,
            "same_bytes": device.same_bytes(self._is_row_exact),
            "window_s": self.window * self.hop / self.sample_rate,
            "stride_s": self.stride * self.hop / self.sample_rate,
        }

    @property
    def _is_row_exact(self) -> bool:
        """True if no kernel's sums depend on the number of slots or threads."""
        return self._model.is_row_exact and self._text.is_packed

    def n_frames(self, seconds: float) -> int:
        """Frames that cover `seconds` of audio."""
        return -(-round(seconds * self.sample_rate) // self.hop)

    def tokens(
        self,
        prompts: Sequence[str],
        seconds: float | Sequence[float],
        *,
        seeds: Sequence[int] | None = None,
        guidance_scale: float = 3.0,
        top_k: int = 250,
        temperature: float = 1.0,
        greedy: bool = False,
    ) -> list[Tokens]:
        """Tokens of each prompt's song, int16 [n_codebooks, n_frames], in the order of the prompts.

        seconds: one length for all songs, or one for each. seeds: by default 0, 1, 2, ...
        Raises UserError if a song fails.
        """
        lengths = [float(seconds)] * len(prompts) if isinstance(seconds, int | float) else list(seconds)
        songs = [
            Song(str(i), prompt, length, seed)
            for i, (prompt, length, seed) in enumerate(
                zip(prompts, lengths, seeds if seeds is not None else range(len(prompts)), strict=True)
            )
        ]
        made: dict[str, Tokens] = {}
        for event in self.stream(longest_first(songs), Sampling(guidance_scale, top_k, temperature, greedy)):
            if isinstance(event, Failed):
                raise UserError(f"song {event.key} failed: {event.reason}")
            if isinstance(event, Finished):
                made[event.key] = event.tokens
        return [made[song.key] for song in songs]

    @torch.inference_mode()
    def stream(self, songs: Iterable[Song | Unfinished], sampling: Sampling) -> Generator[Event, None, None]:
        """Generate songs and resume unfinished ones, taking each only when a slot is free.

        Yields Progress often, an Unfinished at the end of each window (save it, and a later fault
        costs one window at most), and Finished or Failed for each song.
        Put long songs first: fewer slots are then idle at the end.
        When memory runs out, continues with half the slots.
        """
        self._sampling = sampling
        with TextPrefetch(self._works(songs), self._text) as ahead:
            self._stream = SongStream(
                ahead, lambda: self._schedule(sampling, ahead.text_of), self._use_fewer_slots
            )
            for event in self._stream.run():
                yield self._unfinished(event.work) if isinstance(event, ResumePoint) else event

    def unfinished(self) -> list[Unfinished]:
        """The songs in progress, with every token generated so far. Call it between events of `stream`."""
        return [self._unfinished(work) for work in self._stream.in_progress()] if self._stream else []

    def begin_no_more(self) -> None:
        """Finish the songs in progress and begin no others, not even one that was taken ahead."""
        if self._stream:
            self._stream.begin_no_more()

    @property
    def occupancy(self) -> Occupancy:
        """How well the slots were used in the last stream."""
        return self._stream.occupancy if self._stream else Occupancy()

    def close(self) -> None:
        """Free the memory; the engine cannot be used afterwards."""
        self._stream = self._stepper = None
        del self._model, self._text, self._codec
        gc.collect()  # modules are in reference cycles
        torch.cuda.empty_cache()

    def decode(self, tokens: Tokens, go_on: Callable[[], bool] = lambda: True, seed: int = 0) -> Audio:
        """[n_codebooks, n_frames] -> float32 [n_frames * hop], or [n_frames * hop, 2] if stereo.

        In bounded memory. Draws nothing: the seed does not matter. Calls `go_on` before each 2 s of audio;
        raises Abandoned when it returns False.
        Once a GPU has no memory left for it, this song and all later ones are decoded on the CPU.
        """
        return self._codec.run(
            lambda encodec: codec.decode(encodec, tokens, go_on=go_on, channels=self.channels)
        )

    def encode(self, audio: Iterable[Audio], go_on: Callable[[], bool] = lambda: True) -> Tokens:
        """float32 [n], or [n, 2] if stereo, at `sample_rate` and in pieces -> [n_codebooks, ceil(n / hop)].

        As `decode` in all else. `audio` is read once more if the GPU has no memory left for it.
        """
        return self._codec.run(
            lambda encodec: codec.encode(encodec, audio, go_on=go_on, channels=self.channels)
        )

    def refuse_oversized(self, song: Song) -> None:
        """No song is: it is made in windows, however long it is."""

    def joins(self, seconds: float) -> list[float]:
        """The seconds at which a song of this length changes from one window to the next."""
        plan = windows.plan(self.n_frames(seconds), self.window, self.stride)
        return [window.end * self.hop / self.sample_rate for window in plan[:-1]]

    def _works(self, songs: Iterable[Song | Unfinished]) -> Iterator[Work]:
        for song in songs:
            if isinstance(song, Unfinished):
                self.check(song, self._sampling)
                yield Work(song.song, song.tokens.copy(), song.generation_s)
            else:
                yield Work(song, windows.unmade(self.n_codebooks, self.n_frames(song.seconds)))

    def check(self, song: Unfinished, sampling: Sampling) -> None:
        """Raises OtherSettings or Unusable unless this engine would continue the same song."""
        mine = {"model": self._name, "revision": self._revision, "window": self.window, "stride": self.stride}
        mine |= asdict(sampling)
        its = {name: getattr(song, name) for name in ("model", "revision", "window", "stride")}
        its |= asdict(song.sampling)
        if differs := [f"{name} {its[name]}, not {mine[name]}" for name in mine if its[name] != mine[name]]:
            raise OtherSettings("; ".join(differs).replace("_", " "))
        if song.tokens.shape != (self.n_codebooks, self.n_frames(song.song.seconds)):
            raise Unusable(f"its tokens have the shape {song.tokens.shape}")
        if not ((song.tokens >= TO_GENERATE) & (song.tokens < self._special)).all():
            raise Unusable("its tokens are not this model's")

    def continued(self, song: Song, source: Unfinished) -> Unfinished:
        """A song that begins with another's tokens. Raises Unusable if those are not this model's."""
        if source.model != self._name or len(source.tokens) != self.n_codebooks:
            raise Unusable(f"{source.song.key} was made with {source.model}, which has other tokens")
        return self.beginning_with(song, source.tokens)

    def beginning_with(self, song: Song, tokens: Tokens) -> Unfinished:
        """A song whose first frames are made: [n_codebooks, n]. Raises Unusable unless it is longer."""
        whole = windows.unmade(self.n_codebooks, self.n_frames(song.seconds))
        if len(tokens) != self.n_codebooks:
            raise Unusable(f"its codec has {len(tokens)} codebooks where {self.n_codebooks} are needed")
        if tokens.shape[1] >= whole.shape[1]:
            made_s = tokens.shape[1] * self.hop / self.sample_rate
            raise Unusable(f"it is not longer than the {made_s:g} s that it continues")
        whole[:, : tokens.shape[1]] = tokens
        return self._unfinished(Work(song, whole))

    def _unfinished(self, work: Work) -> Unfinished:
        return Unfinished(
            song=work.song,
            tokens=work.tokens.copy(),
            generation_s=work.generation_s,
            sampling=self._sampling,
            model=self._name,
            revision=self._revision,
            window=self.window,
            stride=self.stride,
        )

    def _schedule(self, sampling: Sampling, text_of: Callable[[Song], Tensor]) -> Scheduler:
        """A scheduler over empty slots."""
        stepper = self._empty_stepper(sampling)
        windowing = Windowing(self.window, self.stride, self.channels)
        return Scheduler(stepper, lambda work: WindowPlan(work, stepper, text_of, windowing), self._chunk)

    @property
    def _chunk(self) -> int:
        """Known columns that are computed between two steps, at most."""
        on_cpu = self._model.placement.device.type == "cpu"
        # Not a function of the slots: in chunks of another size, attention rounds otherwise.
        return _CPU_CHUNK if on_cpu else self.window

    def _empty_stepper(self, sampling: Sampling) -> Stepper:
        """The stepper with all slots empty. It is reused: its cache takes most of the memory."""
        if not self._stepper or self._stepper.slots != self.slots:
            self._stepper = None  # free the old cache before the new one is allocated
            self._stepper = Stepper(self._model, self.slots, self._n_columns)
        self._stepper.reset(sampling)
        return self._stepper

    def _use_fewer_slots(self) -> None:
        """Free the cache and halve the slots. Raises UserError when there is one slot."""
        needed = 0 if self._stepper else self._bytes_each
        slots = device.fewer_slots(self.slots, needed, self._model.placement.device)
        self._stepper = None
        torch.cuda.empty_cache()
        self.slots = slots
        log.warning("out of memory: continuing with %s at once", count(self.slots, "song"))
