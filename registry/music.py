"""MusicGen: generates sound, not text."""

from deltamem.hook import Unsupported

HOOKS = dict.fromkeys(
    ("musicgen", "musicgen_decoder", "musicgen_melody", "musicgen_melody_decoder"),
    Unsupported("its tokens are sound, several rows of codes for each row of the batch"),
)
