"""MemoryConnector: brings memories into the slots of requests and back, through vLLM's interface for state from outside.

vLLM makes one in the scheduler's process, which decides, and one in each worker's, which copies.

Shapes: L layers with a memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from deltamem.vllm.adapter import Adapter
from deltamem.vllm.batch import SlotUse, Use
from deltamem.vllm.keeper import open_keeper
from deltamem.vllm.memory_layer import MemoryLayer
from deltamem.vllm.options import MemoryOptions
from deltamem.vllm.turns import States, Turns

# The slot of a request in each group of layers of vLLM's cache that hold memories, by the group's number.
Slots = dict[int, int]


class Start(NamedTuple):
    """A request that starts, or starts again.

    Args:
        slots: its slots.
        use: what it does with its memory.
        states: the states before them; None if they are empty.
    """

    slots: Slots
    use: SlotUse
    states: States | None


@dataclass
class Moves(KVConnectorMetadata):
    """What the workers do in a step.

    Args:
        starts: the requests that start, before the step.
        ends: the slots of the requests whose states are handed back after it, by the requests' ids.
    """

    starts: list[Start] = field(default_factory=list)
    ends: dict[str, Slots] = field(default_factory=dict)


@dataclass
class Ended(KVConnectorWorkerMetadata):
    """The states that the workers hand back, by the requests' ids."""

    states: dict[str, States]

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """See `KVConnectorWorkerMetadata`: every rank has the same states."""
        return self


class MemoryConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module.

    Attributes:
        turns: the requests and their memories, in the scheduler's process.
    """

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        options = MemoryOptions.from_config(vllm_config.additional_config)
        context = vllm_config.compilation_config.static_forward_context
        self._context = context
        self._group_of = {
            name: number
            for number, group in enumerate(kv_cache_config.kv_cache_groups)
            for name in group.layer_names
            if name.endswith(".delta_mem")
        }
        self._moves, self._slots = Moves(), dict[str, Slots]()
        if role is KVConnectorRole.SCHEDULER:
            self._room = vllm_config.model_config.max_model_len
            self.turns = Turns(Adapter.read(options.adapter), open_keeper(options.store), options.patience)

    @property
    def requires_kv_delivery(self) -> bool:
        """See `KVConnectorBase_V1`: a preempted request starts again from its memory."""
        return False

    # ------------------------------------------------------------------------------------------------ in the scheduler

    def on_new_request(self, request: Any) -> None:
        """See `KVConnectorBase_V1`."""
        self.turns.add(request, self._room)

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """See `KVConnectorBase_V1`: no keys or values come from outside, but a request may have to wait for its memory."""
        return (0 if self.turns.ready(request.request_id) else None), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """See `KVConnectorBase_V1`: the request starts in this step, and its slots are known."""
        name, ids = request.request_id, blocks.get_block_ids()
        slots = self._slots[name] = {number: ids[number][0] for number in {*self._group_of.values()}}
        self._moves.starts.append(Start(slots, self.turns[name].slot_use, self.turns.start(name)))

    def build_connector_meta(self, scheduler_output: Any) -> Moves:
        """See `KVConnectorBase_V1`."""
        for name, tokens in scheduler_output.num_scheduled_tokens.items():
            turn = self.turns[name]
            if turn.writing and turn.request.num_computed_tokens + tokens >= turn.request.num_tokens:
                self._moves.ends[name] = self._slots[name]
        self.turns.renew()
        moves, self._moves = self._moves, Moves()
        return moves

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """See `KVConnectorBase_V1`."""
        self._slots.pop(request.request_id, None)
        self.turns.end(request.request_id)
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        """See `SupportsHMA`."""
        return self.request_finished(request, [])

    # --------------------------------------------------------------------------------------------------- in the workers

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """See `KVConnectorBase_V1`: put the states of the requests that start into their slots, before the model runs."""
        super().bind_connector_metadata(connector_metadata)
        if isinstance(connector_metadata, Moves):
            for start in connector_metadata.starts:
                self._put(start)

    def _put(self, start: Start) -> None:
        for number, (name, layer) in enumerate(self._layers()):
            slot = start.slots[self._group_of[name]]
            layer.uses[slot] = start.use
            if start.use.use is not Use.NONE:
                for part, states in layer.states.items():
                    states[slot] = 0 if start.states is None else start.states[part][number]

    def build_connector_worker_meta(self) -> Ended | None:
        """See `KVConnectorBase_V1`: copy the states of the requests that end, after the model ran."""
        moves = self._connector_metadata
        if not isinstance(moves, Moves) or not moves.ends:
            return None
        return Ended({name: self._take(slots) for name, slots in moves.ends.items()})

    def _take(self, slots: Slots) -> dict[str, Tensor]:
        layers = self._layers()
        return {
            part: torch.stack([layer.states[part][slots[self._group_of[name]]] for name, layer in layers]).cpu()
            for part in layers[0][1].kind.state_parts
        }

    def _layers(self) -> list[tuple[str, MemoryLayer]]:
        return [(name, layer) for name, layer in self._context.items() if isinstance(layer, MemoryLayer)]

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """See `KVConnectorBase_V1`: nothing, see `bind_connector_metadata`."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """See `KVConnectorBase_V1`: nothing."""

    def save_kv_layer(self, layer_name: str, kv_layer: Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """See `KVConnectorBase_V1`: nothing."""

    def wait_for_save(self) -> None:
        """See `KVConnectorBase_V1`: nothing."""
