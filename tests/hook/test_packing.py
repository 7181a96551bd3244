from types import SimpleNamespace

import pytest
import torch
from einops import rearrange
from torch import nn
from transformers.pytorch_utils import Conv1D

from deltamem.hook.packing import Packing

WIDTH = 3
# Descriptions of a projection with `heads` queries and `kv` keys of one width, and by hand the order of its outputs: the parts
# of each head as "q0", "k1", ...
PACKED = [
    ("q k v", 4, 4, "q0 q1 q2 q3 k0 k1 k2 k3 v0 v1 v2 v3"),
    ("q k v", 4, 2, "q0 q1 q2 q3 k0 k1 v0 v1"),
    ("q v k", 4, 2, "q0 q1 q2 q3 v0 v1 k0 k1"),
    ("k v", 4, 2, "k0 k1 v0 v1"),
    ("heads x (q k v)", 2, 2, "q0 k0 v0 q1 k1 v1"),
    ("heads x (q gate)", 2, 1, "q0 gate0 q1 gate1"),
    ("kv_heads x (q k v)", 4, 2, "q0 q1 k0 v0 q2 q3 k1 v1"),
    ("kv_heads x (v k q)", 4, 2, "v0 k0 q0 q1 v1 k1 q2 q3"),
    ("kv_heads x (q k v)", 3, 1, "q0 q1 q2 k0 v0"),
    ("2 x (q k v)", 4, 4, "q0 q1 k0 k1 v0 v1 q2 q3 k2 k3 v2 v3"),
]


def attention(heads, kv, **widths):
    return SimpleNamespace(num_heads=heads, num_key_value_heads=kv, **widths)


@pytest.mark.parametrize(("text", "heads", "kv", "order"), PACKED, ids=[f"{case[0]} {case[1]}:{case[2]}" for case in PACKED])
def test_where_each_part_lies(text, heads, kv, order):
    blocks = order.split()
    module = nn.Linear(5, len(blocks) * WIDTH)
    rows = rearrange(torch.arange(module.out_features), "(block d) -> block d", d=WIDTH)
    for role in {block.rstrip("0123456789") for block in blocks}:
        numbers = {int(block.removeprefix(role)): index for index, block in enumerate(blocks) if block.startswith(role)}
        expected = torch.cat([rows[numbers[head]] for head in sorted(numbers)])
        projection = Packing.parse(text).place(role, module, attention(heads, kv), None)
        assert projection.out_features == len(expected)
        correction = torch.arange(1.0, len(expected) + 1).expand(2, 7, -1)
        for with_gradients in (True, False):  # without, the output is changed in its place
            with torch.set_grad_enabled(with_gradients):
                output = projection.corrected(torch.zeros(2, 7, module.out_features), correction, torch.eye(len(expected)), 2.0)
            assert output.shape == (2, 7, module.out_features)
            assert torch.equal(output[..., expected], 2 * correction)
            assert output.count_nonzero() == correction.numel()
        assert torch.equal(projection.rows_of(module.weight), module.weight[expected])


def test_parts_with_widths_of_their_own():
    """Keys of 5 (two of them elsewhere) beside values of 3, for each of two heads."""
    module, config = nn.Linear(4, 16), SimpleNamespace(nope=5, v_width=3)
    packing = Packing.parse("heads x (k:nope v:v_width)")
    values = packing.place("v", module, attention(2, 2), config)
    assert (values.out_features, values.before, values.after) == (6, 5, 0)
    # What has no width of its own shares the rest.
    queries = Packing.parse("heads x (q gate:v_width)").place("q", module, attention(2, 2), config)
    assert (queries.out_features, queries.before, queries.after) == (10, 0, 3)


def test_a_transposed_projection():
    module = Conv1D(12, 5)  # weight [5, 12]
    projection = Packing.parse("q k v").place("k", module, attention(4, 4), None)
    assert torch.equal(projection.rows_of(module.weight), module.weight.T[4:8])


def test_the_module_knows_its_heads_better_than_the_configuration():
    config = SimpleNamespace(num_attention_heads=3, num_key_value_heads=3)
    projection = Packing.parse("heads x (q k v)").place("q", nn.Linear(4, 12), attention(2, 2), config)
    assert projection.groups == 2
    projection = Packing.parse("heads x (q k v)").place("q", nn.Linear(4, 18), SimpleNamespace(num_heads=None), config)
    assert projection.groups == 3


@pytest.mark.parametrize(
    "text", ["", "q", "q  k", "q,k,v", "q k w", "heads x q k v", "heads x (q)", "rows x (q k v)", "heads x (q:a:b k)", 3, None]
)
def test_another_description_is_refused(text):
    with pytest.raises(ValueError, match=r"is not accepted; give parts named q, gate, k, v .*kv_heads x \(q k v\)"):
        Packing.parse(text)


@pytest.mark.parametrize(
    ("text", "heads", "kv", "outputs"), [("q k v", 4, 4, 13), ("kv_heads x (q k v)", 3, 2, 14), ("heads x (k:wide v)", 2, 2, 8)]
)
def test_outputs_that_cannot_be_divided_so_are_refused(text, heads, kv, outputs):
    with pytest.raises(ValueError, match=f"does not fit SimpleNamespace: its projection has {outputs} outputs"):
        Packing.parse(text).place("k", nn.Linear(4, outputs), attention(heads, kv, wide=9), None)


def test_heads_that_nobody_counts_are_refused():
    with pytest.raises(ValueError, match=r"neither SimpleNamespace nor .* any of num_heads, num_attention_heads"):
        Packing.parse("q k v").place("q", nn.Linear(4, 12), SimpleNamespace(), SimpleNamespace(num_heads=True))
