"""Trains read gates for a dialogue adapter, and leaves its other weights as they are.

`python read_gate.py OUTPUT --data FOLDER --adapter ADAPTER --minutes 12 --learning-rate 1e-3`, with the options of
`../dialogue/train.py`; `python ../dialogue/measure.py ADAPTER --data FOLDER` has the same figures without gates.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn

import deltamem

sys.path.append(str(Path(__file__).parents[1] / "dialogue"))

import kinds  # noqa: F401  (registers `read_gate`)
import train
from layers import FrozenBackbone, UpperLayers


class GatedLayers(UpperLayers):
    """The upper layers with an adapter whose states have read gates; only these are trained."""

    def __init__(self, backbone: FrozenBackbone, config: deltamem.DeltaMemConfig) -> None:
        super().__init__(backbone, config)
        self.gates = config.num_states
        for weight in self.weights.values():
            weight.register_hook(self._of_gates)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The maps whose first rows are the gates'."""
        return {name: weight for name, weight in super().weights.items() if ".delta_mem_in." in name}

    def load(self, adapter: Path) -> None:
        """Take the weights of an adapter without gates, and open them."""
        weights = load_peft_weights(str(adapter))
        for name, weight in weights.items():
            if ".delta_mem_in." in name:
                weights[name] = torch.cat([weight.new_zeros(self.gates, weight.shape[1]), weight])
        set_peft_model_state_dict(self.whole, weights)
        self.pull()

    def _of_gates(self, gradient: Tensor) -> Tensor:
        """The gradient of the rows of the gates, zero elsewhere: AdamW leaves a weight whose gradient was always zero."""
        return torch.where(torch.arange(len(gradient))[:, None] < self.gates, gradient, 0.0)


def gated_layers(backbone: FrozenBackbone, options: Namespace) -> GatedLayers:
    """The adapter's layers, with gates."""
    config = deltamem.DeltaMemConfig.from_pretrained(str(options.adapter))
    return GatedLayers(
        backbone, replace(config, kind="read_gate", layers_to_transform=None, backbone=None, inference_mode=False)
    )


if __name__ == "__main__":
    train.upper_layers = gated_layers
    train.main()
