"""Counts the kernels that a step would launch, with tensors that only have a shape."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode

# They only describe memory.
_VIEWS = set(
    "view _unsafe_view transpose permute unsqueeze squeeze slice select expand t unbind detach split chunk"
    " as_strided alias reshape lift_fresh flatten device new_empty view_as_complex view_as_real".split()
)


class Kernels(TorchDispatchMode):
    """Counts what would be launched."""

    def __init__(self):
        super().__init__()
        self.by_name = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator._schema.name.split("::")[1]
        if name not in _VIEWS:
            self.by_name[name] += 1
        return operator(*args, **(kwargs or {}))
