"""The default learning rate follows the backbone's size; one that is given does not."""

import pytest
import torch
from torch import nn

from deltamem.training.options import TrainingOptions


def model(millions):
    """Frozen weights in this number, without any memory for them, and a few that are trained."""
    frozen = nn.Parameter(torch.empty(millions, 1_000_000, device="meta"), requires_grad=False)
    return nn.ParameterList([frozen, nn.Parameter(torch.empty(2_000_000_000, device="meta"))])


@pytest.mark.parametrize(
    ("line", "millions", "rate", "said"),
    [
        ("--preset facts", 135, 4e-3, None),
        (
            "--preset facts",
            494,
            1e-3,
            "The default learning rate 0.004 is high for a backbone of 494 million",
        ),
        ("--preset facts", 4_000, 2e-4, "with 0.0002"),
        ("--preset talk", 494, 1e-3, None),
        ("--preset paper", 4_000, 2e-4, None),
        ("", 4_000, 2e-4, None),
        (
            "--learning_rate 4e-3",
            494,
            4e-3,
            "The learning rate 0.004 is high for a backbone of 494 million",
        ),
        ("--preset facts --learning-rate 4e-3", 494, 4e-3, "0.001 is safer"),
        ("--preset facts --learning_rate=5e-4", 494, 5e-4, None),
    ],
)
def test_a_rate_suits_the_backbone(tmp_path, line, millions, rate, said):
    options = TrainingOptions.parse([*line.split(), "--output_dir", str(tmp_path), "--use_cpu"], "deltamem train", None)
    advice = options.suit_learning_rate(model(millions))
    assert options.training.learning_rate == rate
    assert (advice is None) == (said is None)
    assert said is None or said in advice
