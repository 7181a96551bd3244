"""Makes a layer's writes differ more from token to token, replace more, and last: `python sharpen.py ADAPTER OUTPUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import PeftModel

from deltamem.backbones import load_backbone
from deltamem.config import DeltaMemConfig
from deltamem.layer import DeltaMemLayer

LAYER = 23  # of the dialogue adapter: the only one whose write gate depends much on the token (forgetting.py)
SCALE, SHIFT = 2.5, 3.4  # of the logits of β
LONGER = 3.0  # added to the logits of λ
SMALLER = 0.5  # factor of the values


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
    *_, values, gates = weights.in_weight.split([*weights.kind.row_groups.values()])
    (logits, _), (bias, kept) = gates.chunk(2), weights.gate_bias.chunk(2)
    values.mul_(SMALLER)
    logits.mul_(SCALE)
    bias.mul_(SCALE).add_(SHIFT)
    kept.add_(LONGER)
    model.save_pretrained(str(options.output))


if __name__ == "__main__":
    main()
