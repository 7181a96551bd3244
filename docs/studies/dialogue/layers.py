"""The frozen backbone, and its upper layers alone, which have the memories.

Shapes: L upper layers, B rows, T tokens, W width of the hidden states, K words that are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import DynamicCache

from deltamem import DeltaMemConfig
from deltamem.backbones import load_backbone
from deltamem.chat.tokens import render
from deltamem.layer import DeltaMemLayer
from deltamem.memory.snapshot import Snapshot
from deltamem.memory.state import DeltaMemState

K = 64


@dataclass(frozen=True)
class Words:
    """The backbone's likeliest words at some positions, and their log-probabilities among these, `[positions, K]` each."""

    ids: Tensor
    log_probabilities: Tensor

    @classmethod
    def likeliest(cls, logits: Tensor) -> Words:
        """The likeliest words of logits `[positions, vocabulary]`."""
        values, ids = logits.float().topk(K, -1)
        return cls(ids.int(), values.log_softmax(-1).half())

    def at(self, positions: Tensor) -> Words:
        """Those at some positions."""
        return Words(self.ids[positions], self.log_probabilities[positions])

    @classmethod
    def joined(cls, parts: Sequence[Words]) -> Words:
        """Concatenate positions."""
        return cls(torch.cat([part.ids for part in parts]), torch.cat([part.log_probabilities for part in parts]))


@dataclass(frozen=True)
class Seen:
    """One pass of the frozen backbone.

    Args:
        logits: `[B, positions, vocabulary]`.
        below: the hidden states that enter the first upper layer, `[B, T, W]`.
        attended: the hidden states that each upper layer's attention reads, `[L, B, T, W]`.
    """

    logits: Tensor
    below: Tensor
    attended: Tensor


@dataclass(frozen=True)
class Marks:
    """What the chat template puts around messages.

    Args:
        openings: the tokens before what an assistant says, and before what a user says.
        after: how many tokens follow the one that ends a message.
    """

    openings: list[list[int]]
    after: int


class FrozenBackbone:
    """A backbone in bfloat16, whose layers from `first` on will have memories.

    Args:
        name: a folder or a name on the Hub.
        first: index of the first layer with a memory.
    """

    def __init__(self, name: str, first: int) -> None:
        self.model, self.tokenizer = load_backbone(name, dtype=torch.bfloat16)
        self.first = first
        self.upper = list(self.model.get_decoder().layers)[first:]
        self.head = self.ids(self._head())
        self.end = self._end()
        self.marks = self._marks()
        self._lower = _part(self.model, slice(first))
        self._lower_head = DynamicCache(config=self._lower.config)
        with torch.no_grad():
            self._lower(input_ids=self.head[None], past_key_values=self._lower_head, use_cache=True)

    def ids(self, text: str) -> Tensor:
        """Tokenise a text, `[tokens]`."""
        return self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]

    @torch.no_grad()
    def __call__(self, rows: Sequence[Tensor], positions: Tensor) -> Seen:
        """Run texts, `[tokens]` each, padded on the right; logits are computed at some positions, `[positions]`."""
        seen: dict[Any, Tensor] = {}

        def keep(name: Any, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            seen[name] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        with ExitStack() as stack:
            hooked = {"below": self.upper[0], **{place: layer.self_attn for place, layer in enumerate(self.upper)}}
            for name, module in hooked.items():
                stack.enter_context(module.register_forward_pre_hook(partial(keep, name), with_kwargs=True))
            ids, mask = padded(rows, self.tokenizer.pad_token_id or 0), padded([torch.ones_like(row) for row in rows])
            output = self.model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=positions)
        return Seen(output.logits, seen["below"], torch.stack([seen[place] for place in range(len(self.upper))]))

    @torch.no_grad()
    def below(self, rows: Sequence[Tensor]) -> Tensor:
        """The hidden states, `[B, T, W]`, of texts that follow the head, `[tokens]` each, below the first upper layer."""
        ids = padded(rows, self.tokenizer.pad_token_id or 0)
        return self._lower(input_ids=ids, **_context(rows, _repeated(self._lower_head, len(rows)), len(self.head))).logits

    def said(self, ids: Tensor) -> Tensor:
        """Whether each token belongs to what is said, or ends it, and is no other mark of the chat template, `[T]`."""
        said, tokens = torch.ones(len(ids), dtype=torch.bool), ids.tolist()
        for opening in self.marks.openings:
            for place in range(len(tokens)):
                if tokens[place : place + len(opening)] == opening:
                    said[max(place - self.marks.after, 0) : place + len(opening)] = False
        return said

    def starts_with_user(self, ids: Tensor) -> bool:
        """Whether a text starts with a user's message."""
        opening = self.marks.openings[1]
        return ids[: len(opening)].tolist() == opening

    def _marks(self) -> Marks:
        asked, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
        *_, answered, asked_again, after = render(self.tokenizer, [asked, answer, asked]).split(self.end)
        openings = [self.ids(message.removeprefix(after)[:-1]).tolist() for message in (answered, asked_again)]
        return Marks(openings, len(self.ids(after)))

    def _head(self) -> str:
        """What the chat template puts before a first message: the system prompt."""
        first, again = (render(self.tokenizer, [{"role": "user", "content": "x"}] * times) for times in (1, 2))
        return first.removesuffix(again.removeprefix(first))

    def _end(self) -> str:
        """What ends an answer: the first token after it, which the chat template determines."""
        asked, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
        after = render(self.tokenizer, [asked, answer]).rpartition("y")[2]
        return self.tokenizer.decode(self.ids(after)[0])


