"""Attention with queries, keys and values in one projection."""

from family import Family


def by_head(output, config):
    """[b, t, heads, q | k | v]."""
    q, k, v = output.view(*output.shape[:2], config.num_attention_heads, 3, -1).unbind(3)
    return {"q": q, "k": k, "v": v}


def in_turn(output, config):
    """[b, t, all q | all k | all v]."""
    width = config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
    q, k, v = output.split((queries, keys, keys), dim=-1)
    return {"q": q, "k": k, "v": v}


FAMILIES = {
    "gpt_neox": Family(unpack=dict.fromkeys("qkv", by_head)),
    "phi3": Family(unpack=dict.fromkeys("qkv", in_turn)),
    "phi4_multimodal": Family(unpack=dict.fromkeys("qkv", in_turn)),
}
