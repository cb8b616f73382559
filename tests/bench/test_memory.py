"""The arithmetic of GPU memory against what models of real sizes allocate, on tensors without values."""

import weakref

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForCausalLM,
    MusicgenForConditionalGeneration,
)

from bench import cards, models
from bench.memory import module_bytes
from worker.decoding import device
from worker.musicgen import codec, windows
from worker.musicgen.attention import Sdpa
from worker.musicgen.layers import Placement
from worker.musicgen.model import Model
from worker.musicgen.stepper import Stepper

pytestmark = pytest.mark.xdist_group("engine")

SLOTS = 3
HALF = torch.float16


def decoder_config(size, channels):
    hidden, n_layers, n_heads, ffn = models.SIZES[size]
    return MusicgenDecoderConfig(
        hidden_size=hidden,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        ffn_dim=ffn,
        num_codebooks=4 * channels,
        audio_channels=channels,
    )


def stepper_of(config, slots):
    """With fp16 weights and plain layers, as on a GPU; within a FakeTensorMode."""
    n_columns = windows.n_columns(cards.WINDOW, config.num_codebooks, config.audio_channels)
    placement = Placement(torch.device("cpu"), HALF)
    return Stepper(Model(MusicgenForCausalLM(config), placement, Sdpa(HALF), n_columns), slots, n_columns)


@pytest.fixture(scope="module", params=[("small", 1), ("small", 2)], ids=str)
def built(request):
    """(what the arithmetic says, a stepper of that size)."""
    needed = cards.needs(*request.param, HALF)
    with FakeTensorMode(), torch.inference_mode():
        return needed, stepper_of(decoder_config(*request.param), SLOTS)


def floats(part):
    """Every tensor of floats that an object holds."""
    if isinstance(part, torch.Tensor):
        return [part] if part.is_floating_point() else []
    inner = (
        part if isinstance(part, list | tuple) else vars(part).values() if hasattr(part, "__dict__") else []
    )
    return [tensor for one in inner for tensor in floats(one)]


def test_decoder_weights_are_as_computed(built):
    needed, stepper = built
    assert sum(tensor.nbytes for tensor in floats(stepper._model)) == needed.decoder


def test_cache_of_a_slot_is_as_computed(built):
    needed, stepper = built
    assert sum(tensor.nbytes for tensor in floats(stepper._cache)) == SLOTS * needed.cache


def test_columns_of_a_slot_are_as_computed(built):
    needed, stepper = built
    assert stepper._columns.nbytes + stepper._uniform.nbytes == SLOTS * needed.columns


def test_text_encoder_and_codec_are_as_computed():
    with torch.device("meta"):
        parts = MusicgenConfig(
            text_encoder=models.TEXT, audio_encoder=models.CODEC, decoder=decoder_config("small", 1)
        )
        whole = MusicgenForConditionalGeneration(parts)
    beside = module_bytes([whole.text_encoder, whole.audio_encoder, whole.enc_to_dec_proj])
    assert cards.needs("small", 1, HALF).beside == beside


@pytest.mark.parametrize("model", cards.MODELS, ids=str)
@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
def test_slots_chosen_by_default_are_the_most_that_fit(model, dtype):
    needed = cards.needs(*model, dtype)
    for card in cards.CARDS:
        slots, room = cards.slots(card, needed), card.n_bytes - cards.CONTEXT_BYTES
        # Columns are not part of the choice: what is spared holds them.
        assert slots == 0 or needed.total(slots) <= room - 0.9 * device.SPARE_BYTES, card
        most = device.MAX_SLOTS["cuda"]
        assert slots == most or needed.total(slots + 1) > room - device.SPARE_BYTES, card


class Live(TorchDispatchMode):
    """The most bytes that were alive at a time of what was allocated within."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._views = {}

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        before = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata in self._views:
                self._views[storage._cdata] += 1
            elif storage._cdata in before:
                continue  # a view of what was there
            else:
                self._views[storage._cdata] = 1
                self.now += storage.nbytes()
            weakref.finalize(tensor, self._gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _gone(self, storage, n_bytes):
        self._views[storage] -= 1
        if not self._views[storage]:
            del self._views[storage]
            self.now -= n_bytes


def test_what_is_spared_holds_a_step_a_fill_and_decoding_at_once():
    config, slots = decoder_config("large", 1), device.MAX_SLOTS["cuda"]
    config.num_hidden_layers = 2  # one layer's results are gone before the next one's are there
    with FakeTensorMode(), torch.inference_mode():
        stepper = stepper_of(config, slots)
        _, encodec = models.text_encoder_and_codec()
        with Live() as step:
            stepper._advance(cards.WINDOW, slots)
        with Live() as fill:
            stepper.fill(0, 0, cards.WINDOW)
        n_frames = codec.CHUNK_FRAMES + 2 * codec.HALO_FRAMES
        x = torch.empty(1, encodec.config.num_filters * 16, n_frames)
        with Live() as decode:
            for layer in encodec.decoder.layers[2:]:  # those before them work at 50 Hz
                x = layer(x)
    assert min(step.most, fill.most, decode.most) > 10e6
    assert step.most + fill.most + decode.most < device.SPARE_BYTES
