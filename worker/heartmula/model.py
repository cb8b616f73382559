"""HeartMuLa's language model, loaded from a checked folder: the backbone and the depth decoder."""

import torch

from worker.decoding.linear import has_kernel
from worker.heartmula.attention import Compiled
from worker.heartmula.backbone import Backbone
from worker.heartmula.cache import Cache, CacheSize
from worker.heartmula.depth import Depth
from worker.heartmula.layers import Placement
from worker.heartmula.weights import Weights
from worker.models.heartmula_config import MulaConfig
from worker.models.heartmula_tree import Tree
from worker.songs import families

SAMPLING = families.HEARTMULA.sampling  # heartlib's defaults


class Model:
    """Both Llamas on a device in a precision. `n_codes`: tokens below it can be decoded."""

    def __init__(self, config: MulaConfig, n_codes: int, weights: Weights, placement: Placement):
        self.config, self.placement = config, placement
        self.backbone = Backbone(config, weights, placement)
        self.depth = Depth(config, n_codes, self.backbone, weights, placement)

    @classmethod
    def of(cls, tree: Tree, placement: Placement) -> "Model":
        """The language model in a folder that heartmula_tree.check has found whole."""
        return cls(tree.mula, tree.codec.codebook_size, Weights(tree.mula_weights), placement)

    @property
    def is_row_exact(self) -> bool:
        """True if a song's tokens depend neither on the other slots nor on which positions were filled.

        Elsewhere they do not depend on what the other slots hold, but may on how many are computed, and
        how far the longest is: shapes decide how a matrix product rounds.
        """
        compiled = isinstance(self.backbone.llama.attention, Compiled)
        return compiled and self.placement.dtype == torch.float32 and has_kernel()

    def caches(self, size: CacheSize) -> tuple[Cache, Cache]:
        """Empty ones for the backbone and the depth decoder."""
        of_a_frame = CacheSize(size.slots, size.halves, self.depth.n_codebooks)
        return (
            Cache(self.config.backbone, size, self.placement),
            Cache(self.config.decoder, of_a_frame, self.placement),
        )

    def n_bytes(self, size: CacheSize) -> int:
        """Bytes that the backbone's cache takes; the other's are few."""
        return Cache.n_bytes(self.config.backbone, size, self.placement.dtype)