class UpperLayers:
    """The adapted layers as a model of its own, fed with the hidden states from below.

    Args:
        backbone: the frozen backbone.
        config: the adapter, without its layers: one with a memory, or a LoRA to compare it with.
    """

    def __init__(self, backbone: FrozenBackbone, config: DeltaMemConfig | LoraConfig) -> None:
        whole = replace(config, layers_to_transform=[*range(backbone.first, backbone.first + len(backbone.upper))])
        self.whole = get_peft_model(copy.deepcopy(backbone.model), whole)  # to start from, and to save
        self._attach(backbone, config)

    def _attach(self, backbone: FrozenBackbone, config: PeftConfig) -> None:
        self.backbone = backbone
        base = _part(backbone.model, slice(backbone.first, None))
        self.words = backbone.model.get_output_embeddings().weight.detach()  # [vocabulary, W]
        self.model = get_peft_model(base, config)
        self.memories = [module for module in self.model.modules() if isinstance(module, DeltaMemLayer)]
        self._head = DynamicCache(config=base.config)
        below = backbone([backbone.head], torch.arange(1)).below
        with torch.no_grad(), self.model.disable_adapter():
            self.model(inputs_embeds=below, past_key_values=self._head, use_cache=True)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The weights to train, by name."""
        return _trained(self.model)

    @torch.no_grad()
    def pull(self) -> None:
        """Take the weights of the whole model's adapter."""
        for own, other in self._pairs():
            own.copy_(other)

    def load(self, adapter: Path) -> None:
        """Take the weights of an adapter in a folder."""
        set_peft_model_state_dict(self.whole, load_peft_weights(str(adapter)))
        self.pull()

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Save the adapter, as one of the whole model."""
        for own, other in self._pairs():
            other.copy_(own)
        self.whole.save_pretrained(folder)

    def write(self, histories: Sequence[Tensor], before: Snapshot | None = None) -> Snapshot | None:
        """Write histories, given as what the attentions read, `[L, T, W]` each, to one row of the memory each.

        Args:
            histories: a history for each row.
            before: what the rows hold already; an empty memory if None.

        Returns:
            The memory after the histories; None without a memory.
        """
        if not self.memories:
            return None
        lengths = [history.shape[1] for history in histories]
        tokens = torch.tensor(lengths)
        valid = torch.arange(max(lengths)) < tokens[:, None]  # [B, T]
        states = {}
        for layer, hidden in zip(self.memories, torch.cat([*histories], 1), strict=True):  # [tokens of all, W]
            weights = layer.active_weights
            rows = padded(
                projected_writes(layer, hidden).split(lengths)
            )  # padded after the projection, which is most of the work
            states[layer.name] = weights.kind.write(rows, weights.gate_bias, before and before.state(layer.name), valid).state
        return Snapshot.from_layers(states, tokens)

    def read(self, below: Sequence[Tensor], memory: Snapshot | None, headed: bool, bare: bool = False) -> Tensor:
        """Read texts, given as the hidden states from below, `[T, W]` each.

        Args:
            below: the hidden states.
            memory: a row for each text; None without a memory.
            headed: whether the texts follow the template's head.
            bare: without the adapter.

        Returns:
            The last hidden states, `[B, T, W]`.
        """
        context = _context(below, self._head_for(len(below)) if headed else None, len(self.backbone.head) if headed else 0)
        with ExitStack() as stack:
            if bare:
                stack.enter_context(self.model.disable_adapter())
            elif memory is not None:
                stack.enter_context(self.model.memory(DeltaMemState(memory), write=False, detach=False))
            return self.model(inputs_embeds=padded(below), **context).logits

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of all words, `[positions, vocabulary]`, from the last hidden states, `[positions, W]`."""
        return F.linear(hidden, self.words).float()

    def divergence(self, hidden: Tensor, words: Words) -> Tensor:
        """KL(words || model) among the words, in nats, `[positions]`, from the last hidden states, `[positions, W]`."""
        logits = torch.einsum("nw,nkw->nk", hidden, self.words[words.ids.long()]).float()
        expected = words.log_probabilities.float()
        return (expected.exp() * (expected - logits.log_softmax(-1))).sum(-1)

    def _head_for(self, rows: int) -> DynamicCache:
        """The keys and values of the template's head for so many texts."""
        return _repeated(self._head, rows)

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(_trained(self.model).values(), _trained(self.whole).values(), strict=True)  # in the same order


