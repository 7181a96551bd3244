"""Sets by hand the gates that training hardly moves: `python sharpen.py ADAPTER OUTPUT`.

One layer's write gate opens further at the words that matter. This program makes it more selective, lets a write replace more
of what was there, and makes it last longer. `--share` gives the gate to the slowest state of each other layer as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from write_rows import WriteRows

from deltamem.backbones import load_backbone
from deltamem.config import DeltaMemConfig
from deltamem.layer import DeltaMemLayer

LAYER = 23  # of the dialogue adapter: the only one whose write gate depends much on the token (forgetting.py)
SCALE, SHIFT = 2.5, 3.4  # of the logits of β
LONGER = 3.0  # added to the logits of λ
SMALLER, SMALLER_SHARED = 0.5, 0.4  # factors of the values, which a wider gate writes more of


def sharpen(rows: WriteRows) -> None:
    """Make the gates of a layer differ more."""
    rows.logits.mul_(SCALE)
    rows.bias.mul_(SCALE).add_(SHIFT)
    rows.kept.add_(LONGER)
    rows.values.mul_(SMALLER)


def share(rows: WriteRows, other: WriteRows, gains: Tensor) -> None:
    """Give another layer's slowest state a layer's gate; both read the same stream, behind norms with other `gains`."""
    other.logits[-1] = rows.logits[-1] * gains
    other.bias[-1] = rows.bias[-1]
    other.kept[-1] += LONGER
    other.values[-1] *= SMALLER_SHARED


@torch.no_grad()
def main() -> None:
    """Set the gates of an adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="folder of an adapter whose decay is learned")
    parser.add_argument("output", type=Path, help="folder for the adapter with other gates")
    parser.add_argument("--share", action="store_true", help="give the slowest state of each other layer the same gate")
    options = parser.parse_args()
    config = DeltaMemConfig.from_pretrained(str(options.adapter))
    backbone, _ = load_backbone(config.base_model_name_or_path)
    model = PeftModel.from_pretrained(backbone, str(options.adapter))
    attentions = (module for module in model.modules() if isinstance(module, DeltaMemLayer))
    gains = [layer.input_layernorm.weight.float() for layer in model.get_base_model().get_decoder().layers]
    rows = dict(zip(sorted(config.layers_to_transform), map(WriteRows.from_layer, attentions), strict=True))
    sharpen(rows[LAYER])
    for number in rows.keys() - {LAYER} if options.share else ():
        share(rows[LAYER], rows[number], gains[LAYER] / gains[number])
    model.save_pretrained(str(options.output))


if __name__ == "__main__":
    main()
