"""BART and its descendants: the decoders alone, without the encoder that they were trained with."""

from dataclasses import replace

from deltamem.hook import AttentionHook, Unsupported

BART = AttentionHook(o="out_proj")

HOOKS = {
    **dict.fromkeys(
        (
            "bart",
            "bigbird_pegasus",
            "blenderbot",
            "blenderbot-small",
            "marian",
            "mbart",
            "pegasus",
            "plbart",
            "whisper",
        ),
        BART,
    ),
    **dict.fromkeys(("mvp", "trocr"), replace(BART, keywords=False)),
    "prophetnet": Unsupported("its attention sees every token once for each of the n-grams that it predicts"),
}
