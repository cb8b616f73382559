"""HeartCodec: a song's tokens to 48 kHz stereo, segment by segment.

A segment is 372 frames, 29.76 s. Flow matching makes its latents of noise and tokens, beginning with the last
52 frames' latents of the segment before; convolutions make samples of the latents; over those 52 frames the
two segments are cross-faded. So the segments of one song follow each other, and those that are solved at the
same time are of several songs. Memory beside the audio itself does not depend on a song's length.

Where a segment is longer than what is left of the song, the song's frames begin again. heartlib does the
same, but loses the last 52 frames of a song whose length is 104 and some whole hops of 320, and the last
sample at lengths whose seconds round down.

On a CPU one segment is solved at a time, its 1,488 rows being enough for every core: with the same number of
threads a song is the same to the byte whatever its company. On a GPU the products of more rows may be
rounded in another way. Latents then differ in their last bits, and where one lies between two of its levels
(a ninth apart) it may fall to the other.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.engine import Abandoned, Audio, Solver, Tokens
from worker.errors import BadInput
from worker.heartmula.codec_weights import CodecWeights
from worker.heartmula.flow import Flow
from worker.heartmula.noise import Noise, noise_of
from worker.heartmula.quantizer import LATENTS_OF_FRAME, Quantizer
from worker.heartmula.scalar_decoder import ScalarDecoder
from worker.models.heartmula_config import CodecConfig
from worker.models.heartmula_tree import Tree

SAMPLE_RATE, CHANNELS = 48_000, 2
HOP = 3840  # samples of a frame
# Of several songs, solved at once on a GPU. By its tensors' sizes each takes some 250 MB; not measured.
_AT_ONCE = 4

GoOn = Callable[[], bool]


class Segments(NamedTuple):
    """How a song is cut, in frames: each segment begins `hop` after the one before."""

    n_frames: int = 372
    hop: int = 320

    @property
    def overlap(self) -> int:
        return self.n_frames - self.hop


SEGMENTS = Segments()


class Codec:
    """A loaded HeartCodec, on one device. May be used by several threads at once."""

    def __init__(
        self,
        weights: CodecWeights,
        config: CodecConfig,
        device: torch.device,
        solver: Solver,
        segments: Segments = SEGMENTS,
    ):
        of_flow = weights.of("flow_matching")
        self._weights, self._solver = weights, solver
        self.device, self.config, self.segments = device, config, segments
        self.quantizer = Quantizer(of_flow, config, device)
        self.flow = Flow(of_flow.of("estimator"), config, solver, device)
        self.decoder = ScalarDecoder(weights.of("scalar_model.decoder"), config, device)
        self.at_once = 1 if device.type == "cpu" else _AT_ONCE

    @classmethod
    def load(cls, tree: Tree, device: torch.device, solver: Solver) -> "Codec":
        """The codec of a checked tree."""
        return cls(CodecWeights.open(tree.codec_weights), tree.codec, device, solver)

    def to(self, device: torch.device | str) -> "Codec":
        """The same on another device, read from its files again: they stay mapped as long as it lives."""
        return Codec(self._weights, self.config, torch.device(device), self._solver, self.segments)

    def decode(self, tokens: Tokens, seed: int, go_on: GoOn = lambda: True) -> Audio:
        """[n_codebooks, n_frames] -> float32 [n_frames * 3840, 2].

        Calls `go_on` before each step and each 2.5 s of audio; raises Abandoned when it returns False, and
        BadInput for tokens that are not this codec's.
        """
        [(_, audio)] = self.decode_songs([(tokens, self.noise(seed))], go_on)
        return audio

    def decode_songs(
        self, songs: Iterable[tuple[Tokens, Noise]], go_on: GoOn = lambda: True
    ) -> Iterator[tuple[int, Audio]]:
        """Several songs, `at_once` at a time: the number of each in `songs` and its audio, once complete.

        A song is taken when there is room for it. Raises as `decode`.
        """
        numbered = enumerate(songs)
        begun: list[_Begun] = []
        while True:
            for number, (tokens, noise) in islice(numbered, self.at_once - len(begun)):
                self.check(tokens)
                begun.append(_Begun(number, tokens, noise, self.segments))
            if not begun:
                return
            self._add_segment([song for song in begun if not song.is_complete], go_on)
            yield from [(song.number, song.audio) for song in begun if song.is_complete]
            begun = [song for song in begun if not song.is_complete]

    def noise(self, seed: int) -> Noise:
        """A song's own noise."""
        return noise_of(seed, (self.segments.n_frames * LATENTS_OF_FRAME, self.config.out_channels))

    def check(self, tokens: Tokens) -> None:
        """Raises BadInput, in one line, unless every token is a code."""
        n_codebooks, n_codes = self.config.num_quantizers, self.config.codebook_size
        if tokens.ndim != 2 or len(tokens) != n_codebooks:
            raise BadInput(
                f"tokens of the shape {list(tokens.shape)} are not {n_codebooks} codebooks of frames; "
                "generate the song with the model that this codec belongs to"
            )
        wrong = np.argwhere((tokens < 0) | (tokens >= n_codes))
        if len(wrong):
            codebook, frame = wrong[0]
            raise BadInput(
                f"token {tokens[codebook, frame]} (codebook {codebook}, frame {frame}) is not one of the "
                f"codec's codes 0 to {n_codes - 1}; generate the song again"
            )

    @torch.inference_mode()
    def _add_segment(self, songs: Sequence["_Begun"], go_on: GoOn) -> None:
        """The next segment of each."""
        if not songs:
            return
        codes = torch.from_numpy(np.stack([song.codes() for song in songs])).to(self.device)
        noise = torch.from_numpy(np.stack([song.noise(song.segment) for song in songs])).to(self.device)
        given = torch.zeros_like(noise)
        n_given = [0 if song.latents is None else len(song.latents) for song in songs]
        for row, song in zip(given, songs, strict=True):
            if song.latents is not None:
                row[: len(song.latents)] = song.latents
        n_given_of = torch.tensor(n_given, device=self.device)
        latents = self.flow(noise, self.quantizer(codes), given, n_given_of, go_on)
        for song, of_song in zip(songs, latents, strict=True):
            song.add(self._samples(of_song, go_on))
            song.latents = of_song[-self.segments.overlap * LATENTS_OF_FRAME :].clone()

    def _samples(self, latents: Tensor, go_on: GoOn) -> Iterator[Audio]:
        """A segment's audio, in pieces: [n, 2]."""
        rows = latents.view(len(latents), CHANNELS, -1).permute(1, 2, 0)  # left, right
        pieces = self.decoder(rows)
        while go_on():
            piece = next(pieces, None)
            if piece is None:
                return
            yield piece.T.cpu().numpy()
        raise Abandoned


