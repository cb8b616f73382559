"""The simplest MusicGen generation: one song at a time on transformers' own decoder.

Correct and slow. Every window is a prefill of the known columns and a loop over the rest,
with guidance as a batch of two. Its tokens are the reference for any faster engine.
"""

import time
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from worker.decoding.sampling import draws, guide, pick
from worker.engine import TO_GENERATE, Audio, Event, Failed, Finished, Progress, Sampling, Song, Tokens
from worker.musicgen import codec, windows
from worker.musicgen.pretrained import Pretrained, load
from worker.musicgen.windows import Window

# Steps between two progress events: about a second of music.
_REPORT_EVERY = 50


class PlainEngine:
    """One MusicGen checkpoint, one song at a time. Implements `worker.engine.Engine`."""

    def __init__(
        self, pretrained: Pretrained, window_s: float = windows.WINDOW_S, stride_s: float = windows.STRIDE_S
    ):
        self._pretrained = pretrained
        self._model = pretrained.model
        self._decoder = pretrained.model.decoder
        encodec = self._model.config.audio_encoder
        self.sample_rate: int = encodec.sampling_rate
        self.hop: int = encodec.hop_length
        self.n_codebooks: int = self._decoder.config.num_codebooks
        self.special: int = self._decoder.config.vocab_size
        self.window = round(window_s * self.sample_rate / self.hop)
        self.stride = round(stride_s * self.sample_rate / self.hop)

    @classmethod
    def load(
        cls, model: str, window_s: float = windows.WINDOW_S, stride_s: float = windows.STRIDE_S
    ) -> "PlainEngine":
        """Load a checkpoint. Raises BadInput."""
        return cls(load(model), window_s, stride_s)

    def describe(self) -> dict[str, str | int | float]:
        """The engine's part of a song's record."""
        device = self._model.device
        return {
            "model": self._pretrained.name,
            "revision": self._pretrained.revision,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "precision": str(self._model.dtype).removeprefix("torch."),
            "same_bytes": "",
            "slots": 1,
            "window_s": self.window * self.hop / self.sample_rate,
            "stride_s": self.stride * self.hop / self.sample_rate,
        }

    def n_frames(self, seconds: float) -> int:
        """Frames that cover `seconds` of audio."""
        return -(-round(seconds * self.sample_rate) // self.hop)

    @torch.inference_mode()
    def stream(self, songs: Iterable[Song], sampling: Sampling) -> Iterator[Event]:
        """Generate songs one after another, in the order given."""
        for song in songs:
            started = time.monotonic()
            n_frames = self.n_frames(song.seconds)
            tokens = windows.unmade(self.n_codebooks, n_frames)
            yield Progress({song.key: (0, n_frames)})
            try:
                text = self._encode(song.prompt)
                for window in windows.plan(n_frames, self.window, self.stride):
                    for n_done in self._fill(tokens, window, text, song.seed, sampling):
                        yield Progress({song.key: (n_done, n_frames)})
            except Exception as error:  # one song's failure must not stop the list
                reason = f"{type(error).__name__}: {error}".partition("\n")[0]
                yield Failed(song.key, reason, time.monotonic() - started)
            else:
                yield Finished(song.key, tokens, time.monotonic() - started)

    def decode(self, tokens: Tokens) -> Audio:
        """[n_codebooks, n_frames] -> float32 mono [n_frames * hop]."""
        return codec.decode(self._model.audio_encoder, tokens)

    def _encode(self, prompt: str) -> Tensor:
        """The prompt as states for cross-attention, with a row of zeros for the unconditional half.

        -> [2, n_text, hidden]. Zero states give zero values, so that row attends to nothing.
        """
        inputs = self._pretrained.tokenizer(prompt, return_tensors="pt").to(self._model.device)
        states = self._model.text_encoder(**inputs).last_hidden_state
        if hasattr(self._model, "enc_to_dec_proj"):
            states = self._model.enc_to_dec_proj(states)
        return torch.cat([states, torch.zeros_like(states)])

    def _fill(
        self, tokens: Tokens, window: Window, text: Tensor, seed: int, sampling: Sampling
    ) -> Iterator[int]:
        """Generate one window into `tokens` [n_codebooks, n_frames]; yields frames done so far."""
        table = windows.delayed(tokens, window, self.special)
        drawn = draws(seed, window.start, window.length, self.n_codebooks)
        columns = torch.from_numpy(table).to(text.device)
        uniform = torch.from_numpy(windows.in_columns(drawn, window)).to(text.device)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        fed = 0
        for column in range(windows.first_unmade(table), columns.shape[1]):
            fresh = columns[:, fed:column].repeat(2, 1)
            logits = self._decoder(
                fresh, encoder_hidden_states=text, past_key_values=cache, use_cache=True
            ).logits[:, -1]
            conditional, unconditional = logits.float().view(2, self.n_codebooks, -1)
            guided = guide(conditional, unconditional, sampling.guidance_scale)
            chosen = pick(guided, uniform[column], sampling)
            columns[:, column] = torch.where(columns[:, column] == TO_GENERATE, chosen, columns[:, column])
            fed = column
            if column % _REPORT_EVERY == 0:
                yield window.start + min(column, window.length)
        tokens[:, window.start : window.end] = windows.undelayed(columns.cpu().numpy(), window)
        yield window.end
