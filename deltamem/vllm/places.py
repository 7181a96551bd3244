"""Where the projections of a layer lie in vLLM's attention, which packs queries, keys and values and shards them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from deltamem.hook.attention_hook import AttentionHook
from deltamem.hook.registered import registered_hook


class Place(NamedTuple):
    """A projection in the output of a module.

    Args:
        module: the module.
        start: the projection's first feature in the module's output on this rank.
        first, size: which of the projection's features are on this rank.
        total: the number of its features on all ranks.
    """

    module: nn.Module
    start: int
    first: int
    size: int
    total: int

    def own_rows(self, weight: Tensor) -> Tensor:
        """This rank's rows of a correction's map [total, read_width]."""
        return weight[self.first : self.first + self.size].contiguous()


def places(attention: nn.Module, hook: AttentionHook) -> dict[str, Place]:
    """The projections of an attention module by role.

    Args:
        attention: vLLM's module.
        hook: the names of the projections in the model's family.

    Raises:
        ValueError: there are no projections that are understood.
    """
    from vllm.model_executor.layers.linear import QKVParallelLinear

    packed = next((module for module in attention.modules() if isinstance(module, QKVParallelLinear)), None)
    output = _named(attention, hook.o)
    if packed is None or output is None or not getattr(output, "reduce_results", True):
        children = ", ".join(f"{name} ({type(module).__name__})" for name, module in attention.named_children())
        raise ValueError(
            f"a memory corrects vLLM's packed projection of queries, keys and values, and the output projection {hook.o!r}; "
            f"but {type(attention).__name__} has {children}. Use `deltamem serve` for this model"
        )
    width = output.output_size
    return {**_packed(packed), "o": Place(output, 0, 0, width, width)}


def _packed(module: Any) -> dict[str, Place]:
    """The parts of a `QKVParallelLinear`: this rank's heads; ranks may share the heads of keys."""
    rank, replicas = module.tp_rank, module.num_kv_head_replicas
    found, start = {}, 0
    for role, heads, total, width, place in (
        ("q", module.num_heads, module.total_num_heads, module.head_size, rank),
        ("k", module.num_kv_heads, module.total_num_kv_heads, module.head_size, rank // replicas),
        ("v", module.num_kv_heads, module.total_num_kv_heads, module.v_head_size, rank // replicas),
    ):
        size = heads * width
        found[role] = Place(module, start, place * size, size, total * width)
        start += size
    return found


def _named(attention: nn.Module, names: str | tuple[str, ...]) -> Any:
    found = dict(attention.named_modules())
    return next((found[name] for name in ((names,) if isinstance(names, str) else names) if name in found), None)


def hook_of(model_type: str) -> AttentionHook:
    """The names of the projections in a family.

    Raises:
        ValueError: the family is unknown, or cannot have a memory.
    """
    hook = registered_hook(model_type)
    if not isinstance(hook, AttentionHook):
        raise ValueError(
            f"models of the type {model_type!r} cannot have memories in vLLM; use `deltamem serve`, if it takes them"
        )
    return hook
