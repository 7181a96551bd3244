"""vLLM's side of a step: which tokens and which slot belong to each request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.v1.attention.backend import AttentionMetadataBuilder
from vllm.v1.attention.backends.linear_attn import LinearAttentionBackend

from deltamem.vllm.batch import Group, SlotUse, grouped


class Step:
    """What all layers need to know of a step.

    Args:
        bounds: where the tokens of each request begin, and where those of the last one end, [R + 1].
        lengths: how many tokens of each request have been passed through the model after this step, [R].
        slots: the slots of the requests, [R], on the device of the states.
    """

    def __init__(self, bounds: Sequence[int], lengths: Tensor, slots: Tensor) -> None:
        self._bounds, self._lengths, self._slots = bounds, lengths, slots
        self._groups: list[Group] | None = None

    def groups(self, uses: Mapping[int, SlotUse]) -> list[Group]:
        """The groups of requests; see `grouped`. The first layer of a step makes them, when the uses are known."""
        if self._groups is None:
            bounds, lengths = self._bounds, self._lengths.tolist()
            passed = [length - end + start for length, start, end in zip(lengths, bounds[:-1], bounds[1:], strict=True)]
            self._groups = grouped(bounds, passed, self._slots.tolist(), uses, self._slots.device)
        return self._groups


class MemoryBackend(LinearAttentionBackend):
    """Names the builder of `Step`; the arithmetic is the memory layer's own."""

    @staticmethod
    def get_name() -> str:
        """See `AttentionBackend`."""
        return "DELTA_MEM"

    @staticmethod
    def get_builder_cls() -> type[StepBuilder]:
        """See `AttentionBackend`."""
        return StepBuilder


class StepBuilder(AttentionMetadataBuilder):
    """Makes the `Step` of every step."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Step:
        """See `AttentionMetadataBuilder`. A request's only block is its slot."""
        requests = common_attn_metadata.num_reqs
        bounds = common_attn_metadata.query_start_loc_cpu[: requests + 1].tolist()
        lengths, tables = common_attn_metadata.seq_lens, common_attn_metadata.block_table_tensor
        return Step(bounds, lengths[:requests], tables[:requests, 0])
