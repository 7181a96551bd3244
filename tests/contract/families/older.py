"""Attention of the first decoders: biases, learned positions or none, and packed projections of all kinds."""

from family import Family
from transformers import GPTJPreTrainedModel


def by_head(output, config):
    """[b, t, heads, q | k | v]."""
    q, k, v = output.view(*output.shape[:2], config.num_attention_heads, 3, -1).unbind(3)
    return {"q": q, "k": k, "v": v}


def in_thirds(output, config):
    """[b, t, all q | all k | all v]."""
    return dict(zip("qkv", output.chunk(3, dim=-1), strict=True))


def in_four_groups(output, config):
    """[b, t, 4, q | v | k]."""
    return dict(zip("qvk", output.view(*output.shape[:2], 4, -1).chunk(3, dim=-1), strict=True))


def one_key_for_all(output, config):
    """[b, t, q of all heads | k of one | v of one]."""
    width = config.hidden_size // config.num_attention_heads
    return dict(zip("qkv", output.split((config.hidden_size, width, width), dim=-1), strict=True))


def by_key(output, config):
    """[b, t, heads of the keys, their q | k | v]."""
    heads = output.view(*output.shape[:2], config.num_kv_heads, -1, config.hidden_size // config.num_attention_heads)
    return {"q": heads[..., :-2, :], "k": heads[..., -2, :], "v": heads[..., -1, :]}


def two_keys(output, config):
    """[b, t, q of all heads | k of two | v of two]."""
    width = 2 * config.hidden_size // config.num_attention_heads
    return dict(zip("qkv", output.split((config.hidden_size, width, width), dim=-1), strict=True))


def packed(unpack):
    return dict.fromkeys("qkv", unpack)


NO_SDPA = {"eager and sdpa": "transformers has no SDPA for it"}
SDPA_SINCE_5_24 = {} if GPTJPreTrainedModel._supports_sdpa else NO_SDPA
NO_CHECKPOINTING = {"activation checkpointing": "transformers refuses it"}
NO_CACHE = {"cached decoding": "transformers has no KV cache for it"}

FAMILIES = {
    "biogpt": Family(),
    "bitnet": Family(),
    "bloom": Family(unpack=packed(by_head), lacks=NO_SDPA),
    "codegen": Family({"rotary_dim": 4}, unpack=packed(in_four_groups), lacks=SDPA_SINCE_5_24),
    "ctrl": Family({"dff": 48}, lacks=NO_CHECKPOINTING),
    "dbrx": Family(
        {
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        },
        unpack=packed(two_keys),
    ),
    "falcon": Family(unpack=packed(one_key_for_all)),
    "falcon:by_head": Family({"multi_query": False, "num_kv_heads": 4}, unpack=packed(by_head)),
    "falcon:by_key": Family({"new_decoder_architecture": True, "num_kv_heads": 2}, unpack=packed(by_key)),
    "fuyu": Family(unpack=packed(by_head)),
    "gpt-sw3": Family(unpack=packed(in_thirds)),
    "gpt2": Family(unpack=packed(in_thirds)),
    "gpt_bigcode": Family(unpack=packed(one_key_for_all)),
    "gpt_bigcode:by_head": Family({"multi_query": False}, unpack=packed(by_head)),
    "gpt_neo": Family(
        {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"], "window_size": 8},
        lacks=NO_SDPA,
    ),
    "gpt_neox_japanese": Family(unpack=packed(by_head), lacks={**NO_SDPA, **NO_CHECKPOINTING}),
    "gptj": Family({"rotary_dim": 4}, lacks=SDPA_SINCE_5_24),
    "modernbert-decoder": Family(),
    "mpt": Family(unpack=packed(in_thirds), lacks=NO_SDPA),
    "nemotron": Family({"num_key_value_heads": 2}),
    "openai-gpt": Family(unpack=packed(in_thirds), lacks={**NO_CACHE, **NO_SDPA, **NO_CHECKPOINTING}),
    "opt": Family(),
    "persimmon": Family(unpack=packed(by_head)),
    "stablelm": Family({"qk_layernorm": True}),
    "xglm": Family(lacks=NO_SDPA),
}
