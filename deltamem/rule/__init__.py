"""The delta rule: the only place with its mathematics. Tensors in, tensors out; nothing here knows a model."""

from deltamem.rule.delta import delta_rule, read
from deltamem.rule.delta_memory import Gated, gated_delta_rule, gated_read, gated_write
from deltamem.rule.gates import Gating

__all__ = ["Gated", "Gating", "delta_rule", "gated_delta_rule", "gated_read", "gated_write", "read"]
