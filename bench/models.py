"""Models of MusicGen's real sizes with random weights: as fast as the real ones."""

from typing import Any

import torch
from transformers import (
    EncodecConfig,
    EncodecModel,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from worker.musicgen.pretrained import Pretrained

# hidden, layers, heads, ffn of facebook/musicgen-*
SIZES = {"small": (1024, 24, 16, 4096), "medium": (1536, 48, 24, 6144), "large": (2048, 48, 32, 8192)}
# Of every size and variant.
TEXT = T5Config(vocab_size=32_128, d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
CODEC = EncodecConfig(
    sampling_rate=32_000,
    num_filters=64,
    upsampling_ratios=[8, 5, 4, 4],
    hidden_size=128,
    codebook_size=2048,
    target_bandwidths=[2.2],
    use_causal_conv=False,
    use_conv_shortcut=False,
)
PROMPT_TOKENS = 16


class Words:
    """A tokenizer of random tokens: every prompt has PROMPT_TOKENS of them."""

    def __call__(self, prompt: str | list[str], **_: object) -> Any:
        from transformers import BatchEncoding

        prompts = [prompt] if isinstance(prompt, str) else prompt
        seeds = [sum(map(ord, text)) for text in prompts]
        ids = torch.stack(
            [
                torch.randint(3, 32_000, (PROMPT_TOKENS,), generator=torch.Generator().manual_seed(s))
                for s in seeds
            ]
        )
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def text_encoder_and_codec() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Those of every size, with weights that are not set."""
    return T5EncoderModel(TEXT), EncodecModel(CODEC)


def build(size: str) -> Pretrained:
    """A model of `facebook/musicgen-{size}`'s shape, fp32 on the CPU, always the same."""
    hidden, layers, heads, ffn = SIZES[size]
    decoder = MusicgenDecoderConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, ffn_dim=ffn
    )
    torch.manual_seed(0)
    model = MusicgenForConditionalGeneration(
        MusicgenConfig(text_encoder=TEXT, audio_encoder=CODEC, decoder=decoder)
    ).eval()
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()  # zero by default: the audio would not depend on the tokens
    generation = model.generation_config
    generation.pad_token_id = generation.bos_token_id = generation.decoder_start_token_id = 2048
    generation.guidance_scale, generation.max_length, generation.do_sample = 3.0, 1500, True
    return Pretrained(model, Words(), f"musicgen-{size}, random weights", "0")
