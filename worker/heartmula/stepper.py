"""All slots' songs on the device, and the step that makes the next frame of every running slot.

A slot holds one song: its prompt, then its frames, each at the position after the one before. A step feeds
each slot's newest position and makes the frame that follows it. It computes the first slots only, as many
as are in use, has fixed shapes for each number of them (and bucket of columns, where attention reads masked
ones), and nothing in it waits for the device. On CUDA the whole step, backbone and depth decoder, is replayed
as one graph. Graphs read the cache: they are captured in `reset`, and again in `widen`, which moves it.

A song ends when it is as long as was asked, or before that at a frame with a token from `audio_eos` on in
any codebook: that frame is dropped. The first frame is not asked, as in heartlib. The device ends a song by
itself; `progress` says so when it is asked, every few steps, and its frames do not change any more. One
whose logits are not finite may end too: ask `is_broken`.

Resuming. `open` takes the frames that are known; `fill` computes keys and values of all positions but the
newest. Where `model.is_row_exact`, filled positions are byte for byte those that steps make, so that a
song resumed at any frame becomes the song it would have been. Elsewhere that holds for a song that is
resumed where its newest position is a multiple of the chunk, if all songs fill every whole chunk anew as
soon as its positions are known: then both have gone through the same shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from worker.decoding import device
from worker.decoding.graphs import Graphs
from worker.engine import Sampling, Tokens
from worker.heartmula.cache import CacheSize
from worker.heartmula.model import SAMPLING, Model
from worker.heartmula.prompt import Prompt, n_positions

# There are columns for whole buckets. Masked attention reads a whole one, too.
_BUCKET = 256
_NEVER = torch.iinfo(torch.int64).max


class Progress(NamedTuple):
    """What a slot holds: how many frames are made, and whether it goes on at the next step."""

    n_made: int
    is_running: bool


class Stepper:
    """One song in each of `slots` slots, of `n_columns` positions at most, until `widen`. Not thread-safe."""

    def __init__(self, model: Model, slots: int, n_columns: int, audio_eos: int):
        device, n_codebooks = model.placement.device, model.depth.n_codebooks
        self.slots, self.dtype = slots, model.placement.dtype
        self._model, self.n_columns, self._audio_eos = model, n_columns, audio_eos
        # One frame more than fits: a slot that has ended still writes the frame after its last.
        size = (slots, n_columns + 1, n_codebooks)
        self._frames = torch.zeros(size, dtype=torch.int64, device=device)
        self._uniform = torch.zeros(size, device=device)
        # Positions before the first frame's; frames that are made; the number of the last one. Idle: all 0.
        self._before, self._made, self._last = torch.zeros(3, slots, dtype=torch.int64, device=device)
        self._running, self._broken = torch.zeros(2, slots, dtype=torch.bool, device=device)
        self._slot = torch.arange(slots, device=device)
        self._prompts: list[Prompt | None] = [None] * slots
        self._reads_masked = model.backbone.llama.attention.reads_masked
        self._graphs = Graphs(device, slots)
        self._sampling = SAMPLING
        self._allocate(halves_of(self._sampling))

    def reset(self, sampling: Sampling) -> None:
        """Empty all slots, and choose tokens with this sampling from now on."""
        self._sampling = sampling
        for slot in range(self.slots):
            self.stop(slot)
            self.leave(slot)
        if self._cache.halves != halves_of(sampling):
            del self._cache  # before there is another: it is most of the memory
            self._allocate(halves_of(sampling))
        self._capture()

    def _allocate(self, halves: int) -> None:
        self._cache, self._of_frame = self._model.caches(CacheSize(self.slots, halves, self.n_columns))
        # What the next step feeds of each row: the embeddings of its newest position.
        width = self._model.config.backbone.width
        self._input = self._cache.layers[0].new_zeros(self.slots * halves, width)

    def widening_bytes(self, n_positions: int) -> int:
        """How much more memory `widen` takes for good."""
        n_columns = max(0, _up(n_positions) - self.n_columns)
        return self._model.n_bytes(CacheSize(self.slots, self._cache.halves, n_columns))

    def widen(self, n_positions: int) -> None:
        """Have room for songs of so many positions. What the slots hold stays."""
        n_columns = _up(n_positions)
        if n_columns <= self.n_columns:
            return
        self._cache.widen(n_columns)
        more = (0, 0, 0, n_columns - self.n_columns)
        self._frames, self._uniform = (F.pad(each, more) for each in (self._frames, self._uniform))
        self.n_columns = n_columns
        self._capture()

    def _capture(self) -> None:
        """The graphs for these caches, if there are any. No song advances meanwhile.

        What such a step writes, keys and values of newest positions and the frames after them, the next step
        writes again.
        """
        if self.n_columns:
            of = self._sampling, self.n_columns
            self._graphs.capture(of, self._buckets, self._advance, self._running)

    @property
    def _buckets(self) -> list[int]:
        """How many columns a step reads: so few numbers that each can be a graph's."""
        return buckets(self.n_columns) if self._reads_masked else [self.n_columns]

    def set_text(self, slot: int, prompt: Prompt) -> None:
        """Set the prompt of a slot's song."""
        self._prompts[slot] = prompt

    def open(self, slot: int, frames: Tokens, uniform: NDArray, n_kept: int = 0) -> int:  # type: ignore[type-arg]
        """Begin the song of the slot's prompt, or resume it after `frames` [codebooks, n].

        uniform [n_frames, codebooks]: the draws of all frames of a song that is to be so long.
        n_kept: positions whose keys and values the slot holds, of the same song.
        -> how many positions to `fill` before `start`: the known ones but the newest, which a step feeds.
        """
        prompt, n_made, wanted = self._prompt(slot), int(frames.shape[1]), len(uniform)
        if n_made >= wanted or n_positions(prompt.n_positions, wanted) > self.n_columns:
            raise ValueError(f"{wanted} frames, {n_made} made, do not fit {self.n_columns} columns")
        self._frames[slot, :n_made] = torch.from_numpy(frames.T.copy()).to(self._frames)
        self._uniform[slot, :wanted] = torch.from_numpy(uniform)
        self._before[slot], self._made[slot], self._last[slot] = prompt.n_positions - 1, n_made, wanted - 1
        self._broken[slot] = False
        if self._reads_masked and not n_kept:
            self._cache.clear(slot)  # of a broken song's NaN, which no mask hides
        newest = prompt.n_positions - 1 + n_made
        self._input[self._cache.rows(slot)] = self._inputs(slot, newest, newest + 1)[:, 0]
        return newest

    def fill(self, slot: int, start: int, end: int) -> None:
        """Compute the keys and values of a slot's positions [start, end), which are known."""
        self._model.backbone.fill(self._inputs(slot, start, end), start, slot, self._cache)

    def _inputs(self, slot: int, start: int, end: int) -> torch.Tensor:
        """Embeddings of known positions, [halves, end - start, width]."""
        prompt, backbone, halves = self._prompt(slot), self._model.backbone, self._cache.halves
        n = prompt.n_positions
        text = backbone.prompt_inputs(prompt, min(start, n), min(end, n), halves)
        made = backbone.frame_inputs(self._frames[slot, max(start - n, 0) : max(end - n, 0)])
        return torch.cat((text, made.expand(halves, *made.shape)), 1)

    def _prompt(self, slot: int) -> Prompt:
        prompt = self._prompts[slot]
        if not prompt:
            raise ValueError(f"slot {slot} has no prompt")
        return prompt

    def start(self, slot: int) -> None:
        """Let the slot advance from the next step on."""
        self._running[slot] = True

    def stop(self, slot: int) -> None:
        """Make the slot idle; it attends to column 0 only."""
        self._running[slot] = False
        self._before[slot], self._made[slot], self._last[slot] = 0, 0, 0

    def move(self, source: int, target: int, n_filled: int) -> None:
        """Move a song into an idle slot, with the keys and values of its first `n_filled` positions."""
        of_slots = (self._frames, self._uniform, self._before, self._made, self._last)
        for of_slot in (*of_slots, self._running, self._broken):
            of_slot[target] = of_slot[source]
        rows = self._cache.rows
        self._input[rows(target)] = self._input[rows(source)]
        self._cache.move(source, target, n_filled)
        self._prompts[target], self._prompts[source] = self._prompts[source], None
        self.stop(source)

    def leave(self, slot: int) -> None:
        """The slot's song is over."""
        self._prompts[slot] = None

    def progress(self, n_slots: int) -> list[Progress]:
        """How far the first slots are. Waits for the device."""
        made, running = torch.stack((self._made[:n_slots], self._running[:n_slots].long())).tolist()
        return [Progress(n, bool(on)) for n, on in zip(made, running, strict=True)]

    def read(self, slot: int, n: int) -> Tokens:
        """The slot's first n frames, [codebooks, n]. Waits for the device."""
        return self._frames[slot, :n].T.to(torch.int16).cpu().numpy()

    def is_broken(self, slot: int) -> bool:
        """True if the slot's logits were not finite at some step. Waits for the device."""
        return bool(self._broken[slot])

    def mark(self) -> Callable[[], None]:
        """A function that waits until the device has made all steps so far."""
        return device.mark(self._model.placement.device)

    def step(self, n_reached: int, n_slots: int) -> None:
        """Make the next frame of the running ones of the first `n_slots` slots.

        The newest position of each of them must be below `n_reached`.
        """
        bucket = min(bucket for bucket in self._buckets if bucket >= n_reached)
        self._graphs.run(bucket, n_slots, self._advance)

    def _advance(self, bucket: int, n_slots: int) -> None:
        slot, made, running = self._slot[:n_slots], self._made[:n_slots], self._running[:n_slots]
        broken, fed = self._broken[:n_slots], self._input[self._cache.rows(0, n_slots)]
        # A song that has ended has no position after its last: it stays there.
        last = self._last[:n_slots]
        position = self._before[:n_slots] + torch.minimum(made, last)
        hidden = self._model.backbone.step(fed, position, bucket, self._cache)
        uniform = self._uniform[slot, made]
        first_end = torch.where(made > 0, self._audio_eos, _NEVER)
        tokens, finite = self._model.depth(hidden, uniform, self._sampling, first_end, self._of_frame)
        # A slot that does not go on writes here too: no one reads it, and its next step writes again.
        self._frames[slot, made] = tokens
        ends = (tokens >= first_end[:, None]).any(1)
        goes_on = running & ~ends
        halves = self._cache.halves
        embedded = self._model.backbone.frame_inputs(tokens).repeat_interleave(halves, 0)
        torch.where(goes_on.repeat_interleave(halves)[:, None], embedded, fed, out=fed)
        # Bound to names: `self._x[:n] |= y` would copy the result to its own place.
        broken |= running & ~finite
        made += goes_on
        running &= goes_on & (made <= last)


def _up(n_columns: int) -> int:
    """To whole buckets."""
    return -(-n_columns // _BUCKET) * _BUCKET


def buckets(n_columns: int) -> list[int]:
    """Numbers of columns up to `n_columns`, each at most `_BUCKET` or a quarter over the one before."""
    found, n = [], _BUCKET
    while n < n_columns:
        found.append(n)
        n += max(_BUCKET, 1 << n.bit_length() >> 3)
    return [*found, n_columns]


def halves_of(sampling: Sampling) -> int:
    """2 if a song has an unconditional half too: only with guidance, as in heartlib."""
    return 2 if sampling.guidance_scale > 1 else 1
