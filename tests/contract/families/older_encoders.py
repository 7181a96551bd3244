"""Encoders with a causal head, and the decoders of encoder-decoders alone."""

from family import Family

DECODER = {"is_decoder": True}
FREE_END = {"forced_eos_token_id": None}  # or the last token of a generation would be no beam search's
NO_SDPA = {"eager and sdpa": "transformers has no SDPA for it"}
POSITIONS = {"left padding": "transformers counts the padding as positions"}

FAMILIES = {
    "bart": Family(FREE_END, lacks=POSITIONS),
    "bert": Family(DECODER),
    "bert-generation": Family(DECODER),
    "big_bird": Family({**DECODER, "attention_type": "original_full"}, lacks=NO_SDPA),
    "bigbird_pegasus": Family(lacks={**NO_SDPA, **POSITIONS}),
    "blenderbot": Family(FREE_END, lacks=POSITIONS),
    "blenderbot-small": Family(FREE_END, lacks=POSITIONS),
    "camembert": Family(DECODER),
    "data2vec-text": Family(DECODER),
    "electra": Family({**DECODER, "embedding_size": 32}),
    "ernie": Family(DECODER),
    "marian": Family({**FREE_END, "decoder_vocab_size": 61}, lacks=POSITIONS),
    "mbart": Family(FREE_END, lacks=POSITIONS),
    "megatron-bert": Family(DECODER, lacks=NO_SDPA),
    "moshi": Family({"sliding_window": 256}),
    "mvp": Family(FREE_END, lacks={**NO_SDPA, **POSITIONS}),
    "pegasus": Family(FREE_END, lacks=POSITIONS),
    "plbart": Family(FREE_END, lacks=POSITIONS),
    "rembert": Family({**DECODER, "input_embedding_size": 32, "output_embedding_size": 32}, lacks=NO_SDPA),
    "roberta": Family(DECODER),
    "roberta-prelayernorm": Family(DECODER),
    "roc_bert": Family(
        {
            **DECODER,
            **dict.fromkeys(("shape_vocab_size", "pronunciation_vocab_size"), 16),
            **dict.fromkeys(("shape_embed_dim", "pronunciation_embed_dim"), 8),
        }
    ),
    "roformer": Family({**DECODER, "initializer_range": 0.1}, lacks=NO_SDPA),
    "trocr": Family(lacks={**NO_SDPA, **POSITIONS}),
    "whisper": Family(lacks=POSITIONS),
    "xlm-roberta": Family(DECODER),
    "xlm-roberta-xl": Family(DECODER),
    "xmod": Family({**DECODER, "default_language": "en_XX"}),
}
