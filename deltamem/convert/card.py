"""The card of a converted adapter: what it is, where it came from, and how to use it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from deltamem.config import DeltaMemConfig

WRITES = {
    "token": "every token writes",
    "message": "the mean of every message writes",
    "sentence": "the mean of every sentence writes",
}
CARD = """\
---
base_model: {base_model}
library_name: peft
pipeline_tag: text-generation
tags:
- delta-mem
- memory
- base_model:adapter:{base_model}
---

# δ-mem for {base_model}

```python
import deltamem  # registers the PEFT method; before the adapter is loaded
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
from deltamem import ChatSession

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
chat = ChatSession(model, AutoTokenizer.from_pretrained("{base_model}"))
chat.observe("Anna's favourite colour is teal.")
print(chat.reply("What is Anna's favourite colour?"))
```

A [δ-mem](https://arxiv.org/abs/2605.12357) adapter: {writes} to {states} of {r}×{r} in each of {layers} attention layers, which
corrects {corrections}. {parameters:,} parameters; a memory takes {memory_bytes:,} bytes.

Converted by `deltamem convert` from the format of the authors' code (`delta_mem_config.json`, `delta_mem_adapter.pt`), with the
same numbers. What it was trained on, what it recalls and its licence are those of the adapter that it was made from.
"""


def card(name: str, config: DeltaMemConfig, weights: Mapping[str, Tensor]) -> str:
    """The README of an adapter in a folder of this name."""
    layers = sum(weight.endswith(".delta_mem_in.weight") for weight in weights)
    return CARD.format(
        name=name,
        base_model=config.base_model_name_or_path,
        writes=WRITES[config.write],
        states="one state" if config.num_states == 1 else f"{config.num_states} states",
        r=config.r,
        layers=layers,
        corrections=" and ".join(config.corrections),
        parameters=sum(weight.numel() for weight in weights.values()),
        memory_bytes=layers * config.num_states * config.r**2 * 4,
    )
