"""Sets the gates that decide over hundreds of tokens, which a step's gradient hardly moves: `python sharpen.py ADAPTER OUTPUT`.

The write gate of one layer tells from the others what matters. Here it does so more, replaces more of what was there, and what
is written lasts. `--share` gives this gate to the slowest state of each other layer as well.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from deltamem.backbones import load_backbone
from deltamem.config import DeltaMemConfig
from deltamem.layer import DeltaMemLayer

LAYER = 23  # of the dialogue adapter: the only one whose write gate depends much on the token (forgetting.py)
SCALE, SHIFT = 2.5, 3.4  # of the logits of β
LONGER = 3.0  # added to the logits of λ
SMALLER, SMALLER_SHARED = 0.5, 0.4  # factors of the values, which a wider gate writes more of


@dataclass(frozen=True)
class Rows:
    """The weights that write in one layer: views, with one part per state first, N states of r rows each.

    Args:
        values: `[N, r, W]`.
        logits: of β, `[N, r, W]`.
        bias: of β, `[N, r]`.
        kept: the bias of λ, `[N, r]`.
        gain: of the norm before the layer's attention, `[W]`.
    """

    values: Tensor
    logits: Tensor
    bias: Tensor
    kept: Tensor
    gain: Tensor

    @classmethod
    def from_layer(cls, layer: DeltaMemLayer, gain: Tensor) -> Rows:
        """The rows of a layer whose decay is learned."""
        weights = layer.active_weights
        states = weights.config.num_states
        *_, values, gates = weights.in_weight.split([*weights.kind.row_groups.values()])
        bias, kept = weights.gate_bias.chunk(2)
        return cls(*(rows.unflatten(0, (states, -1)) for rows in (values, gates.chunk(2)[0], bias, kept)), gain)

    def sharpen(self) -> None:
        """Let these gates differ more."""
        self.logits.mul_(SCALE)
        self.bias.mul_(SCALE).add_(SHIFT)
        self.kept.add_(LONGER)
        self.values.mul_(SMALLER)

    def share(self, other: Rows) -> None:
        """Give another layer's slowest state the gate of this layer's: both read the same stream, behind other norms."""
        other.logits[-1] = self.logits[-1] * self.gain / other.gain
        other.bias[-1] = self.bias[-1]
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
    rows = {
        number: Rows.from_layer(attention, gains[number])
        for number, attention in zip(sorted(config.layers_to_transform), attentions, strict=True)
    }
    rows[LAYER].sharpen()
    for other in (rows[number] for number in rows if number != LAYER and options.share):
        rows[LAYER].share(other)
    model.save_pretrained(str(options.output))


if __name__ == "__main__":
    main()
