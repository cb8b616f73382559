"""Flow matching: noise becomes a segment's latents, along the estimator's directions (Lipman et al. 2023).

Segments of several songs are solved together, one row each. The first latents of a segment may be given, as
those that it shares with the segment before: they are led along a straight line to what they must become.
Every row is guided by itself without its condition.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from worker.engine import Abandoned, Solver
from worker.heartmula.codec_weights import CodecWeights
from worker.heartmula.estimator import Estimator
from worker.models.heartmula_config import CodecConfig

# How wide noise is at the end of that line, of 1 at its beginning.
_SIGMA = 1e-6


class Flow:
    """The estimator, and the solver's moments and step widths."""

    def __init__(self, weights: CodecWeights, config: CodecConfig, solver: Solver, device: torch.device):
        times, widths = _schedule(solver.steps)
        self._estimator = Estimator(weights, config, times, device)
        self._times, self._widths = times.to(device), widths.to(device)
        self._guidance = solver.guidance

    def __call__(
        self, noise: Tensor, condition: Tensor, given: Tensor, n_given: Tensor, go_on: Callable[[], bool]
    ) -> Tensor:
        """Latents of one segment of each song: [songs, n, width], as the noise.

        condition [songs, n, dim]; given [songs, n, width], of which the first n_given [songs] count.
        Calls `go_on` before each step; raises Abandoned when it returns False.
        """
        is_given = (torch.arange(noise.shape[1], device=noise.device) < n_given[:, None])[..., None]
        given = torch.where(is_given, given, 0.0)
        x = noise
        for moment, (time, width) in enumerate(zip(self._times, self._widths, strict=True)):
            if not go_on():
                raise Abandoned
            x = torch.where(is_given, (1 - (1 - _SIGMA) * time) * noise + time * given, x)
            x = x + width * self._direction(x, given, condition, moment)
        return torch.where(is_given, given, x)

    def _direction(self, x: Tensor, given: Tensor, condition: Tensor, moment: int) -> Tensor:
        conditional = torch.cat([x, given, condition], dim=-1)
        if self._guidance <= 1:
            return self._estimator(conditional, moment)
        unconditional = torch.cat([x, given, torch.zeros_like(condition)], dim=-1)
        without, with_it = self._estimator(torch.cat([unconditional, conditional]), moment).chunk(2)
        return without + self._guidance * (with_it - without)


def _schedule(steps: int) -> tuple[Tensor, Tensor]:
    """Where each step begins and how wide it is. Summed up as heartlib does, so that it rounds alike."""
    span = torch.linspace(0, 1, steps + 1)
    times, widths = [span[0]], [span[1] - span[0]]
    for end in span[2:]:
        times.append(times[-1] + widths[-1])
        widths.append(end - times[-1])
    return torch.stack(times), torch.stack(widths)
