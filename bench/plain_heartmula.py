"""HeartMuLa as a plain loop makes a song: two rows, a cache of their own, one frame after another.

It computes what heartlib computes, with what torch offers everyone: the `nn.Linear` layers that heartlib has,
preallocated keys and values, `scaled_dot_product_attention`. It is a little faster than heartlib, which
attends to all 8,192 columns of its cache with a mask. The best token is chosen each time.
"""

from itertools import count

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from worker.decoding.sampling import guide
from worker.engine import Tokens
from worker.heartmula.attention import rotations
from worker.heartmula.model import SAMPLING
from worker.heartmula.prompt import Prompt, n_positions
from worker.models.heartmula_config import Flavour, MulaConfig
from worker.models.heartmula_tree import Tree

_EPS = 1e-5
_ROWS = 2  # conditional, unconditional


class PlainLoop:
    """A checked tree's language model on a device."""

    def __init__(self, tree: Tree, device: torch.device, dtype: torch.dtype):
        with torch.device("meta"):
            self._model = _Mula(tree.mula)
        self._model.to_empty(device=device).to(dtype)
        stored = {name: weight for path in tree.mula_weights for name, weight in load_file(path).items()}
        self._model.load_state_dict(stored)  # copies
        self._audio_eos = tree.generation.audio_eos_id

    @torch.inference_mode()
    def tokens(self, prompt: Prompt, n_frames: int) -> Tokens:
        """A song of so many frames or, where a token ends it, fewer: [codebooks, n]."""
        model = self._model
        model.backbone.allocate(n_positions(prompt.n_positions, n_frames))
        model.decoder.allocate(model.n_codebooks)
        frames = [model.frame(model.of_prompt(prompt), 0)]
        for position in count(prompt.n_positions):
            if len(frames) == n_frames:
                break
            frame = model.frame(model.of_frame(frames[-1]), position)
            if (frame >= self._audio_eos).any():
                break
            frames.append(frame)
        return torch.stack(frames, 1).to(torch.int16).cpu().numpy()

    @torch.inference_mode()
    def at(self, position: int) -> "LateFrame":
        """A song at this position, everything before it random."""
        return LateFrame(self._model, position)


class LateFrame:
    """One frame, again and again the same."""

    def __init__(self, model: "_Mula", position: int):
        self._model, self._position = model, position
        model.backbone.allocate(position + 1)
        model.decoder.allocate(model.n_codebooks)
        for cached in model.backbone.cached:
            cached.normal_()
        self._frame = torch.zeros(model.n_codebooks, dtype=torch.int64, device=cached.device)

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """Its tokens, [codebooks]."""
        return self._model.frame(self._model.of_frame(self._frame), self._position)


class _Mula(nn.Module):
    """Both Llamas, embeddings and heads, with heartlib's names."""

    def __init__(self, config: MulaConfig):
        super().__init__()
        width, depth_width = config.backbone.width, config.decoder.width
        self._vocabulary, self.n_codebooks = config.audio_vocab_size, config.audio_num_codebooks
        self.text_embeddings = nn.Embedding(config.text_vocab_size, width)
        self.audio_embeddings = nn.Embedding(config.audio_vocab_size * self.n_codebooks, width)
        self.unconditional_text_embedding = nn.Embedding(1, width)
        self.muq_linear = nn.Linear(config.muq_dim, width)
        self.backbone, self.decoder = _Llama(config.backbone), _Llama(config.decoder)
        self.projection = nn.Linear(width, depth_width, bias=False)
        self.codebook0_head = nn.Linear(width, config.audio_vocab_size, bias=False)
        self.audio_head = nn.Parameter(
            torch.empty(self.n_codebooks - 1, depth_width, config.audio_vocab_size)
        )

    def of_prompt(self, prompt: Prompt) -> Tensor:
        """-> [rows, n, width]"""
        nothing = self.unconditional_text_embedding.weight
        text = self.text_embeddings(torch.tensor(prompt.ids, device=nothing.device))
        text[prompt.reference] = self.muq_linear.bias  # of reference audio that is all zeros
        return torch.stack((text, nothing.expand_as(text)))

    def of_frame(self, frame: Tensor) -> Tensor:
        """Tokens [codebooks] -> [rows, 1, width]."""
        offsets = torch.arange(self.n_codebooks, device=frame.device) * self._vocabulary
        embedded: Tensor = self.audio_embeddings(frame + offsets)
        return embedded.sum(0).expand(_ROWS, 1, -1)

    def frame(self, x: Tensor, position: int) -> Tensor:
        """Feed x [rows, n, width], whose first is at this position: the next frame's tokens, [codebooks]."""
        state = self.backbone(x, position)[:, -1]
        tokens = [self._best(self.codebook0_head(state))]
        x = torch.stack((state, self._embedded(tokens)), 1)
        position = 0
        for head in self.audio_head:
            state = self.decoder(self.projection(x), position)[:, -1]
            tokens.append(self._best(state @ head))
            position += x.shape[1]
            x = self._embedded(tokens)[:, None]
        return torch.stack(tokens)

    def _best(self, logits: Tensor) -> Tensor:
        conditional, unconditional = logits.float()
        return guide(conditional, unconditional, SAMPLING.guidance_scale).argmax()

    def _embedded(self, tokens: list[Tensor]) -> Tensor:
        """The newest of a frame's tokens so far -> [rows, width]."""
        embedded: Tensor = self.audio_embeddings(tokens[-1] + (len(tokens) - 1) * self._vocabulary)
        return embedded.expand(_ROWS, -1)


