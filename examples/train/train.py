"""A small real training: transformers' Seq2SeqTrainer fits a tiny Whisper with random weights, on the CPU.

    python examples/train/make_audio.py data/audio_0 data/audio_1
    python examples/train/train.py --config examples/train/config.yaml [--resume CHECKPOINT]

Checkpoints go to output_dir, curves for TensorBoard to logging_dir. Resumed from a checkpoint it takes the
same steps, with the same losses, as if it had never stopped.
"""

import argparse
import os
import time
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed
from transformers.models.whisper import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

PAD, START, END = 0, 1, 2
FIRST_TONE = 3  # its token; the others follow
N_MELS = 16


class Melodies(torch.utils.data.Dataset[dict[str, Any]]):
    """The files of these folders: what is heard, and the tones in the file's name."""

    def __init__(self, folders: list[str]):
        self._files = [path for folder in folders for path in sorted(Path(folder).glob("*.wav"))]
        self._features = WhisperFeatureExtractor(feature_size=N_MELS, chunk_length=1)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._files[index]
        with wave.open(str(path), "rb") as file:
            audio = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
            heard = self._features(audio, sampling_rate=file.getframerate(), return_tensors="np")
        tones = [FIRST_TONE + int(digit) for digit in path.stem.partition("_")[0]]
        return {"input_features": heard.input_features[0], "labels": [*tones, END]}


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with a pause in each step."""

    step_s = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the original, after the pause."""
        time.sleep(self.step_s)
        return super().training_step(*args, **kwargs)


def new_model(d_model: int, layers: int, dropout: float) -> WhisperForConditionalGeneration:
    """A Whisper of this size with random weights."""
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=FIRST_TONE + 8,
            d_model=d_model,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=2 * d_model,
            decoder_ffn_dim=2 * d_model,
            dropout=dropout,
            num_mel_bins=N_MELS,
            max_source_positions=50,  # two frames of the spectrogram each: one second
            max_target_positions=32,
            pad_token_id=PAD,
            bos_token_id=START,
            eos_token_id=END,
            decoder_start_token_id=START,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )


def main() -> None:
    """Train as the configuration says, from the start or from a checkpoint."""
    parser = argparse.ArgumentParser(description="Train a tiny Whisper.")
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--resume", help="checkpoint to go on from")
    given = parser.parse_args()
    config = yaml.safe_load(Path(given.config).read_text("utf-8"))
    training = config["training"]

    torch.set_num_threads(1)  # a model this small only loses time with more
    set_seed(training["seed"])
    os.environ["TENSORBOARD_LOGGING_DIR"] = training["logging_dir"]
    trainer = Trainer(
        model=new_model(**config["model"]),
        args=Seq2SeqTrainingArguments(
            output_dir=training["output_dir"],
            max_steps=training["max_steps"],
            save_steps=training["save_steps"],
            save_total_limit=training["save_total_limit"],
            logging_steps=training["logging_steps"],
            per_device_train_batch_size=training["batch_size"],
            learning_rate=training["learning_rate"],
            seed=training["seed"],
            enable_jit_checkpoint=training["enable_jit_checkpoint"],
            report_to=["tensorboard"],
            use_cpu=True,
        ),
        train_dataset=Melodies(config["data"]["audio_dirs"]),
    )
    trainer.step_s = training["step_s"]
    trainer.train(resume_from_checkpoint=given.resume)


if __name__ == "__main__":
    main()
