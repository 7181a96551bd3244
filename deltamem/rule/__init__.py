"""The delta rule: the only place with its mathematics. Tensors in, tensors out; nothing here knows a model."""

from deltamem.rule.dispatch import delta_rule, read

__all__ = ["delta_rule", "read"]