class _Begun:
    """A song, complete up to a segment."""

    def __init__(self, number: int, tokens: Tokens, noise: Noise, segments: Segments):
        self.number, self.noise = number, noise
        self._tokens, self._segments = tokens.astype(np.int64), segments
        self.audio = np.empty((tokens.shape[1] * HOP, CHANNELS), np.float32)
        self._n_written = 0
        self.segment = 0  # the next one
        self.latents: Tensor | None = None  # with which it begins

    @property
    def is_complete(self) -> bool:
        return self._n_written == len(self.audio)

    def codes(self) -> NDArray[np.int64]:
        """The segment's: [n_codebooks, n]."""
        first = self.segment * self._segments.hop
        frames = np.arange(first, first + self._segments.n_frames) % self._tokens.shape[1]
        return self._tokens[:, frames]

    def add(self, pieces: Iterable[Audio]) -> None:
        """The segment's audio, cross-faded with what is there. Takes no more pieces than it needs."""
        at = begin = self.segment * self._segments.hop * HOP
        n_faded = self._n_written - begin
        for piece in pieces:
            piece = piece[: len(self.audio) - at]
            n = max(0, min(len(piece), begin + n_faded - at))
            weight = (np.arange(at, at + n) - begin)[:, None] / (n_faded - 1)
            faded = self.audio[at : at + n]
            faded[:] = faded * (1 - weight) + piece[:n] * weight
            self.audio[at + n : at + len(piece)] = piece[n:]
            at += len(piece)
            if at == len(self.audio):
                break
        self._n_written = at
        self.segment += 1
