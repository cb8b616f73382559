"""A prompt's text states: the checkpoint's text encoder, and the projection to the decoder's width.

On a CPU their linear layers are multiplied by this project's kernel: torch's own round differently with
another number of threads, and are slower for a prompt's few rows.
"""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from worker.decoding.beside import beside
from worker.decoding.linear import CompiledLinear, has_kernel
from worker.decoding.plan import Work
from worker.engine import Song
from worker.errors import BadInput
from worker.musicgen.pretrained import Pretrained

# Tokens of a prompt. A text of twice a window's columns takes as much memory as both halves of the window.
_MAX_TEXT = 3000


class TextEncoder:
    """Encodes prompts. fp32 on every device: T5 overflows in fp16."""

    def __init__(self, loaded: Pretrained, device: torch.device):
        self._tokenizer, self._device = loaded.tokenizer, device
        self._encoder: nn.Module = loaded.model.text_encoder
        self._projection: nn.Module = getattr(loaded.model, "enc_to_dec_proj", nn.Identity())
        self.is_packed = device.type == "cpu" and has_kernel()
        if self.is_packed:
            n_threads = torch.get_num_threads()
            self._encoder, self._projection = (
                _packed(m, n_threads) for m in (self._encoder, self._projection)
            )
        else:
            self._encoder, self._projection = self._encoder.to(device), self._projection.to(device)

    @property
    def parts(self) -> tuple[nn.Module, nn.Module]:
        """What lies on the device: the encoder and the projection."""
        return self._encoder, self._projection

    @torch.inference_mode()
    def __call__(self, prompt: str) -> Tensor:
        """[n_text, hidden] on the CPU, without padding: the prompt is encoded alone.

        Raises BadInput for one that is too long.
        """
        # On all cores of a CPU: it is short, and at the start every slot waits for it.
        with beside(self._device, one_core=self.is_packed):
            # verbose: T5 takes any length; the tokenizer's warning about 512 tokens is a false one.
            inputs = self._tokenizer(prompt, return_tensors="pt", verbose=False)
            if (n_text := inputs.input_ids.shape[1]) > _MAX_TEXT:
                raise BadInput(f"its prompt has {n_text} tokens where {_MAX_TEXT} are possible; shorten it")
            states = self._encoder(**inputs.to(self._device)).last_hidden_state
            projected: Tensor = self._projection(states)
            return projected[0].cpu()


class TextPrefetch:
    """Works whose texts are encoded one work ahead, in a thread, so that no slot waits for them."""

    def __init__(self, works: Iterator[Work], encode: Callable[[str], Tensor]):
        self._works, self._encode = works, encode
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="text")
        self._texts: dict[str, Future[Tensor]] = {}
        self._next: list[Work] = []

    def __enter__(self) -> "TextPrefetch":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[Work]:
        return self

    def __next__(self) -> Work:
        if not self._next:
            self._look_ahead()
        if not self._next:
            raise StopIteration
        work = self._next.pop()
        self._look_ahead()
        return work

    def text_of(self, song: Song) -> Tensor:
        """The song's text states; encoded now if they were not encoded ahead."""
        # Always in the pool's thread: another number of threads could round the states differently.
        future = self._texts.pop(song.key, None) or self._pool.submit(self._encode, song.prompt)
        return future.result()

    def _look_ahead(self) -> None:
        if work := next(self._works, None):
            self._next.append(work)
            self._texts[work.song.key] = self._pool.submit(self._encode, work.song.prompt)


class _Packed(nn.Module):
    """An `nn.Linear` with packed weights."""

    weight = None  # T5 asks for its precision, and takes None for any

    def __init__(self, linear: nn.Linear, threads: int):
        super().__init__()
        self._multiply = CompiledLinear(linear.weight.detach(), threads=threads)
        self._bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., n_in] -> [..., n_out]."""
        y = self._multiply(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], -1)
        return y if self._bias is None else y + self._bias


def _packed(module: nn.Module, n_threads: int) -> nn.Module:
    """A copy whose linear layers are packed and use this many threads. It shares all other weights."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    whole = nn.ModuleList([copy.deepcopy(module, shared)])  # the module itself can be a linear layer
    for parent in list(whole.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, _Packed(child, n_threads))
    return whole[0]
