"""A made-up architecture that nobody registered: docs/porting.md ports it, and test_porting.py runs what stands there.

Its attention is called by no usual name, takes no keywords, and has one projection for all: for each key its value, its key and
the queries that share it.
"""

from einops import rearrange
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class HeronConfig(PreTrainedConfig):
    model_type = "heron"

    def __init__(
        self,
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        **options,
    ):
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.num_key_value_heads = num_attention_heads, num_key_value_heads
        self.initializer_range = initializer_range
        super().__init__(**options)


def eager_attention(module, query, key, value, mask, **options):
    repeated = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(repeated, dim=1) for part in (key, value))
    scores = query @ key.mT / query.shape[-1] ** 0.5 + mask
    return rearrange(scores.softmax(-1) @ value, "b h t d -> b t h d"), None


class Gaze(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.config, self.index, self.is_causal = config, index, True
        self.width = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        parts = config.num_attention_heads + 2 * config.num_key_value_heads
        self.mix = nn.Linear(config.hidden_size, parts * self.width, bias=False)
        self.settle = nn.Linear(config.num_attention_heads * self.width, config.hidden_size, bias=False)

    def forward(self, seen, mask, cache):
        mixed = rearrange(self.mix(seen), "b t (k part d) -> part b k t d", k=self.config.num_key_value_heads, d=self.width)
        value, key, query = mixed[0], mixed[1], rearrange(mixed[2:], "q b k t d -> b (k q) t d")
        if cache is not None:
            key, value = cache.update(key, value, self.index)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        attended, _ = attend(self, query, key, value, mask)
        return self.settle(rearrange(attended, "b t h d -> b t (h d)"))


class HeronLayer(GradientCheckpointingLayer):
    def __init__(self, config, index):
        super().__init__()
        self.gaze = Gaze(config, index)
        self.before_gaze, self.before_wings = nn.LayerNorm(config.hidden_size), nn.LayerNorm(config.hidden_size)
        self.wings = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden, mask, past_key_values=None):
        hidden = hidden + self.gaze(self.before_gaze(hidden), mask, past_key_values)
        return hidden + self.wings(self.before_wings(hidden)).tanh()


class HeronForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = HeronConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.flock = nn.ModuleList(HeronLayer(config, index) for index in range(config.num_hidden_layers))
        self.cry = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=True, cache=None, **unknown):
        hidden = self.words(input_ids)
        cache = past_key_values if cache is None else cache  # transformers 5.24 calls it so, and in generate nothing else
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        mask = create_causal_mask(self.config, hidden, attention_mask, cache)
        for layer in self.flock:
            hidden = layer(hidden, mask, past_key_values=cache)
        return CausalLMOutputWithPast(logits=self.cry(hidden), past_key_values=cache if use_cache else None)


AutoConfig.register("heron", HeronConfig, exist_ok=True)
AutoModelForCausalLM.register(HeronConfig, HeronForCausalLM, exist_ok=True)
