"""A tiny MusicGen with random weights, to rehearse everything except the music.

It has the files of a real checkpoint (config, tokenizer, processor, generation config, safetensors)
and loads through `from_pretrained`. It takes a few MB, is built in seconds, and is always the same.
Its songs are noise.
"""

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    EncodecConfig,
    EncodecFeatureExtractor,
    MusicgenConfig,
    MusicgenDecoderConfig,
    MusicgenForConditionalGeneration,
    MusicgenProcessor,
    T5Config,
    T5Tokenizer,
)

VOCABULARY = 256
_WORDS = (
    "music upbeat electronic dance heavy bass cinematic epic drums piano guitar ambient slow soft".split()
)


def config(channels: int = 1) -> MusicgenConfig:
    """A small MusicGen: 4 codebooks for each channel at 50 frames per second, 32 kHz."""
    text = T5Config(vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    decoder = MusicgenDecoderConfig(
        vocab_size=VOCABULARY,
        num_codebooks=4 * channels,
        audio_channels=channels,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        ffn_dim=128,
        pad_token_id=VOCABULARY,
        bos_token_id=VOCABULARY,
        decoder_start_token_id=VOCABULARY,
    )
    codec = EncodecConfig(
        sampling_rate=32_000,
        num_filters=4,
        upsampling_ratios=[8, 5, 4, 4],
        hidden_size=16,
        codebook_size=VOCABULARY,
        target_bandwidths=[1.6],  # kbit/s: four codebooks of 8 bits at 50 Hz
        use_causal_conv=False,
        use_conv_shortcut=False,
    )
    return MusicgenConfig(text_encoder=text, audio_encoder=codec, decoder=decoder)


def build(folder: Path, channels: int = 1) -> None:
    """Write the rehearsal model, or its stereo variant, into `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MusicgenForConditionalGeneration(config(channels)).eval()
        _randomise(model)
    generation = model.generation_config
    generation.pad_token_id = generation.bos_token_id = generation.decoder_start_token_id = VOCABULARY
    generation.guidance_scale, generation.max_length, generation.do_sample = 3.0, 1500, True
    model.save_pretrained(folder)
    features = EncodecFeatureExtractor(feature_size=channels, sampling_rate=32_000)
    MusicgenProcessor(feature_extractor=features, tokenizer=_tokenizer()).save_pretrained(folder)


def _randomise(model: MusicgenForConditionalGeneration) -> None:
    """Set random weights, large enough that prompt, history and codebooks affect the song.

    transformers leaves the codebooks at zero: the audio would not depend on the tokens.
    """
    for layer in model.audio_encoder.quantizer.layers:
        layer.codebook.embed.normal_()
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and not name.startswith("audio_encoder"):
            large = any(part in name for part in ("embed", "enc_to_dec_proj", "text_encoder"))
            weight.data.normal_(0.0, 0.3 if large else 0.12)


def _tokenizer() -> T5Tokenizer:
    """A T5 tokenizer over single characters and a few words. Not trained: training is not reproducible."""
    characters = [*string.ascii_letters, *string.digits, *string.punctuation, "▁"]
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces += [(c, -8.0) for c in characters] + [(f"▁{word}", -6.0) for word in _WORDS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return T5Tokenizer(tokenizer_object=tokenizer, extra_ids=0, model_max_length=512)
