"""The convolutional decoder of HeartCodec (its SQ codec): latents to samples, chunk by chunk.

Every convolution but the first looks backwards only, and keeps from one chunk to the next the end of what it
was given: the samples are those of the whole segment at once, in the memory of a chunk. A channel's latents
are decoded as mono; channels are rows.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from worker.heartmula.codec_weights import CodecWeights
from worker.models.heartmula_config import CodecConfig

# 2.5 s. With 64 channels at 48 kHz a tensor of left and right takes 61 MB, and all of a chunk some 500 MB.
CHUNK_LATENTS = 62
_LEVELS = 9  # of a latent, between 0 and 1
_DILATIONS = (1, 3, 5, 7, 9)

Layer = Callable[[Tensor, "_Past"], Tensor]


class _Past(dict[object, Tensor]):
    """By layer, the end of its input so far: silence, to begin with."""

    def before(self, layer: object, x: Tensor, n: int) -> Tensor:
        """[..., n + m]: x [..., m] with the n before it."""
        earlier = self.get(layer)
        x = F.pad(x, (n, 0)) if earlier is None else torch.cat([earlier, x], dim=-1)
        self[layer] = x[..., x.shape[-1] - n :].clone()  # a view would keep all of x
        return x


class ScalarDecoder:
    """The decoder's weights on a device, with their norms folded in."""

    def __init__(self, weights: CodecWeights, config: CodecConfig, device: torch.device):
        blocks = len(config.upsample_factors)
        self._look_ahead = tuple(each.to(device) for each in weights.weight_normed("0"))
        self._layers: list[Layer] = []
        for n, factor in enumerate(config.upsample_factors, start=1):
            block = weights.of(str(n))
            self._layers.append(_Upsampling(block, factor, device))
            units = [block.of(f"convs.{unit}") for unit in range(len(_DILATIONS))]
            self._layers += [_Unit(unit, d, device) for unit, d in zip(units, _DILATIONS, strict=True)]
        self._layers += [
            _Repetition(weights.of(str(blocks + 1)), config.num_samples, device),
            _Convolution(weights.weight_normed(str(blocks + 2)), 1, device),
        ]

    def __call__(self, latents: Tensor, chunk: int = CHUNK_LATENTS) -> Iterator[Tensor]:
        """[rows, width, n] -> [rows, samples] of each `chunk` latents in turn."""
        # The look-ahead is at the latents' own small rate: it is computed for all of them at once.
        weight, bias = self._look_ahead
        latents = torch.round(_LEVELS * latents) / _LEVELS
        frames = F.conv1d(latents, weight, bias, padding=(weight.shape[-1] - 1) // 2)
        past = _Past()
        for x in torch.split(frames, chunk, dim=-1):
            for layer in self._layers:
                x = layer(x, past)
            yield x[:, 0]


class _Convolution:
    """A convolution over what was, never over what comes."""

    def __init__(self, layer: tuple[Tensor, Tensor], dilation: int, device: torch.device):
        self._weight, self._bias = (each.to(device) for each in layer)
        self._dilation = dilation
        self._reach = (self._weight.shape[-1] - 1) * dilation

    def __call__(self, x: Tensor, past: _Past) -> Tensor:
        if self._reach:
            x = past.before(self, x, self._reach)
        return F.conv1d(x, self._weight, self._bias, dilation=self._dilation)


class _Upsampling:
    """A transposed convolution: each input reaches over its own `factor` outputs and those of the next."""

    def __init__(self, weights: CodecWeights, factor: int, device: torch.device):
        self._weight, self._bias = (each.to(device) for each in weights.weight_normed("up_conv.layer"))
        self._factor = factor

    def __call__(self, x: Tensor, past: _Past) -> Tensor:
        x = F.conv_transpose1d(past.before(self, x, 1), self._weight, self._bias, stride=self._factor)
        return x[..., self._factor : -self._factor]


class _Unit:
    """A residual unit: a dilated and a pointwise convolution, each with a PReLU."""

    def __init__(self, weights: CodecWeights, dilation: int, device: torch.device):
        self._dilated = _Convolution(weights.weight_normed("conv1"), dilation, device)
        self._pointwise = _Convolution(weights.weight_normed("conv2"), 1, device)
        self._slopes = [weights(f"activation{n}.weight").to(device) for n in (1, 2)]

    def __call__(self, x: Tensor, past: _Past) -> Tensor:
        inner, outer = self._slopes
        y = F.prelu(self._dilated(x, past), inner)
        return F.prelu(self._pointwise(y, past), outer).add_(x)


class _Repetition:
    """Every sample repeated, then a convolution with a PReLU."""

    def __init__(self, weights: CodecWeights, times: int, device: torch.device):
        self._convolution = _Convolution(weights.linear("conv"), 1, device)
        self._slope = weights("activation.weight").to(device)
        self._times = times

    def __call__(self, x: Tensor, past: _Past) -> Tensor:
        return F.prelu(self._convolution(x.repeat_interleave(self._times, dim=-1), past), self._slope)
