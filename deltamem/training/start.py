"""Initialises an adapter from the frozen attention: the memory first projects what its layer's own heads read and write.

From random projections, a memory learns how texts of a kind continue, but hardly what its own text said; from these, it
binds what was said from the first hundred steps on. docs/experiments.md has the comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from deltamem.adapter.offloading import loaded_weight, weight_of
from deltamem.hook.text_decoder import last_place
from deltamem.layer import DeltaMemLayer
from deltamem.rule import DeltaKind
from deltamem.rule.kind import STATE
from deltamem.training.loss import joined, views_in
from deltamem.training.writing import Batch

START_CHATS = 16
# The initial correction, relative to the attention's output along its direction.
CORRECTION_GAIN = 0.25
# Keys and queries before tanh: their spread, and a part shared by all tokens, so that any key retrieves a little of any other.
KEY_SPREAD, KEY_SHARED = 0.3, 0.6
# Logits of the states' write gates. As the only gates, they give half-lives of about 5, 14, 38 and 103 tokens.
GATE_BIASES = (-2.0, -3.0, -4.0, -5.0)
# Logits of the gates of a learned decay: half-lives of about 14, 38, 170 and 760 tokens.
KEEP_BIASES = (3.0, 4.0, 5.5, 7.0)


@dataclass
class Seen:
    """What was recorded at a layer's attention.

    Args:
        hidden: its inputs after the norm, `[tokens, width]` each.
        alone, informed: its outputs at tokens that follow a history, without that history in the context and with it, `[tokens,
            width]` each, in the same order.
    """

    hidden: list[Tensor] = field(default_factory=list)
    alone: list[Tensor] = field(default_factory=list)
    informed: list[Tensor] = field(default_factory=list)


@torch.no_grad()
def start_from_attention(model: PeftModel, batches: Iterable[Mapping[str, Any]]) -> None:
    """Set the active adapter's weights from what the frozen attention does on some chats.

    Values are what the heads would add to the output, along the directions in which a history changes that output most; the
    output's correction maps them back there. Keys and queries are the principal directions of one key head per state.
    The write gates give some states a longer memory than others. Other corrections start at zero.

    Args:
        model: has a new adapter that corrects the output ("o").
        batches: from an `EpisodeCollator` whose encoder has `whole` set; a few dozen chats in total.

    Raises:
        ValueError: the adapter lacks that correction; a layer shares another layer's keys and values, or its heads cannot be
            identified; the weights are quantised; nothing in the batches follows a history.
    """
    adapter = model.active_adapters[0]
    layers = [module for module in model.modules() if isinstance(module, DeltaMemLayer) and module.is_active]
    for layer in layers:
        _check(layer, adapter)
    seen = {layer.name: Seen() for layer in layers}
    with model.disable_adapter():
        for batch in batches:
            _watch(model, layers, seen, batch)
    for layer in layers:
        _start(layer, adapter, model.config, seen[layer.name])


def _check(layer: DeltaMemLayer, adapter: str) -> None:
    if "o" not in layer.adapters[adapter].corrections:
        raise ValueError("a start from the attention needs the correction of its output; give corrections with 'o'")
    if not {"k", "v"} <= {*layer.projections}:
        raise ValueError(f"{layer.name} shares another layer's keys and values; start at random, or leave the layer out")


def _watch(model: PeftModel, layers: Sequence[DeltaMemLayer], seen: Mapping[str, Seen], batch: Mapping[str, Any]) -> None:
    """Record the layers in one pass over whole chats and one over the read parts alone."""
    chats = batch["chats"]
    alone = [batch[name] for name, view in views_in(batch).items() if view.own and not view.context]
    if not alone:
        return
    read = joined(alone)
    rows, places = (read["taught"] >= 0).nonzero(as_tuple=True)
    chat = read["chat"][rows]
    there = read["taught"][rows, places] + (chats["attention_mask"] == 0).sum(1)[chat]  # offset by the padding
    _pass(model, layers, chats, {layer.name: seen[layer.name].informed for layer in layers}, (chat, there), seen)
    _pass(model, layers, read, {layer.name: seen[layer.name].alone for layer in layers}, (rows, places))


def _pass(
    model: PeftModel,
    layers: Sequence[DeltaMemLayer],
    batch: Batch,
    outputs: Mapping[str, list[Tensor]],
    at: tuple[Tensor, Tensor],
    seen: Mapping[str, Seen] | None = None,
) -> None:
    """Run one pass without the adapter; record each attention's outputs at some tokens and, with `seen`, all its inputs."""
    real = batch["attention_mask"].bool()

    def keep_output(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        outputs[name].append(output[at].float())

    def keep_hidden(name: str, module: nn.Module, args: Any) -> None:
        if seen is not None:
            seen[name].hidden.append(args[0][real].float())

    with ExitStack() as stack:
        for layer in layers:
            into, out = layer.projections["q"].module, layer.projections["o"].module
            stack.enter_context(out.register_forward_hook(partial(keep_output, layer.name)))
            stack.enter_context(into.register_forward_pre_hook(partial(keep_hidden, layer.name)))
        ids = batch["input_ids"]
        model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=last_place(ids))


