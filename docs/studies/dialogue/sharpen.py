"""Makes a layer's write gates differ more from token to token, and its memories last: `python sharpen.py ADAPTER OUTPUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import PeftModel

from deltamem.backbones import load_backbone
from deltamem.config import DeltaMemConfig
from deltamem.layer import DeltaMemLayer

LAYER = 23  # of the dialogue adapter: the only one whose write gate depends much on the token (forgetting.py)
SCALE, SHIFT = 1.6, 0.8  # of the logits of β; at values, these stay where they were
LONGER = 3.0  # added to the logit of λ


@torch.no_grad()
def main() -> None:
    """Sharpen one layer of an adapter."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("adapter", type=Path, help="folder of an adapter whose decay is learned")
    parser.add_argument("output", type=Path, help="folder for the sharpened adapter")
    options = parser.parse_args()
    backbone, _ = load_backbone(DeltaMemConfig.from_pretrained(str(options.adapter)).base_model_name_or_path)
    model = PeftModel.from_pretrained(backbone, str(options.adapter))
    (layer,) = (
        module for module in model.modules() if isinstance(module, DeltaMemLayer) and f".{LAYER}." in f".{module.name}."
    )
    weights = layer.active_weights
    gates = weights.in_weight[-weights.kind.bias_rows :]
    write_logits, write_bias = gates.chunk(2)[0], weights.gate_bias.chunk(2)[0]
    write_logits.mul_(SCALE)
    write_bias.mul_(SCALE).add_(SHIFT)
    weights.gate_bias.chunk(2)[1].add_(LONGER)
    model.save_pretrained(str(options.output))


if __name__ == "__main__":
    main()