class PrefixedLayers(UpperLayers):
    """The upper layers with a prefix in place of a memory, to compare it with.

    Args:
        backbone: the frozen backbone.
        config: the prefix.
    """

    def __init__(self, backbone: FrozenBackbone, config: PrefixTuningConfig) -> None:
        self._attach(backbone, config)

    @torch.no_grad()
    def start(self, text: Tensor) -> None:
        """Let the prefix start as the keys and values of a text, `[tokens]`."""
        base = self.model.get_base_model()
        cache, below = DynamicCache(config=base.config), self.backbone([text], torch.arange(1)).below
        before_the_head = torch.arange(-len(text), 0)[None]
        base(inputs_embeds=below, position_ids=before_the_head, past_key_values=cache, use_cache=True)
        both = torch.stack([part[0] for layer in cache.layers for part in (layer.keys, layer.values)])  # [2 L, heads, T, D]
        (prefix,) = self.weights.values()
        prefix.copy_(both.permute(2, 0, 1, 3).flatten(1))

    def save(self, folder: Path) -> None:
        """Save the prefix, which is one of the upper layers alone."""
        self.model.save_pretrained(folder)

    def read(self, below: Sequence[Tensor], memory: Snapshot | None, headed: bool, bare: bool = False) -> Tensor:
        """Read texts as `UpperLayers` does."""
        if bare:
            return super().read(below, memory, headed, bare)
        before: DynamicCache = self.model.get_prompt(len(below))
        if headed:
            for place, layer in enumerate(self._head_for(len(below)).layers):
                before.update(layer.keys, layer.values, place)
        context = _context(below, before, len(self.backbone.head) if headed else 0)
        return self.model.get_base_model()(inputs_embeds=padded(below), **context).logits


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def projected_writes(layer: DeltaMemLayer, hidden: Tensor) -> Tensor:
    """The rows with which tokens write, `[T, write_rows]`, from what a layer's attention reads, `[T, W]`."""
    weights = layer.active_weights
    return F.linear(hidden, weights.in_weight[weights.kind.read_rows :].to(hidden.dtype)).float()


def padded(rows: Sequence[Tensor], fill: int = 0) -> Tensor:
    """Pad rows of different lengths on the right, `[B, T, ...]`."""
    return nn.utils.rnn.pad_sequence([*rows], batch_first=True, padding_value=fill)


def _repeated(cache: DynamicCache, rows: int) -> DynamicCache:
    """The keys and values of one row for many."""
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(rows)
    return cache


def _context(rows: Sequence[Tensor], before: DynamicCache | None, start: int) -> dict[str, Any]:
    """The arguments of a pass over rows that are padded on the right, after keys and values; `start` is the first position."""
    mask = padded([row.new_ones(len(row), dtype=torch.long) for row in rows])
    if before is None:
        return {"attention_mask": mask, "use_cache": False}
    positions = start + torch.arange(mask.shape[1]).expand(len(rows), -1)
    mask = F.pad(mask, (before.get_seq_length(), 0), value=1)
    return {"attention_mask": mask, "position_ids": positions, "past_key_values": before, "use_cache": True}


def _part(model: nn.Module, layers: slice) -> nn.Module:
    """A copy of a backbone with some of its layers; its output, named logits, is the last hidden states."""
    base = copy.deepcopy(model)
    decoder, text = base.get_decoder(), base.config.get_text_config()
    if layers.stop is not None:  # below other layers
        decoder.norm = nn.Identity()
    decoder.layers = nn.ModuleList([*decoder.layers][layers])
    for place, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = place
    text.num_hidden_layers = len(decoder.layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[layers]
    text.tie_word_embeddings = False
    base.set_output_embeddings(nn.Identity())
    return base