class _Llama(nn.Module):
    def __init__(self, sizes: Flavour):
        super().__init__()
        self._sizes = sizes
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = _Norm(sizes.width)
        self.cached: list[Tensor] = []
        self._rotations = torch.empty(0)

    def allocate(self, n: int) -> None:
        """Room for the keys and values of n positions: [2, rows, kv heads, n, head] in each layer."""
        head = self._sizes.width // self._sizes.heads
        size = (2, _ROWS, self._sizes.kv_heads, n, head)
        self.cached = [self.norm.scale.new_zeros(size) for _ in self.layers]
        with torch.device("cpu"):
            self._rotations = rotations(head, n).to(self.norm.scale.device)

    def forward(self, x: Tensor, position: int) -> Tensor:
        """[rows, n, width], after `position` others -> the same."""
        turn = self._rotations[position : position + x.shape[1], None]
        for layer, cached in zip(self.layers, self.cached, strict=True):
            x = layer(x, position, turn, cached)
        normed: Tensor = self.norm(x)
        return normed


class _Layer(nn.Module):
    def __init__(self, sizes: Flavour):
        super().__init__()
        self.sa_norm, self.mlp_norm = _Norm(sizes.width), _Norm(sizes.width)
        self.attn, self.mlp = _Attention(sizes), _Mlp(sizes)

    def forward(self, x: Tensor, position: int, turn: Tensor, cached: Tensor) -> Tensor:
        x = x + self.attn(self.sa_norm(x), position, turn, cached)
        x = x + self.mlp(self.mlp_norm(x))
        return x


class _Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, _EPS)


class _Attention(nn.Module):
    def __init__(self, sizes: Flavour):
        super().__init__()
        self._head = sizes.width // sizes.heads
        self.q_proj = nn.Linear(sizes.width, sizes.width, bias=False)
        self.k_proj = nn.Linear(sizes.width, sizes.kv_heads * self._head, bias=False)
        self.v_proj = nn.Linear(sizes.width, sizes.kv_heads * self._head, bias=False)
        self.output_proj = nn.Linear(sizes.width, sizes.width, bias=False)

    def forward(self, x: Tensor, position: int, turn: Tensor, cached: Tensor) -> Tensor:
        query, key, value = (
            each(x).view(*x.shape[:-1], -1, self._head) for each in (self.q_proj, self.k_proj, self.v_proj)
        )
        end = position + x.shape[1]
        cached[0, :, :, position:end] = _turned(key, turn).transpose(1, 2)
        cached[1, :, :, position:end] = value.transpose(1, 2)
        keys, values = cached[:, :, :, :end]
        query = _turned(query, turn).transpose(1, 2)
        # Several new positions are the first ones of the cache: each sees those up to itself.
        several = x.shape[1] > 1
        made = F.scaled_dot_product_attention(query, keys, values, is_causal=several, enable_gqa=True)
        output: Tensor = self.output_proj(made.transpose(1, 2).flatten(2))
        return output


class _Mlp(nn.Module):
    def __init__(self, sizes: Flavour):
        super().__init__()
        self.w1, self.w3 = (nn.Linear(sizes.width, sizes.mlp, bias=False) for _ in range(2))
        self.w2 = nn.Linear(sizes.mlp, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        down: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return down


def _turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) of neighbouring pairs: [rows, n, heads, head] -> the same."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)
