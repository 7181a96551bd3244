"""Update rules: all of their mathematics lives here. Tensors in, tensors out; this package knows nothing about models."""

from deltamem.rule.delta import delta_rule, read
from deltamem.rule.delta_memory import DeltaKind, delta_memory, delta_memory_read, delta_memory_write
from deltamem.rule.gates import Gating
from deltamem.rule.kind import MemoryKind, Outcome, register_memory_kind

__all__ = [
    "DeltaKind",
    "Gating",
    "MemoryKind",
    "Outcome",
    "delta_memory",
    "delta_memory_read",
    "delta_memory_write",
    "delta_rule",
    "read",
    "register_memory_kind",
]
