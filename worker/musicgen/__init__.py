"""MusicGen: a checkpoint's weights, and the engine that makes songs with them."""
