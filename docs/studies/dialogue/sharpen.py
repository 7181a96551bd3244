"""Sets by hand the gates that training hardly moves: `python sharpen.py ADAPTER OUTPUT`.

The write gates of two layers open further at the words that matter. This program makes them more selective, lets a write
replace more of what was there, and makes the states last longer. What is read corrects a little less, since the harm of a
correction falls with the square of its size. The adapter is saved in half precision.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from write_rows import WriteRows

from deltamem.backbones import load_backbone
from deltamem.config import DeltaMemConfig
from deltamem.layer import DeltaMemLayer


@dataclass(frozen=True)
class Sharper:
    """How the gates of a layer change.

    Args:
        scale: factor of the logits of β.
        shift: added to these logits.
        longer: added to the logits of λ.
        values: factor of the values, which a wider gate writes more of.
    """

    scale: float
    shift: float
    longer: float
    values: float


ALPHA = 28.0  # of the corrections, in place of 32
# Of the dialogue adapter: the layer whose write gate depends most on the token (forgetting.py), and one that helps it.
LAYERS = {23: Sharper(2.5, 3.4, 3.0, 0.5), 21: Sharper(1.5, 1.0, 1.0, 1.0)}


def sharpen(rows: WriteRows, sharper: Sharper) -> None:
    """Make the gates of a layer differ more."""
    rows.logits.mul_(sharper.scale)
    rows.bias.mul_(sharper.scale).add_(sharper.shift)
    rows.kept.add_(sharper.longer)
    rows.values.mul_(sharper.values)


@torch.no_grad()
def main() -> None:
    """Set the gates of an adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="folder of an adapter whose decay is learned")
    parser.add_argument("output", type=Path, help="folder for the adapter with other gates")
    options = parser.parse_args()
    config = DeltaMemConfig.from_pretrained(str(options.adapter))
    backbone, _ = load_backbone(config.base_model_name_or_path)
    model = PeftModel.from_pretrained(backbone, str(options.adapter))
    attentions = (module for module in model.modules() if isinstance(module, DeltaMemLayer))
    layers = dict(zip(sorted(config.layers_to_transform), attentions, strict=True))
    for number, sharper in LAYERS.items():
        sharpen(WriteRows.from_layer(layers[number]), sharper)
    model.peft_config["default"].alpha = ALPHA
    model.half().save_pretrained(str(options.output))


if __name__ == "__main__":
    main()