def _start(layer: DeltaMemLayer, adapter: str, config: Any, seen: Seen) -> None:
    weights, kind = layer.adapters[adapter], layer.adapters[adapter].kind
    if not isinstance(kind, DeltaKind):
        raise ValueError(f"a start from the attention is for the delta rule, got kind={weights.config.kind!r}; start at random")
    states, r, _ = kind.state_parts[STATE]
    if not seen.informed:
        raise ValueError("nothing in the batches follows a history, so there is nothing to start from; give chats")
    hidden = torch.cat(seen.hidden)
    mean = hidden.mean(0)
    mean = mean / mean.norm()
    heads = _Heads.from_layer(layer, config)
    changed = torch.cat(seen.informed) - torch.cat(seen.alone)
    directions = _principal(changed, states * r)  # [states * r, width]
    order = torch.arange(states * r, device=directions.device).view(r, states).T.flatten()  # deal them out over the states
    directions = directions[order]
    rows, weight, bias = kind.read_rows, weights.in_weight, weights.gate_bias
    for state in range(states):
        own = slice(state * r, (state + 1) * r)
        key, query = heads.keys_and_queries(state)
        plane = _principal(hidden @ key.T, r)
        signs = torch.randn(r, 1, dtype=torch.float32, device=weight.device).sign()
        weight[own].copy_(_spread(plane @ query, hidden, mean, signs))
        weight[rows:][own].copy_(_spread(plane @ key, hidden, mean, signs))
    weight[2 * rows : 3 * rows].copy_(directions @ heads.added())
    weight[3 * rows :].zero_()
    gates = (GATE_BIASES, KEEP_BIASES) if kind.decay == "learned" else (GATE_BIASES,)
    places = torch.arange(states, device=weight.device)
    each = [torch.tensor(biases, dtype=torch.float32, device=weight.device)[places % len(biases)] for biases in gates]
    bias.copy_(torch.cat(each).repeat_interleave(kind.gate_rows))
    for role in weights.corrections:
        layer.adapter_weights(adapter)[role].zero_()
    layer.adapter_weights(adapter)["o"].copy_(directions.T * (CORRECTION_GAIN / weights.scale))


@dataclass(frozen=True)
class _Heads:
    """The weights of an attention, split by head.

    Args:
        q: `[heads, size, width]`. k, v: `[key heads, size, width]`. o: `[heads, output, size]`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor

    @classmethod
    def from_layer(cls, layer: DeltaMemLayer, config: Any) -> _Heads:
        text = config.get_text_config()
        heads = text.num_attention_heads
        key_heads = getattr(text, "num_key_value_heads", None) or heads
        q, k, v, o = (_weight(layer, role) for role in "qkvo")
        sizes = [len(q) % heads, len(k) % key_heads, len(v) % key_heads, o.shape[1] % heads]
        if any(sizes) or len(q) // heads != len(k) // key_heads or o.shape[1] // heads != len(v) // key_heads:
            raise ValueError(
                f"the heads of {layer.name} cannot be identified: {heads} query heads and {key_heads} key heads in projections "
                f"of {len(q)}, {len(k)} and {len(v)} rows; start at random"
            )
        return cls(
            q.unflatten(0, (heads, -1)),
            k.unflatten(0, (key_heads, -1)),
            v.unflatten(0, (key_heads, -1)),
            o.unflatten(1, (heads, -1)).transpose(0, 1),
        )

    def added(self) -> Tensor:
        """What all heads together add to the output for a token that all of them attend to: `[output, width]`."""
        return sum((o @ self.v[head // self._group] for head, o in enumerate(self.o)), start=self.o.new_zeros(()))

    def keys_and_queries(self, state: int) -> tuple[Tensor, Tensor]:
        """The keys of one head and the mean of its queries, for a state, `[size, width]` each."""
        head = state % len(self.k)
        return self.k[head], self.q[head * self._group : (head + 1) * self._group].mean(0)

    @property
    def _group(self) -> int:
        return len(self.q) // len(self.k)


def _weight(layer: DeltaMemLayer, role: str) -> Tensor:
    projection = layer.projections[role]
    weight = loaded_weight(*weight_of(projection.module))
    if not weight.is_floating_point() or weight.itemsize == 1:
        raise ValueError(f"the weights of {layer.name} are quantised ({weight.dtype}); start at random")
    return projection.rows_of(weight).float()


def _principal(vectors: Tensor, count: int) -> Tensor:
    """The directions in which vectors `[tokens, width]` vary most, in descending order: `[count, width]`, of unit length."""
    centred = vectors - vectors.mean(0)
    return torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1)[:, :count].T


def _spread(weight: Tensor, hidden: Tensor, mean: Tensor, signs: Tensor) -> Tensor:
    """Rescale a projection `[r, width]` to a fixed spread around a fixed mean, which all tokens share."""
    projected = hidden @ weight.T
    spread = (projected - projected.mean(0)).std()
    around = weight - (weight @ mean)[:, None] * mean
    return KEY_SPREAD * around / spread + signs * mean * (KEY_SHARED / (hidden @ mean).mean())
